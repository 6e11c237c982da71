"""The training loop: Algorithm 1 with evaluation, checkpoints and a record of what happened."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastadv.checkpoint import replace_folder
from fastadv.draws import Draws
from fastadv.evaluate import SCORE, EvaluationSet
from fastadv.progress import Bar, LossMeter, MetricsFile

if TYPE_CHECKING:
    from fastadv.finetuner import AdversarialFinetuner

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
BEST, LAST = "best", "last"


@dataclass
class History:
    """What `fit` returns.

    Attributes:
        records: The lines of metrics.jsonl: {"kind": "train", "step", mean losses, rates} and
            {"kind": "eval", "step", "dev": {metric: value}, "test": {name: {metric: value}}}.
        best_step: The step with the best score on the source language's dev set, the earliest
            of equals (paper, section 3.1: selection on English dev); None without a dev set.
        best_score: That score: accuracy, or F1 for NER.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_score: float | None = None

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluation records, in the order of their steps."""
        return [record for record in self.records if record["kind"] == "eval"]


class Run:
    """One call of `fit`: everything that changes while it goes on."""

    def __init__(
        self,
        tuner: AdversarialFinetuner,
        draws: Draws,
        dev: EvaluationSet | None,
        tests: Mapping[str, EvaluationSet],
        output_dir: Path | None,
        quiet: bool,
    ) -> None:
        self.tuner, self.draws, self.dev, self.tests = tuner, draws, dev, dict(tests)
        self.config, self.trainer = tuner.config, tuner.trainer
        self.output_dir, self.quiet = output_dir, quiet
        self.meter = LossMeter(tuner.device)
        self.metrics = MetricsFile(None)
        self.history = History()

    def go(self, resume: bool) -> History:
        """The while loop of Algorithm 1.

        Raises:
            ValueError: `output_dir` already holds a run and `resume` is False, or the run there
                was over other data or settings.
            KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        self._open(resume)
        steps, bar = self.config.steps, None
        with _stop_after_step() as stop:
            bar = Bar(steps, self.trainer.step_count, self.quiet)
            try:
                if self.trainer.step_count == 0 and self.config.eval_at_start:
                    self._evaluate(bar)
                while self.trainer.step_count < steps:
                    labeled = self.draws.task_batch()
                    draw_d, draw_g = self.draws.language_batch(), self.draws.language_batch()
                    device = self.tuner.device
                    losses = self.trainer.step(
                        labeled.to(device),
                        draw_d and draw_d.to(device),
                        draw_g and draw_g.to(device),
                    )
                    self.meter.add(losses, labeled, draw_d, draw_g)
                    bar.advance()
                    self._after_step(bar)
                    if stop.is_set():
                        self._checkpoint()
                        raise KeyboardInterrupt(f"stopped after step {self.trainer.step_count}")
            finally:
                bar.close()
        self._finish()
        return self.history

    def _after_step(self, bar: Bar) -> None:
        step, config = self.trainer.step_count, self.config
        last = step == config.steps
        if last or step % config.log_every == 0:
            means = self.meter.take()
            self.metrics.write({"kind": "train", "step": step, **means})
            bar.show(means)
        if last or (config.eval_every and step % config.eval_every == 0):
            with self.meter.paused():
                self._evaluate(bar)
        if not last and config.checkpoint_every and step % config.checkpoint_every == 0:
            with self.meter.paused():
                self._checkpoint()

    def _evaluate(self, bar: Bar) -> None:
        if self.dev is None and not self.tests:
            return
        step = self.trainer.step_count
        record: dict[str, Any] = {"kind": "eval", "step": step}
        if self.dev is not None:
            record["dev"] = self.tuner.score(self.dev)
        record["test"] = {name: self.tuner.score(test) for name, test in self.tests.items()}
        self.metrics.write(record)
        metric = SCORE[self.tuner.task]
        scores = {"dev": record["dev"]} if self.dev is not None else {}
        scores |= record["test"]
        shown = "  ".join(f"{name} {values[metric]:.3f}" for name, values in scores.items())
        bar.say(f"step {step}: {metric} {shown}")
        if self.dev is None:
            return
        score = record["dev"][metric]
        if self.history.best_score is None or score > self.history.best_score:
            self.history.best_score, self.history.best_step = score, step
            self._export(BEST)

    def _open(self, resume: bool) -> None:
        self.history = History(self.metrics.records)
        if self.output_dir is None:
            if resume:
                raise ValueError("resume needs an output_dir, expected the folder of the run")
            return
        checkpoint = self.output_dir / CHECKPOINT
        if not resume and (checkpoint.exists() or (self.output_dir / METRICS).exists()):
            raise ValueError(
                f"{self.output_dir}: found a run, expected a new folder or resume=True"
            )
        length = 0
        if checkpoint.exists():
            length = self._restore(checkpoint)
        self.metrics = MetricsFile(self.output_dir / METRICS, length)
        self.history.records = self.metrics.records

    def _restore(self, checkpoint: Path) -> int:
        tensors, state = self.tuner.load_checkpoint(checkpoint)
        run = state["run"]
        fingerprint = self.draws.fingerprint()
        if run["data"] != fingerprint:
            changed = sorted(
                name
                for name in run["data"].keys() | fingerprint.keys()
                if run["data"].get(name) != fingerprint.get(name)
            )
            raise ValueError(
                f"{checkpoint}: the run was over other data ({', '.join(changed)}), "
                "expected the same to resume"
            )
        self.draws.positions = run["positions"]
        self.meter.sums.copy_(tensors["run.loss_sums"])
        self.history.best_step, self.history.best_score = run["best_step"], run["best_score"]
        return int(run["metrics_length"])

    def _checkpoint(self) -> None:
        if self.output_dir is None:
            return
        # Weights that are no longer numbers must not replace a checkpoint of weights that are.
        self.meter.means()
        run = {
            "positions": self.draws.positions,
            "data": self.draws.fingerprint(),
            "best_step": self.history.best_step,
            "best_score": self.history.best_score,
            "metrics_length": self.metrics.length,
        }
        self.tuner.save_checkpoint(
            self.output_dir / CHECKPOINT, {"run.loss_sums": self.meter.sums}, {"run": run}
        )

    def _export(self, name: str) -> None:
        if self.output_dir is not None:
            replace_folder(self.output_dir / name, self.tuner.save_pretrained)

    def _finish(self) -> None:
        self._export(LAST)
        self._checkpoint()


@contextmanager
def _stop_after_step() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, so that a step is never left half done."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread alone.
        yield event
        return
    handlers = {
        number: signal.signal(number, lambda *_: event.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield event
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
