"""All runs of an experiment, some at once, in a folder from which it resumes after any stop."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from fastadv import environment
from fastadv.experiments.plan import ExperimentPlan, RunPlan
from fastadv.experiments.run import (
    RESULT,
    has_records,
    is_finished,
    perform,
    remove_checkpoints,
)
from fastadv.records.progress import notice
from fastadv.run.files import write_atomically
from fastadv.run.stopping import Stopped, StopRequest, stop_request

PLAN, RESULTS, RUNS, LOCK = "plan.json", "results.jsonl", "runs", "lock"
ENVIRONMENT = "environment.txt"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Experiment:
    """The folder of an experiment.

    Holds plan.json, runs/NAME/ for every run, and results.jsonl: the results of the finished runs,
    in the order of the plan. results.jsonl does not depend on how often the experiment was stopped
    or how many runs went at once, but it does depend on the kind of processor and the libraries,
    whose sums round differently. environment.txt lists those with which the experiment was begun
    and resumed.

    Args:
        folder: The folder, made if need be.
        plan: The plan, which must be the folder's own if it has one.

    Raises:
        ValueError: The folder holds an experiment with another plan, or other files.
    """

    def __init__(self, folder: Path, plan: ExperimentPlan) -> None:
        self.folder, self.plan = folder, plan
        written = folder / PLAN
        text = json.dumps(plan.as_json(), indent=1, ensure_ascii=False) + "\n"
        if written.exists():
            _refuse_other(written, plan)
        elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ValueError(
                f"{folder}: found other files, expected a new folder or that of an experiment"
            )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(written, text)

    @classmethod
    def of_folder(cls, folder: Path) -> Experiment:
        """The experiment that a folder holds."""
        return cls(folder, read_plan_of(folder))

    def run_folder(self, run: RunPlan) -> Path:
        return self.folder / RUNS / run.name

    def missing(self) -> list[RunPlan]:
        """Runs that are not finished; runs that were begun come first."""
        runs = [run for run in self.plan.runs() if not is_finished(self.run_folder(run))]
        return sorted(runs, key=lambda run: not has_records(self.run_folder(run)))

    def go(self, jobs: int = 1, quiet: bool = False) -> None:
        """Does the missing runs; results.jsonl grows with each.

        Args:
            jobs: Runs at once: with more than one each is a process of its own, on GPUs in turn.
            quiet: Show no progress.

        Raises:
            ValueError: Another process is at work in the folder, `jobs` is below 1, or data are
                malformed.
            RuntimeError: A run failed; the others were finished.
            Stopped: SIGINT or SIGTERM came; runs in progress wrote checkpoints first.
        """
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}, expected at least 1")
        with _alone(self.folder):
            self.gather()
            missing = self.missing()
            if missing:
                self._note_environment()
            for run in self.plan.runs():
                if run not in missing:
                    # A stop may have come between the result and this.
                    remove_checkpoints(self.run_folder(run))
            if jobs == 1:
                self._one_by_one(missing, quiet)
            else:
                _Processes(self, missing, jobs, quiet).go()

    def gather(self) -> None:
        """Writes results.jsonl from the finished runs."""
        files = [self.run_folder(run) / RESULT for run in self.plan.runs()]
        lines = [file.read_text("utf-8") for file in files if file.exists()]
        write_atomically(self.folder / RESULTS, "".join(lines))

    def _note_environment(self) -> None:
        """Adds this machine and its libraries to environment.txt, if its last entry differs."""
        path = self.folder / ENVIRONMENT
        known = path.read_text("utf-8") if path.exists() else ""
        here = environment.report() + "\n"
        if not known.endswith(here):
            write_atomically(path, f"{known}\n{here}" if known else here)

    def _one_by_one(self, missing: list[RunPlan], quiet: bool) -> None:
        for run in missing:
            if not quiet:
                notice(self.told(run))
            perform(self.plan, run, self.run_folder(run), quiet)
            self.gather()

    def told(self, run: RunPlan) -> str:
        """The line to show when a run begins."""
        runs = self.plan.runs()
        return f"{run.name}: run {runs.index(run) + 1} of {len(runs)}"


class _Processes:
    """Runs at once, each by `python -m fastadv.experiments.worker`."""

    def __init__(
        self, experiment: Experiment, missing: list[RunPlan], jobs: int, quiet: bool
    ) -> None:
        self.experiment, self.waiting, self.jobs, self.quiet = experiment, missing, jobs, quiet
        self.going: dict[int, tuple[RunPlan, subprocess.Popen[bytes]]] = {}
        self.failed: list[str] = []
        self.passed_on = False

    def go(self) -> None:
        with stop_request(self.quiet) as stop:
            try:
                while self.going or (self.waiting and stop.signal is None):
                    self._start(stop)
                    self._wait(stop)
            except BaseException:
                # For example after a second signal, which does not wait for checkpoints.
                for _, process in self.going.values():
                    process.kill()
                raise
        if stop.signal is not None:
            raise Stopped(stop.signal, None, self.experiment.folder)
        if self.failed:
            raise RuntimeError(
                f"{self.experiment.folder}: {', '.join(self.failed)} failed, see log.txt there; "
                "the others are finished"
            )

    def _start(self, stop: StopRequest) -> None:
        for slot in range(self.jobs):
            if slot in self.going or not self.waiting or stop.signal is not None:
                continue
            run = self.waiting.pop(0)
            folder = self.experiment.run_folder(run)
            folder.mkdir(parents=True, exist_ok=True)
            if not self.quiet:
                notice(self.experiment.told(run))
            with (folder / "log.txt").open("ab") as log:
                # Its standard input ends when this process ends, in whatever way: see the worker.
                process = subprocess.Popen(
                    [sys.executable, "-m", "fastadv.experiments.worker",
                     str(self.experiment.folder), run.name],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._variables(slot),
                    start_new_session=True,
                )  # fmt: skip
            self.going[slot] = run, process

    def _variables(self, slot: int) -> dict[str, str]:
        variables = dict(os.environ)
        threads = self.experiment.plan.threads or max(1, (os.cpu_count() or 1) // self.jobs)
        variables |= {name: str(threads) for name in THREADS}
        if (count := torch.cuda.device_count()) > 1:
            visible = variables.get("CUDA_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(k) for k in range(count)]
            variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        return variables

    def _wait(self, stop: StopRequest) -> None:
        """Waits until a run ends; a signal that comes before that is passed on to all."""
        while True:
            for slot, (run, process) in list(self.going.items()):
                with suppress(subprocess.TimeoutExpired):
                    if process.wait(timeout=0.05) and stop.signal is None:
                        self.failed.append(run.name)
                    if process.stdin is not None:
                        process.stdin.close()
                    del self.going[slot]
                    self.experiment.gather()
                    return
            # Only once over all calls: a second signal tells a worker not to save anything.
            if stop.signal is not None and not self.passed_on:
                self.passed_on = True
                for _, process in self.going.values():
                    process.send_signal(signal.SIGTERM)


def read_plan_of(folder: Path) -> ExperimentPlan:
    """The plan that a folder holds.

    Raises:
        ValueError: It holds none.
    """
    try:
        return ExperimentPlan.of_json(json.loads((folder / PLAN).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / PLAN}: expected the plan of an experiment: {error}") from error


def _refuse_other(written: Path, plan: ExperimentPlan) -> None:
    found, wanted = _deciding(read_plan_of(written.parent)), _deciding(plan)
    changed = sorted(n for n in wanted if found.get(n) != wanted[n])
    if changed:
        raise ValueError(
            f"{written}: the experiment there differs in {', '.join(changed)}, expected the same "
            "to resume it, or a new folder"
        )


def _deciding(plan: ExperimentPlan) -> dict[str, Any]:
    """What decides the results: numbers, and not the recipe that they are from."""
    found = dataclasses.replace(plan, config=plan.resolved()).as_json()
    del found["config"]["recipe"]
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second process from the same runs; the system frees the lock when this one ends."""
    import fcntl

    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{folder}: another process is at work in it, expected none"
            ) from error
        yield
