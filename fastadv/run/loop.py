"""The loop that every run goes through: steps, records, evaluations, checkpoints, stops."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fastadv.batches.prefetch import Prefetch
from fastadv.records.metrics_file import MetricsFile
from fastadv.records.progress import notice
from fastadv.run.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from fastadv.run.files import replace_folder
from fastadv.run.folder import CHECKPOINT, METRICS
from fastadv.run.loss_meter import LossMeter
from fastadv.run.state import restore, state_of
from fastadv.run.stopping import Stopped, StopRequest
from fastadv.run.trained import Trained

LOSS_SUMS = "run.loss_sums"

Prepared = TypeVar("Prepared")


class Loop(ABC, Generic[Prepared]):
    """A run: what is the same in finetuning and in pretraining.

    Whatever a run writes, it writes through `record`, `checkpoint` and `export`; best/ alone is
    `BestFolder`'s.

    Args:
        trained: What is trained.
        folder: Gets metrics.jsonl, the checkpoint and the one before it, and models; None for a
            run that leaves nothing on disk.
        ahead: Whether batches are prepared on a thread of their own.

    Attributes:
        config, trainer: Those of `trained`.
        meter: Losses since the last record.
        metrics: The records.
        saved_step: The step of the newest checkpoint of this run, or None.
    """

    def __init__(self, trained: Trained, folder: Path | None, ahead: bool) -> None:
        self.trained, self.folder, self._ahead = trained, folder, ahead
        self.config, self.trainer = trained.config, trained.trainer
        self.meter = LossMeter(trained.device, self.config.nonfinite_gradients == "skip")
        self.metrics = MetricsFile(None)
        self.saved_step: int | None = None
        # Bytes of metrics.jsonl that the checkpoint vouches for.
        self._length = 0

    @abstractmethod
    def prepare(self, step: int) -> Prepared:
        """What step number `step`, from 0, reads; called in the order of the steps."""

    @abstractmethod
    def take(self, prepared: Prepared) -> None:
        """One step, whose losses go to `meter`."""

    @abstractmethod
    def show(self, means: dict[str, Any]) -> None:
        """Tells whoever watches what was recorded of training."""

    @abstractmethod
    def evaluate(self) -> None:
        """Measures the model as it is now, and records it."""

    @abstractmethod
    def data_fingerprint(self) -> Any:
        """What tells the run's data from others, as JSON gives it back."""

    @abstractmethod
    def other_data(self, saved: Any, ours: Any) -> str:
        """What a run over `saved` that is resumed over `ours` was over, in words."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds of this kind of run alone: tensors, and state in JSON."""
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes over what `state` gave, and more may be in both."""

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trainer.step_count

    def run_steps(self, stop: StopRequest, until: float | None = None) -> bool:
        """Takes steps to the last, or until a time of `time.perf_counter`.

        Returns:
            Whether the last step was taken; if not, a checkpoint was written.

        Raises:
            FloatingPointError: A loss or gradient is not finite; the last checkpoint is kept.
            OSError: Something cannot be written; what was there before is untouched.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        with self._prepared() as prepared:
            for one in prepared if self.step < self.config.steps else ():
                self.take(one)
                self._after_step()
                if self.step == self.config.steps:
                    break
                if stop.signal is not None:
                    self.checkpoint()
                    raise Stopped(stop.signal, self.step, self.folder)
                if until is not None and time.perf_counter() >= until:
                    self.checkpoint()
                    return False
        return True

    @contextmanager
    def _prepared(self) -> Iterator[Iterable[Prepared]]:
        """What every step to come reads."""
        numbers = count(self.step)
        if not self._ahead:
            yield (self.prepare(number) for number in numbers)
            return
        with Prefetch(lambda: self.prepare(next(numbers))) as prepared:
            yield prepared

    def _after_step(self) -> None:
        config, last = self.config, self.step == self.config.steps

        def due(every: int) -> bool:
            return bool(every) and self.step % every == 0

        if last or due(config.log_every):
            self.trainer.check()
            means: dict[str, Any] = self.meter.take()
            if self.trainer.skipped:
                means["skipped_updates"] = self.trainer.skipped
            self.record({"kind": "train", "step": self.step, **means})
            self.show(means)
        if last or due(config.eval_every):
            with self.meter.paused():
                self.evaluate()
        # The last checkpoint comes with the models.
        if not last and due(config.checkpoint_every):
            with self.meter.paused():
                self.checkpoint()

    def record(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        self.metrics.write(record)

    def export(self, name: str, write: Callable[[Path], None]) -> None:
        """Puts a model's folder in place whole, in the folder of the run if it has one."""
        if self.folder is not None:
            replace_folder(self.folder / name, write)

    def checkpoint(self) -> None:
        """Writes a checkpoint, if the run has a folder.

        Raises:
            FloatingPointError: A loss or a weight is not finite.
            OSError: It cannot be written; those that were there are untouched.
        """
        if self.folder is None:
            return
        self.check_finite()
        tensors, state = state_of(self.trained)
        own_tensors, own_state = self.state()
        run = {
            "data": self.data_fingerprint(),
            "metrics_length": self.metrics.length,
            **own_state,
        }
        tensors |= {LOSS_SUMS: self.meter.sums, **own_tensors}
        save_checkpoint(self.folder / CHECKPOINT, tensors, state | {"run": run})
        self.saved_step = self.step

    def restore(self) -> None:
        """Takes over the newest intact checkpoint in the folder, if there is one.

        Raises:
            ValueError: There are checkpoints and none is intact, or the run was another: over other
                data, of another task, labels or settings.
        """
        if self.folder is None:
            return
        if (found := find_checkpoint(self.folder / CHECKPOINT)) is not None:
            path, why_not_newest = found
            tensors, state = load_checkpoint(path)
            restore(self.trained, tensors, state, path)
            saved, ours = state["run"]["data"], self.data_fingerprint()
            if saved != ours:
                raise ValueError(
                    f"{path}: the run was over {self.other_data(saved, ours)}, expected the same "
                    "to resume"
                )
            self.meter.sums.copy_(tensors[LOSS_SUMS])
            self.load_state(tensors, state["run"])
            self.saved_step, self._length = self.step, int(state["run"]["metrics_length"])
            if why_not_newest:
                notice(why_not_newest)

    def open_metrics(self) -> None:
        """Opens metrics.jsonl, after `restore`; what follows the checkpoint is cut off."""
        if self.folder is not None:
            self.metrics = MetricsFile(self.folder / METRICS, self._length)

    def check_finite(self) -> None:
        """Weights that are no longer numbers must not replace saved ones that are.

        Raises:
            FloatingPointError: A loss or a weight is not finite.
        """
        self.trainer.check()
        self.meter.means()
        for name, parameter in self.trained.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(
                    f"{name} holds a value that is not finite, expected numbers: lower the "
                    "learning rates or use precision fp32"
                )
