"""Experiments from their files to results.jsonl, in one go, stopped, and several runs at once."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastadv import AdversarialFinetuner, environment
from fastadv.experiments.experiment import (
    ENVIRONMENT,
    PLAN,
    RESULTS,
    RUNS,
    Experiment,
    _Processes,
)
from fastadv.experiments.plan_file import read_plan
from fastadv.run.stopping import Stopped

NAMES = [
    *("baseline-0", "baseline-3"),
    *("adversarial-de-0", "adversarial-de-3", "adversarial-ja-0", "adversarial-ja-3"),
]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RESULTS).read_text("utf-8").splitlines()]


def command(written: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    fixed = [sys.executable, "-m", "fastadv", "experiment", str(written), "--output", str(folder)]
    return subprocess.Popen(
        [*fixed, *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def records(folder: Path) -> int:
    """Records written so far in all runs together."""
    files = (folder / RUNS).glob("*/metrics.jsonl")
    return sum(len(file.read_bytes().splitlines()) for file in files)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not true() and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_every_run_is_there_in_the_order_of_the_plan(unbroken: Experiment) -> None:
    found = lines(unbroken.folder)
    assert [line["run"] for line in found] == NAMES
    for line in found:
        assert [e["step"] for e in line["evaluations"]] == [0, 2, 4]
        assert line["languages"] == (
            ["de", "ja"] if line["condition"] == "baseline" else [line["run"].split("-")[1]]
        )
        assert line["averaged"]["evaluations"] == 2
        # Six documents of each class: the first one is named, a quarter of English is right.
        assert line["majority"]["label"] == "CCAT"
        assert line["majority"]["test"].keys() == line["averaged"]["test"].keys()
        assert line["majority"]["dev"]["accuracy"] == 0.25
        for e in line["evaluations"]:
            source = {"en"} if line["condition"] == "baseline" else set()
            assert e["test"].keys() == source | {*line["languages"]}
            for language, signals in e["observed"].items():
                assert ("discriminator_accuracy" in signals) == (line["condition"] == "adversarial")
                assert ("alignment" in signals) == (language == "de")


def test_nothing_in_results_depends_on_time(unbroken: Experiment) -> None:
    text = (unbroken.folder / RESULTS).read_text()
    assert "per_second" not in text and "seconds" not in text


def test_a_run_is_what_fit_alone_would_have_done(unbroken: Experiment, written: Path) -> None:
    plan = read_plan(written)
    run = plan.runs()[2]
    assert run.name == "adversarial-de-0"
    labels = ["CCAT", "ECAT", "GCAT", "MCAT"]
    tuner = AdversarialFinetuner(plan.model, plan.task, labels, plan.settings(run))
    german = plan.target("de")
    history = tuner.fit(
        plan.source.train,
        {"de": german.unlabeled},
        dev=plan.source.dev,
        test={"de": german.test},
        quiet=True,
    )
    line = next(line for line in lines(unbroken.folder) if line["run"] == run.name)
    evaluations = [
        {n: v for n, v in e.items() if n in ("step", "dev", "test")} for e in line["evaluations"]
    ]
    assert evaluations == [
        {n: v for n, v in e.items() if n in ("step", "dev", "test")} for e in history.evaluations()
    ]


def test_the_mean_of_weights_is_of_the_second_half(unbroken: Experiment, written: Path) -> None:
    plan = read_plan(written)
    run = plan.runs()[0]
    scores = {}
    labels = ["CCAT", "ECAT", "GCAT", "MCAT"]
    tests = {"en": plan.source.test, "ja": plan.target("ja").test}
    weights = []
    for steps in (2, 4):
        config = dataclasses.replace(plan.settings(run), steps=steps)
        tuner = AdversarialFinetuner(plan.model, plan.task, labels, config)
        tuner.fit(plan.source.train, quiet=True)
        weights.append({n: p.detach().clone() for n, p in tuner.model.named_parameters()})
    means = {name: (weights[0][name] + weights[1][name]) / 2 for name in weights[0]}
    tuner.model.load_state_dict(means, strict=False)
    scores = tuner.evaluate(tests)
    averaged = lines(unbroken.folder)[0]["averaged"]["test"]
    assert {name: averaged[name] for name in tests} == scores


def test_killed_at_any_point_it_ends_with_the_same_results(
    unbroken: Experiment, written: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    rng = random.Random(5)
    kills = 0
    for _ in range(5):
        process = command(written, folder)
        goal = records(folder) + rng.randrange(1, 9)
        wait_until(lambda goal=goal: records(folder) >= goal, process)
        time.sleep(rng.random() * 0.05)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills == 5
    process = command(written, folder)
    assert process.wait(timeout=180) == 0, process.stderr and process.stderr.read()
    assert (folder / RESULTS).read_bytes() == (unbroken.folder / RESULTS).read_bytes()
    assert not [*folder.rglob("*.safetensors")]


def test_several_at_once_give_the_same_results_and_leave_nobody_behind(
    unbroken: Experiment, written: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    process = command(written, folder, "--jobs", "2")
    wait_until(lambda: records(folder) >= 3, process)
    process.kill()
    process.wait()
    # Workers end with the process that started them.
    time.sleep(0.5)
    before = records(folder)
    time.sleep(1)
    assert records(folder) == before
    process = command(written, folder, "--jobs", "2")
    assert process.wait(timeout=300) == 0, process.stderr and process.stderr.read()
    assert (folder / RESULTS).read_bytes() == (unbroken.folder / RESULTS).read_bytes()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_signal_stops_it_with_checkpoints_and_the_way_on(
    written: Path, tmp_path: Path, jobs: str
) -> None:
    # So long that no run ends before the signal reaches it.
    plan = yaml.safe_load(written.read_text("utf-8"))
    plan["config"] |= {"steps": 2000, "eval_every": 0}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(plan), "utf-8")
    folder = tmp_path / "out"
    more = ["--jobs", jobs, "--data", str(written.parent)]
    process = command(tmp_path / "long.yaml", folder, *more)
    wait_until(lambda: records(folder) >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    last = said.splitlines()[-1]
    assert "resume with: fastadv experiment" in last and "--jobs" in last
    trained = {
        file.parent
        for file in folder.rglob("metrics.jsonl")
        if '"kind": "train"' in file.read_text("utf-8")
    }
    assert trained
    assert {file.parent for file in folder.rglob("checkpoint.safetensors")} >= trained
    assert not [*folder.rglob("result.json")]


class Worker:
    """A process that raises a signal in the one that waits, and ends `patience` calls of `wait`
    after it was told to.
    """

    def __init__(self, patience: int, raises: int = 0) -> None:
        self.patience, self.raises, self.raised = patience, raises, 0
        self.signals: list[int] = []
        self.killed, self.stdin = False, None

    def wait(self, timeout: float) -> int:
        # Each after the one before was passed on.
        if self.raises > self.raised == len(self.signals):
            self.raised += 1
            signal.raise_signal(signal.SIGINT)
        self.patience -= bool(self.signals)
        if self.patience < 0:
            return 143
        raise subprocess.TimeoutExpired("worker", timeout)

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def kill(self) -> None:
        self.killed = True


def at_work(experiment: Experiment, *workers: Worker) -> _Processes:
    processes = _Processes(experiment, [], jobs=len(workers), quiet=True)
    going: dict[int, Any] = {k: (experiment.plan.runs()[k], w) for k, w in enumerate(workers)}
    processes.going = going
    return processes


def test_a_signal_is_passed_on_once_however_the_workers_end(unbroken: Experiment) -> None:
    """To a worker a second one means that it must not wait for its checkpoint."""
    workers = Worker(1, raises=1), Worker(5)
    processes = at_work(unbroken, *workers)
    with pytest.raises(Stopped, match=r"^stopped, a checkpoint is in"):
        processes.go()
    assert [worker.signals for worker in workers] == [[signal.SIGTERM]] * 2
    assert not any(worker.killed for worker in workers)
    assert not processes.going and not processes.failed


def test_a_second_signal_ends_the_workers(unbroken: Experiment) -> None:
    worker = Worker(10, raises=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        at_work(unbroken, worker).go()
    assert not isinstance(caught.value, Stopped)
    assert worker.killed


def test_every_machine_it_ran_on_is_told(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment(tmp_path / "out", read_plan(written))
    monkeypatch.setattr(experiment, "_one_by_one", lambda missing, quiet: None)
    for machine in ("one", "one", "another", "one"):
        monkeypatch.setattr(environment, "report", lambda machine=machine: machine)
        experiment.go()
    assert (experiment.folder / ENVIRONMENT).read_text() == "one\n\nanother\n\none\n"
    monkeypatch.setattr(environment, "report", lambda: "a third")
    monkeypatch.setattr(experiment, "missing", list)
    experiment.go()
    assert "third" not in (experiment.folder / ENVIRONMENT).read_text()


def test_a_second_process_is_refused(unbroken: Experiment) -> None:
    import fcntl

    with (unbroken.folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process"):
            unbroken.go()


def test_another_plan_is_refused_and_changes_nothing(unbroken: Experiment, tmp_path: Path) -> None:
    before = (unbroken.folder / PLAN).read_bytes()
    other = dataclasses.replace(unbroken.plan, seeds=(0, 1))
    with pytest.raises(ValueError, match=r"plan\.json: the experiment there differs in seeds"):
        Experiment(unbroken.folder, other)
    assert (unbroken.folder / PLAN).read_bytes() == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="found other files"):
        Experiment(tmp_path, unbroken.plan)


def test_a_run_that_fails_is_named_and_the_others_are_finished(
    written: Path, tmp_path: Path
) -> None:
    plan = read_plan(written)
    # Too large a rate for numbers to stay finite in the runs that have a generator.
    config = dataclasses.replace(plan.config, lr_generator=1e30)
    plan = dataclasses.replace(plan, config=config, seeds=(0,)).narrowed(["de"], [])
    experiment = Experiment(tmp_path / "out", plan)
    with pytest.raises(RuntimeError, match="adversarial-de-0 failed"):
        experiment.go(jobs=2, quiet=True)
    assert [line["run"] for line in lines(experiment.folder)] == ["baseline-0"]
    assert "finite" in (experiment.folder / RUNS / "adversarial-de-0" / "log.txt").read_text()
