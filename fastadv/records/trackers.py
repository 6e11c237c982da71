"""Experiment trackers: the records of `metrics.jsonl`, sent on to where people look at runs.

The series have the same names in all of them, over the training step:

    train/loss_task, train/loss_discriminator, train/loss_generator,
    train/discriminator_accuracy, train/discriminator_texts (that it is the share of),
    train/examples_per_second, train/tokens_per_second
    dev/accuracy, dev/macro_f1                    NER: dev/precision, dev/recall, dev/f1
    test/LANGUAGE/accuracy, ...                   as dev, by the name of the test set
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

PROJECT = "fastadv"
"""The project of wandb and trackio, where $WANDB_PROJECT or $TRACKIO_PROJECT names no other."""

KINDS = ("train", "eval")


class Tracker(Protocol):
    """Where the records of one run go."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Sends one record of metrics.jsonl; kinds other than train and eval are ignored."""

    def close(self) -> None:
        """Hands over what is still waiting; nothing may be logged afterwards."""


def open_tracker(
    name: str, run_dir: Path, run_name: str, config: Mapping[str, Any], resume_step: int
) -> Tracker:
    """The tracker of that name, for a new or a resumed run.

    A resumed run logs the steps after its checkpoint again. They still appear only once:
    TensorBoard is told to forget what came after `resume_step`; wandb and trackio, which only
    append, are not sent what they already have (`tracker-NAME.json` in `run_dir` says what that is,
    and the id of the run). A tracker that is new to a resumed run begins at `resume_step`.

    Args:
        name: "tensorboard" writes to `run_dir`/tensorboard; "wandb" as its environment says
            (WANDB_MODE=offline keeps everything in `run_dir`/wandb); "trackio" to its own local
            database (TRACKIO_DIR), or where its environment says.
        run_dir: The folder of the run.
        run_name: What the tracker calls the run.
        config: Settings to keep with the run.
        resume_step: Steps that the checkpoint vouches for; 0 for a new run.

    Raises:
        ValueError: There is no tracker of that name, or its file in `run_dir` is damaged.
        ImportError: Its package is not installed.
        RuntimeError: Wandb refuses to begin, for want of a login for instance.
    """
    if name not in TRACKERS:
        raise ValueError(f"tracker: found {name!r}, expected one of {', '.join(TRACKERS)}")
    return TRACKERS[name](run_dir, run_name, config, resume_step)


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by the names of their series."""
    if record["kind"] == "train":
        return {f"train/{k}": v for k, v in record.items() if k not in ("kind", "step")}
    found = {f"dev/{metric}": value for metric, value in record.get("dev", {}).items()}
    for name, scores in record.get("test", {}).items():
        found |= {f"test/{name}/{metric}": value for metric, value in scores.items()}
    return found


class TensorBoard:
    """Event files in `run_dir`/tensorboard."""

    def __init__(
        self, run_dir: Path, run_name: str, config: Mapping[str, Any], resume_step: int
    ) -> None:
        writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter
        # Everything from purge_step on is forgotten; from 0 on where no checkpoint vouches.
        purge_step = resume_step + 1 if resume_step else 0
        self._writer = writer(str(run_dir / "tensorboard"), purge_step=purge_step)
        if not resume_step:
            text = json.dumps({"run": run_name, **config}, indent=2, default=str)
            self._writer.add_text("config", f"```json\n{text}\n```", 0)

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])
        # A checkpoint may follow at once, and a resumed run never writes these again.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, its x axis the training step; every record is a row."""

    def __init__(
        self, run_dir: Path, run_name: str, config: Mapping[str, Any], resume_step: int
    ) -> None:
        wandb = _package("wandb", "wandb")
        self._sent = _Sent(run_dir / "tracker-wandb.json", resume_step)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=str(run_dir),
                id=self._sent.id,
                name=run_name,
                config=dict(config),
                allow_val_change=True,
                resume="allow",
                reinit="create_new",
                # The progress bar and the tables are for the terminal, not for a log.
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            why = str(error).strip().splitlines()[0]
            raise RuntimeError(
                f"wandb: {why}, expected a login (wandb login) or WANDB_MODE=offline"
            ) from error
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, record: Mapping[str, Any]) -> None:
        if self._sent.is_new(record):
            # wandb's own step numbers the rows across resumes, also of offline parts: if it were
            # not set, it would begin at 0 again in each offline part.
            row = {"step": record["step"], **scalars(record)}
            self._run.log(row, step=self._sent.count - 1, commit=True)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, named RUN_NAME-ID: trackio tells runs apart by their names alone."""

    def __init__(
        self, run_dir: Path, run_name: str, config: Mapping[str, Any], resume_step: int
    ) -> None:
        self._trackio = _package("trackio", "trackio")
        self._sent = _Sent(run_dir / "tracker-trackio.json", resume_step)
        # Its messages would mix with results on standard output.
        with redirect_stdout(sys.stderr):
            self._run = self._trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=f"{run_name}-{self._sent.id}",
                config=dict(config),
                resume="allow",
                embed=False,
            )

    def log(self, record: Mapping[str, Any]) -> None:
        if self._sent.is_new(record):
            self._run.log(scalars(record), step=record["step"])

    def close(self) -> None:
        # Not the run's own finish: trackio would finish again, with output, as the process exits.
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


class _Sent:
    """What an append-only tracker was sent, kept in a file so that a resumed run knows.

    A record is noted before it is sent: a machine that dies between the two leaves a gap of one
    record, never a doubled one.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        self.id = uuid.uuid4().hex[:8]
        self.count = 0
        self._last = (-1, 0)
        if resume_step and path.exists():
            try:
                state = json.loads(path.read_text("utf-8"))
                self.id, self.count = str(state["id"]), int(state["count"])
                self._last = int(state["step"]), int(state["kind"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}: found no id and step of a tracked run, expected them; "
                    "without the file the tracker begins a new run"
                ) from error
        self._save()

    def is_new(self, record: Mapping[str, Any]) -> bool:
        """Whether the record is to be sent now; also notes that it was."""
        if record["kind"] not in KINDS:
            return False
        # At one step the training record is written before the evaluation.
        here = (int(record["step"]), KINDS.index(record["kind"]))
        if here <= self._last:
            return False
        self._last = here
        self.count += 1
        self._save()
        return True

    def _save(self) -> None:
        step, kind = self._last
        state = {"id": self.id, "count": self.count, "step": step, "kind": kind}
        temporary = self._path.with_name(self._path.name + ".part")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(state), "utf-8")
        temporary.replace(self._path)


def _package(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the tracker {name} needs the package {name}, expected it to be installed: "
            f"pip install {name}"
        ) from error
