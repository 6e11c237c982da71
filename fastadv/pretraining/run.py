"""A pretraining run in its folder: steps, held-out losses, and the model at the end."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastadv.device import is_gpu
from fastadv.model_io.loading import load_tokenizer
from fastadv.pretraining.config import FIELDS, PretrainConfig
from fastadv.pretraining.corpus import Corpus
from fastadv.pretraining.pretrainer import Batches, Pretrainer
from fastadv.run.files import write_atomically
from fastadv.run.folder import LAST
from fastadv.run.loop import Loop
from fastadv.run.stopping import stop_request

CORPUS, TOKENIZER, SETTINGS = "corpus.npz", "tokenizer", "pretrain.json"


def write_settings(folder: Path, config: PretrainConfig) -> None:
    """Writes the settings of the run in `folder`."""
    write_atomically(folder / SETTINGS, json.dumps(asdict(config), indent=2) + "\n")


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


class PretrainingRun(Loop[Batches]):
    """A run in its folder.

    Args:
        folder: Holds corpus.npz, tokenizer/ and pretrain.json; gets metrics.jsonl, the checkpoint
            and the one before it, and last/, the model.
        quiet: No progress.
        device: As in `Pretrainer`.
        config: Settings to use instead of the ones in the folder.

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
        corpus = Corpus.load(folder / CORPUS)
        tokenizer = load_tokenizer(folder / TOKENIZER)
        self.pretrainer = Pretrainer(corpus, tokenizer, config or read_settings(folder), device)
        self._gpu = is_gpu(self.pretrainer.device)
        super().__init__(self.pretrainer, folder, ahead=self._gpu)
        self.quiet = quiet
        self._clock, self._begun = time.perf_counter(), 0
        self.restore()
        self.open_metrics()

    def go(self, seconds: float | None = None) -> bool:
        """Takes steps until the last one, or until so many seconds are over.

        Returns:
            Whether the run is done; if not, a checkpoint was written and the same call resumes it.

        Raises:
            FloatingPointError: A loss or gradient is not finite; the last checkpoint is kept.
            OSError: Something cannot be written; what was there before is untouched.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        if self.step >= self.config.steps:
            return True
        self._clock, self._begun = time.perf_counter(), self.step
        end = None if seconds is None else self._clock + seconds
        with stop_request(self.quiet) as stop:
            done = self.run_steps(stop, end)
            if done:
                self.export(LAST, self.pretrainer.save_pretrained)
                self.checkpoint()
        return done

    def prepare(self, step: int) -> Batches:
        """The batches of a step, on the host; for a GPU in page-locked memory."""
        found = self.pretrainer.prepare(step)
        if not self._gpu:
            return found
        return tuple(b and b.pin_memory() for b in found)  # type: ignore[return-value]

    def take(self, prepared: Batches) -> None:
        """One update of each phase."""
        if self._gpu:
            device = self.pretrainer.device
            prepared = tuple(  # type: ignore[assignment]
                b and b.to(device, non_blocking=True) for b in prepared
            )
        self.meter.add(self.pretrainer.step(prepared), *prepared)

    def evaluate(self) -> None:
        """The loss on held-out text, by language."""
        losses = self.pretrainer.held_out_losses()
        mean = sum(losses.values()) / len(losses)
        self.record({"kind": "eval", "step": self.step, "mean": mean, "held_out": losses})
        shown = "  ".join(f"{language} {loss:.3f}" for language, loss in losses.items())
        self._tell(f"step {self.step}: held-out loss {mean:.3f}  {shown}")

    def show(self, means: dict[str, Any]) -> None:
        """Shows a line with losses and speed."""
        step, steps = self.step, self.config.steps
        left = (time.perf_counter() - self._clock) / (step - self._begun) * (steps - step)
        parts = [f"loss {means['loss_task']:.3f}"]
        if "loss_discriminator" in means:
            parts.append(f"L_D {means['loss_discriminator']:.3f}")
            parts.append(f"L_G {means['loss_generator']:.3f}")
            parts.append(f"D {means['discriminator_accuracy']:.0%}")
        parts.append(f"{means['tokens_per_second']:,.0f} tokens/s")
        parts.append(f"{left / 60:.0f} min left")
        self._tell(f"step {step}/{steps}: {'  '.join(parts)}")

    def data_fingerprint(self) -> dict[str, list[int]]:
        """Sizes and checksums of the corpus."""
        return self.pretrainer.corpus.fingerprint()

    def other_data(self, saved: Any, ours: Any) -> str:
        """How a message names other data: by its file."""
        return f"another {CORPUS}"

    def _tell(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)
