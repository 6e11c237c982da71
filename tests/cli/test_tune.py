"""`fastadv tune` from files to rates that `fastadv train` takes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_helpers import LANGUAGES, SMALL, command, environment, refused

from fastadv import recommended
from fastadv.cli import main


def tune(model: Path, *more: str, output: str = "search") -> list[str]:
    """A search over a few steps; `more` may override any of it."""
    files = ["--train", "en.train", "--dev", "en.train", *LANGUAGES]
    fixed = ["--model", str(model), *files, "--output", output, "--trials", "4", "--startup", "2"]
    rates = ["--config.lr_task", "1e-3", "--config.steps", "3", "--config.eval_every", "1"]
    return ["tune", *fixed, *SMALL, *rates, *more]


def trials(folder: str = "search") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "trials.jsonl").read_text().splitlines()]


def test_a_search_and_a_run_with_its_rates(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tune(model)) == 0
    printed = capsys.readouterr()
    found = trials()
    assert [trial["number"] for trial in found] == [0, 1, 2, 3]
    assert found[0]["rates"] == {"lr_task": 1e-3, "lr_discriminator": 5e-5, "lr_generator": 2e-8}
    assert [line.split(":")[0] for line in printed.err.splitlines()] == [
        f"trial {number}" for number in range(4)
    ]
    best = max(found, key=lambda trial: (trial["score"], -trial["number"]))
    written = yaml.safe_load(Path("search/best.yaml").read_text())
    assert {name: written["config"][name] for name in best["rates"]} == best["rates"]
    assert printed.out.splitlines()[-1] == (
        "next: fastadv train --options search/best.yaml --output NEW"
    )
    assert main(["train", "--options", "search/best.yaml", "--output", "run", "--quiet"]) == 0
    # The run is the trial again.
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    scores = [r["dev"]["accuracy"] for r in records if r["kind"] == "eval"]
    assert max(scores) == best["score"]


def test_the_score_is_that_of_the_best_step_on_dev(model: Path, corpus: Path) -> None:
    assert main(tune(model, "--trials", "1", "--quiet")) == 0
    arguments = ["train", "--options", "search/best.yaml", "--output", "run", "--quiet"]
    assert main(arguments) == 0
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    steps = [(r["dev"]["accuracy"], -r["step"]) for r in records if r["kind"] == "eval"]
    (trial,) = trials()
    assert (trial["score"], -trial["step"]) == max(steps)


def test_killed_and_resumed_it_makes_the_same_trials(model: Path, corpus: Path) -> None:
    assert main(tune(model, "--quiet", output="unbroken")) == 0
    process = subprocess.Popen(command(*tune(model)), env=environment(), stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not Path("search/trials.jsonl").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert 1 <= len(trials()) < 4
    assert main([*tune(model), "--resume", "--quiet"]) == 0
    assert trials() == trials("unbroken")
    ours, theirs = (Path(f, "best.yaml").read_bytes() for f in ("search", "unbroken"))
    assert ours == theirs


def test_more_trials_go_on_from_fewer(model: Path, corpus: Path) -> None:
    assert main(tune(model, "--trials", "2", "--quiet")) == 0
    first = trials()
    assert main([*tune(model), "--resume", "--quiet"]) == 0
    assert trials()[:2] == first and len(trials()) == 4


def test_a_signal_says_how_to_resume(model: Path, corpus: Path) -> None:
    arguments = tune(model, "--trials", "500")
    process = subprocess.Popen(
        command(*arguments), env=environment(), stderr=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + 120
    while not Path("search/trials.jsonl").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "resume with: fastadv tune" in said.splitlines()[-1] and "--resume" in said


def test_the_baseline_searches_the_tasks_rate_alone(model: Path, corpus: Path) -> None:
    arguments = [part for part in tune(model, "--quiet") if part not in LANGUAGES]
    assert main([*arguments, "--config.adversarial", "false"]) == 0
    assert all(trial["rates"].keys() == {"lr_task"} for trial in trials())


def test_losses_that_are_no_numbers_are_a_trial_without_a_score(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tune(model, "--trials", "1", "--config.lr_task", "1e38")) == 2
    said = capsys.readouterr().err.splitlines()
    assert "no number" in said[0] and "in none of 1 trials" in said[1]
    assert trials()[0]["score"] is None


def test_entities(model: Path, corpus: Path) -> None:
    arguments = tune(model, "--task", "ner", "--trials", "2", "--quiet")
    arguments = ["en.conll" if part == "en.train" else part for part in arguments]
    assert main(arguments) == 0
    assert len(trials()) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials", "0"], "--trials is 0"),
        (["--span", "1"], "span is 1.0"),
        (["--train", "nowhere"], "nowhere"),
        (["--config.selection", "entropy"], "--config.selection is 'entropy'"),
    ],
)
def test_mistakes_leave_no_folder(
    more: list[str],
    said: str,
    model: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused(capsys, tune(model, *more), said, keeps=corpus)


def test_test_files_are_not_taken(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tune(model), "--test", "de=de.txt"]) == 2
    assert "--test" in capsys.readouterr().err


def test_another_search_is_not_resumed(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tune(model, "--trials", "1", "--quiet")) == 0
    refused(capsys, tune(model), "--resume to continue it", keeps=corpus)
    other = [*tune(model, "--span", "3"), "--resume"]
    refused(capsys, other, "span was 10.0 in that search and is 3.0 now", keeps=corpus)


@pytest.mark.parametrize(
    ("recipe", "centre"),
    [
        ([], {"lr_task": 2e-4, "lr_discriminator": 5e-3, "lr_generator": 2e-5}),
        (
            ["--recipe", "paper"],
            {"lr_task": 2e-6, "lr_discriminator": 5e-5, "lr_generator": 2e-8},
        ),
        (["--config.lr_task", "1e-3", "--config.adversarial", "false"], {"lr_task": 1e-3}),
    ],
)
def test_it_searches_around_the_rates_of_the_encoder(
    recipe: list[str],
    centre: dict[str, float],
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recommended._said.clear()
    search = ["tune", "--model", "fastadv-mini", "--train", "en.train", "--dev", "en.train"]
    more = ["--trials", "3", "--startup", "1", "--config.steps", "1", "--config.eval_every", "1"]
    assert main([*search, *LANGUAGES, "--output", "search", *more, *SMALL, *recipe]) == 0
    first, *others = [trial["rates"] for trial in trials()]
    assert first == centre
    for rates in others:
        assert rates != centre
        for name, rate in rates.items():
            assert centre[name] / 10 <= rate <= 10 * centre[name]
    told = [line for line in capsys.readouterr().err.splitlines() if "recommended" in line]
    assert len(told) == (0 if recipe else 1)
