"""The pretraining loop: steps, held-out losses, checkpoints and a record of what happened."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from fastadv.batches.prefetch import Prefetch
from fastadv.device import is_gpu
from fastadv.model_io.loading import load_tokenizer
from fastadv.pretraining.config import FIELDS, PretrainConfig
from fastadv.pretraining.corpus import Corpus
from fastadv.pretraining.pretrainer import Batches, Pretrainer
from fastadv.records.metrics_file import MetricsFile
from fastadv.records.progress import notice
from fastadv.run.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from fastadv.run.files import replace_folder
from fastadv.run.folder import CHECKPOINT, LAST, METRICS
from fastadv.run.loss_meter import LossMeter
from fastadv.run.state import restore, state_of
from fastadv.run.stopping import Stopped, stop_request

CORPUS, TOKENIZER, SETTINGS = "corpus.npz", "tokenizer", "pretrain.json"


def write_settings(folder: Path, config: PretrainConfig) -> None:
    """Writes the settings of the run in `folder`."""
    text = json.dumps(asdict(config), indent=2) + "\n"
    temporary = folder / f".{SETTINGS}.part"
    temporary.write_text(text, "utf-8")
    temporary.replace(folder / SETTINGS)


def read_settings(folder: Path) -> PretrainConfig:
    """Reads what `write_settings` wrote.

    Raises:
        ValueError: The file is missing or not of this form.
    """
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected the settings of a pretraining run: {error}") from error
    unknown = sorted(set(found) - set(FIELDS)) if isinstance(found, dict) else ["no object"]
    if unknown:
        raise ValueError(f"{path}: found {unknown[0]}, expected settings of a pretraining run")
    return PretrainConfig(**found)


class PretrainingRun:
    """A run in its folder.

    Args:
        folder: Holds corpus.npz, tokenizer/ and pretrain.json; gets metrics.jsonl, the checkpoint
            and the one before it, and last/, the model.
        quiet: No progress.
        device: As in `Pretrainer`.
        config: Instead of the one in the folder.

    Raises:
        ValueError: Something in the folder is missing or damaged, or belongs to another run.
    """

    def __init__(
        self,
        folder: Path,
        quiet: bool = False,
        device: str | None = None,
        config: PretrainConfig | None = None,
    ) -> None:
        self.folder, self.quiet = folder, quiet
        corpus = Corpus.load(folder / CORPUS)
        tokenizer = load_tokenizer(folder / TOKENIZER)
        self.pretrainer = Pretrainer(corpus, tokenizer, config or read_settings(folder), device)
        self.config, self.trainer = self.pretrainer.config, self.pretrainer.trainer
        self.meter = LossMeter(self.pretrainer.device, self.config.nonfinite_gradients == "skip")
        self._clock = time.perf_counter()
        self._begun = 0
        self._open()

    def go(self, seconds: float | None = None) -> bool:
        """Takes steps until the last, or until so many seconds are over.

        Returns:
            Whether the run is done; if not, a checkpoint was written and the same call goes on.

        Raises:
            FloatingPointError: A loss or gradient is not finite; the last checkpoint is kept.
            OSError: Something cannot be written; what was there before is untouched.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        end = None if seconds is None else time.perf_counter() + seconds
        trainer, steps = self.trainer, self.config.steps
        self._clock, self._begun = time.perf_counter(), trainer.step_count
        with stop_request(self.quiet) as stop, self._batches() as prepared:
            for batches in prepared if trainer.step_count < steps else ():
                self.meter.add(self.pretrainer.step(batches), *batches)
                self._after_step()
                if trainer.step_count == steps:
                    break
                late = end is not None and time.perf_counter() >= end
                if stop.signal is not None or late:
                    self._checkpoint()
                    if stop.signal is not None:
                        raise Stopped(stop.signal, trainer.step_count, self.folder)
                    return False
        return True

    @contextmanager
    def _batches(self) -> Iterator[Iterable[Batches]]:
        """Batches of the steps to come, on the device; made on a thread where that has one."""
        pretrainer, steps = self.pretrainer, count(self.trainer.step_count)
        if not is_gpu(pretrainer.device):
            yield (pretrainer.prepare(step) for step in steps)
            return

        def pinned() -> Batches:
            found = pretrainer.prepare(next(steps))
            return tuple(b and b.pin_memory() for b in found)  # type: ignore[return-value]

        def moved(batches: Batches) -> Batches:
            device = pretrainer.device
            return tuple(  # type: ignore[return-value]
                b and b.to(device, non_blocking=True) for b in batches
            )

        with Prefetch(pinned) as prepared:
            yield map(moved, prepared)

    def _after_step(self) -> None:
        step, config = self.trainer.step_count, self.config
        last = step == config.steps
        if last or step % config.log_every == 0:
            self.trainer.check()
            means = self.meter.take()
            if self.trainer.skipped:
                means["skipped_updates"] = self.trainer.skipped
            self.metrics.write({"kind": "train", "step": step, **means})
            self._say(step, means)
        if last or (config.eval_every and step % config.eval_every == 0):
            with self.meter.paused():
                self._evaluate(step)
        if last:
            with self.meter.paused():
                replace_folder(self.folder / LAST, self.pretrainer.save_pretrained)
        if last or (config.checkpoint_every and step % config.checkpoint_every == 0):
            with self.meter.paused():
                self._checkpoint()

    def _evaluate(self, step: int) -> None:
        losses = self.pretrainer.held_out_losses()
        mean = sum(losses.values()) / len(losses)
        self.metrics.write({"kind": "eval", "step": step, "mean": mean, "held_out": losses})
        shown = "  ".join(f"{language} {loss:.3f}" for language, loss in losses.items())
        self._tell(f"step {step}: held-out loss {mean:.3f}  {shown}")

    def _say(self, step: int, means: dict[str, Any]) -> None:
        done = step - self._begun
        left = (time.perf_counter() - self._clock) / done * (self.config.steps - step)
        parts = [f"loss {means['loss_task']:.3f}"]
        if "loss_discriminator" in means:
            parts.append(f"L_D {means['loss_discriminator']:.3f}")
            parts.append(f"L_G {means['loss_generator']:.3f}")
            parts.append(f"D {means['discriminator_accuracy']:.0%}")
        parts.append(f"{means['tokens_per_second']:,.0f} tokens/s")
        parts.append(f"{left / 60:.0f} min left")
        self._tell(f"step {step}/{self.config.steps}: {'  '.join(parts)}")

    def _tell(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def _open(self) -> None:
        found = find_checkpoint(self.folder / CHECKPOINT)
        length = 0
        if found is not None:
            path, why_not_newest = found
            length = self._restore(path)
            if why_not_newest:
                notice(why_not_newest)
        self.metrics = MetricsFile(self.folder / METRICS, length)

    def _restore(self, path: Path) -> int:
        tensors, state = load_checkpoint(path)
        restore(self.pretrainer, tensors, state, path)
        run, fingerprint = state["run"], self.pretrainer.corpus.fingerprint()
        if run["data"] != fingerprint:
            raise ValueError(f"{path}: the run was over another {CORPUS}, expected the same")
        self.meter.sums.copy_(tensors["run.loss_sums"])
        return int(run["metrics_length"])

    def _checkpoint(self) -> None:
        """Raises FloatingPointError where losses or weights are no longer finite."""
        self.trainer.check()
        self.meter.means()
        tensors, state = state_of(self.pretrainer)
        run = {
            "data": self.pretrainer.corpus.fingerprint(),
            "metrics_length": self.metrics.length,
        }
        save_checkpoint(
            self.folder / CHECKPOINT,
            tensors | {"run.loss_sums": self.meter.sums},
            state | {"run": run},
        )
