"""Proposals and the folder of a search."""

from __future__ import annotations

import builtins
import math
from pathlib import Path
from typing import Any

import pytest

from fastadv.experiments.tuning import TRIALS, Search, Trial, best_of, propose

CENTRE = {"lr_task": 1e-4, "lr_discriminator": 1e-2, "lr_generator": 1e-6}


def searched(count: int, seed: int = 0, centre: dict[str, float] = CENTRE) -> list[Trial]:
    """Trials with a score that is best at ten times the task's rate, whatever the others are."""
    trials: list[Trial] = []
    for number in range(count):
        rates = propose(trials, centre, 20.0, seed, 4)
        trials.append(Trial(number, rates, 1 - abs(math.log10(rates["lr_task"] / 1e-3)), 1))
    return trials


def test_the_first_trial_is_what_was_configured() -> None:
    assert propose([], CENTRE, 10.0, 0, 4) == CENTRE


def test_rates_stay_within_the_span_and_differ() -> None:
    trials = searched(20)
    for trial in trials:
        for name, rate in trial.rates.items():
            assert CENTRE[name] / 20.001 <= rate <= CENTRE[name] * 20.001
    assert len({tuple(trial.rates.values()) for trial in trials}) == 20


def test_it_learns_from_trials() -> None:
    # At random a rate is within a factor of 1.5 of the best with probability ln 1.5 / ln 20: 12 of
    # 36 by chance twice in a thousand searches.
    late = searched(40)[4:]
    near = [t for t in late if abs(math.log(t.rates["lr_task"] / 1e-3)) < math.log(1.5)]
    assert len(near) >= 12


def test_proposals_depend_on_seed_and_trials_alone() -> None:
    trials = searched(9)
    assert searched(9) == trials
    assert searched(9, seed=1) != trials
    # In the middle of it, from the trials alone.
    assert propose(trials[:6], CENTRE, 20.0, 0, 4) == trials[6].rates


def test_a_trial_without_a_score_is_passed_over() -> None:
    trials = [*searched(6), Trial(6, dict(CENTRE), None)]
    assert propose(trials, CENTRE, 20.0, 0, 4).keys() == CENTRE.keys()
    assert best_of(trials) == best_of(trials[:6])
    assert best_of(trials[6:]) is None


def test_the_earliest_of_equals_is_best() -> None:
    trials = [Trial(n, {}, score) for n, score in enumerate([0.5, 0.9, None, 0.9])]
    assert best_of(trials) == trials[1]


def test_a_rate_of_zero_stays_zero() -> None:
    trials = searched(5, centre={"lr_task": 1e-4, "lr_generator": 0.0})
    assert {trial.rates["lr_generator"] for trial in trials} == {0.0}
    with pytest.raises(ValueError, match="no rate above 0"):
        propose([], {"lr_task": 0.0}, 10.0, 0, 4)
    with pytest.raises(ValueError, match="span is 1"):
        propose([], CENTRE, 1.0, 0, 4)


def test_a_search_goes_on_from_its_folder(tmp_path: Path) -> None:
    search = Search(tmp_path / "out", {"model": "m"}, resume=False)
    for trial in searched(3):
        search.add(trial)
    again = Search(tmp_path / "out", {"model": "m"}, resume=True)
    assert again.trials == search.trials == searched(3)
    before = (tmp_path / "out" / TRIALS).read_bytes()
    with pytest.raises(ValueError, match="--resume to continue it"):
        Search(tmp_path / "out", {"model": "m"}, resume=False)
    with pytest.raises(ValueError, match="model was 'm' in that search and is 'n' now"):
        Search(tmp_path / "out", {"model": "n"}, resume=True)
    assert (tmp_path / "out" / TRIALS).read_bytes() == before


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *more: Any, **named: Any) -> Any:
        if name == "optuna":
            raise ImportError("No module named 'optuna'")
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'fastadv\[tune\]'"):
        propose([Trial(0, CENTRE, 0.5)], CENTRE, 10.0, 0, 4)
