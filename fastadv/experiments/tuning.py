"""A search for learning rates that looks at the labelled language's dev set alone.

"All hyperparameters were tuned on the English dev sets only": Keung, Lu and Bhardwaj, EMNLP 2019,
section 3.1. The proposals are Optuna's tree-structured Parzen estimator (Bergstra, Bardenet,
Bengio and Kégl, "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastadv.run.files import write_atomically

RATES = ("lr_task", "lr_discriminator", "lr_generator")
TRIALS, SETTINGS = "trials.jsonl", "tune.json"


@dataclass(frozen=True)
class Trial:
    """A run with some rates.

    Attributes:
        number: The trial's number, from 0, in the order of the trials.
        rates: The rates, by the field's name in `FinetuneConfig`.
        score: The best score on the dev set, accuracy or F1; None where a loss was not finite.
        step: The step of that score, the earliest of equals.
    """

    number: int
    rates: dict[str, float]
    score: float | None
    step: int | None = None


def propose(
    trials: Sequence[Trial], centre: Mapping[str, float], span: float, seed: int, startup: int
) -> dict[str, float]:
    """Rates for the next trial: first the rates in `centre`, then what the estimator draws.

    They depend on the arguments alone, so a stopped search resumes as if it had never stopped.

    Args:
        trials: The finished trials.
        centre: Rates to search around, those configured or those that fit the encoder; each is
            searched from 1/span to span times itself, on a logarithmic scale. A rate of 0 stays 0.
        span: A factor above 1.
        seed: Seeds what is random in a proposal, together with the number of trials.
        startup: Trials that are drawn at random before the estimator begins.

    Raises:
        ValueError: `span` is not above 1, or there is nothing to search.
        ImportError: Optuna is not installed.
    """
    if not span > 1:
        raise ValueError(f"span is {span}, expected a number above 1")
    searched = {name: rate for name, rate in centre.items() if rate > 0}
    if not searched:
        raise ValueError("found no rate above 0, expected at least one to search")
    if not trials:
        return dict(centre)
    optuna = _optuna()
    space = {
        name: optuna.distributions.FloatDistribution(rate / span, rate * span, log=True)
        for name, rate in searched.items()
    }
    drawn = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=startup)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    states = optuna.trial.TrialState
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params={name: trial.rates[name] for name in space},
                distributions=space,
                value=trial.score,
                state=states.FAIL if trial.score is None else states.COMPLETE,
            )
        )
    found = study.ask(space).params
    return {name: float(found.get(name, rate)) for name, rate in centre.items()}


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best score, the earliest of equals; None if none has one."""
    scored = [trial for trial in trials if trial.score is not None]
    return max(scored, key=lambda trial: (trial.score, -trial.number), default=None)


class Search:
    """The folder of a search: trials.jsonl, and tune.json, which says what is searched.

    Args:
        folder: The folder, made if need be.
        settings: Everything that trials depend on; JSON must be able to hold it.
        resume: Resume the search there, if there is one.

    Attributes:
        trials: The finished trials.

    Raises:
        ValueError: The folder holds a search and `resume` is False, or one of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.folder = folder
        self.trials: list[Trial] = []
        written, ours = folder / SETTINGS, json.loads(json.dumps(settings))
        if written.exists():
            if not resume:
                raise ValueError(
                    f"{folder}: found {SETTINGS} of another search, expected a new folder, or "
                    "--resume to continue it"
                )
            theirs = json.loads(written.read_text("utf-8"))
            for name in sorted(ours.keys() | theirs.keys()):
                if ours.get(name) != theirs.get(name):
                    raise ValueError(
                        f"{written}: {name} was {theirs.get(name)!r} in that search and is "
                        f"{ours.get(name)!r} now, expected the same to resume"
                    )
            if (file := folder / TRIALS).exists():
                lines = file.read_text("utf-8").splitlines()
                self.trials = [Trial(**json.loads(line)) for line in lines]
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(written, json.dumps(ours, indent=1, ensure_ascii=False) + "\n")

    def add(self, trial: Trial) -> None:
        """Keeps a finished trial."""
        self.trials.append(trial)
        lines = [json.dumps(asdict(trial)) + "\n" for trial in self.trials]
        write_atomically(self.folder / TRIALS, "".join(lines))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "tuning needs optuna, expected it to be installed: pip install 'fastadv[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
