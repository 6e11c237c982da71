"""The training loop: Algorithm 1 with evaluation, checkpoints and a record of what happened."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from fastadv.batches.draws import Draws
from fastadv.batches.packing import PackedBatch
from fastadv.batches.prefetch import Prefetch
from fastadv.model_io.finetuned import save_model
from fastadv.nn.heads import AdversarialModel
from fastadv.records.discriminator_health import diagnose
from fastadv.records.history import History
from fastadv.records.metrics_file import MetricsFile
from fastadv.records.progress import Bar, notice
from fastadv.records.trackers import Tracker, open_tracker
from fastadv.run.best_folder import BestFolder
from fastadv.run.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from fastadv.run.files import replace_folder
from fastadv.run.folder import BEST, CHECKPOINT, LAST, MEAN, METRICS
from fastadv.run.loss_meter import LossMeter
from fastadv.run.observer import Observer
from fastadv.run.state import restore, state_of, under
from fastadv.run.stopping import Stopped, StopRequest, stop_request
from fastadv.run.trained import Trained
from fastadv.run.weight_mean import WeightMean
from fastadv.selection.step_choice import StepChoice
from fastadv.tasks.evaluation_set import EvaluationSet
from fastadv.training.step_graphs import HostStep, StepGraphs, say_why, why_no_graphs

WEIGHT_MEAN = "weight_mean."

Batches = tuple[PackedBatch, PackedBatch | None, PackedBatch | None]
Prepared = tuple[Batches, HostStep | None, dict[str, int]]


class Run:
    """One call of `fit`: everything that changes while it goes on."""

    def __init__(
        self,
        trained: Trained,
        draws: Draws,
        choice: StepChoice,
        *,
        dev: EvaluationSet | None = None,
        tests: Mapping[str, EvaluationSet],
        output_dir: Path | None = None,
        quiet: bool = False,
        trackers: Sequence[str] = (),
        observer: Observer | None = None,
        export: bool = True,
    ) -> None:
        self.choice, self.observer, self.export = choice, observer, export
        self.trained, self.draws, self.dev, self.tests = trained, draws, dev, dict(tests)
        self.config, self.trainer = trained.config, trained.trainer
        self.output_dir, self.quiet = output_dir, quiet
        self.tracker_names, self.trackers = trackers, list[Tracker]()
        self.meter = LossMeter(trained.device, self.config.nonfinite_gradients == "skip")
        self.metrics = MetricsFile(None)
        self.history = History()
        self.mean = WeightMean(self.config.steps) if self.config.mean_weights else None
        self.best_folder = None
        if output_dir is not None and export:
            self.best_folder = BestFolder(output_dir, trained.save_pretrained)
        self.saved_step: int | None = None
        # Where the streams stand after the last step done; they may be ahead of it.
        self.positions = draws.positions
        self.graphs: StepGraphs | None = None
        if (reason := why_no_graphs(self.trainer)) is None:
            self.graphs = StepGraphs(self.trainer)
        elif trained.device.type == "cuda":
            say_why(reason)

    def go(self, resume: bool) -> History:
        """The while loop of Algorithm 1.

        Raises:
            ValueError: `output_dir` already holds a run and `resume` is False, or the run there
                was over other data or settings.
            FloatingPointError: Losses or weights are no longer finite.
            OSError: Something cannot be written; what was there before is untouched.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        self._open(resume)
        bar = Bar(self.config.steps, self.trainer.step_count, self.quiet)
        try:
            with stop_request(self.quiet) as stop:
                self._loop(bar, stop)
                self._finish(bar)
                if stop.signal is not None:
                    # Too late for this run, but there may be another after it.
                    raise Stopped(stop.signal, self.trainer.step_count, self.output_dir)
        except (FloatingPointError, OSError) as error:
            raise type(error)(f"{error}; {self._kept()}") from error
        finally:
            bar.close()
            for tracker in self.trackers:
                tracker.close()
        return self.history

    def _loop(self, bar: Bar, stop: StopRequest) -> None:
        steps, device = self.config.steps, self.trained.device
        if self.trainer.step_count >= steps:
            return
        if self.trainer.step_count == 0 and self.config.eval_at_start:
            self._evaluate(bar)
        with self._steps() as prepared:
            for batches, host_step, self.positions in prepared:
                if host_step is not None and self.graphs is not None:
                    losses = self.graphs.step(host_step)
                else:
                    labeled, draw_d, draw_g = batches
                    losses = self.trainer.step(
                        labeled.to(device),
                        draw_d and draw_d.to(device),
                        draw_g and draw_g.to(device),
                    )
                self.meter.add(losses, *batches)
                bar.advance()
                self._after_step(bar)
                if self.trainer.step_count == steps:
                    return
                if stop.signal is not None:
                    self._checkpoint()
                    raise Stopped(stop.signal, self.trainer.step_count, self.output_dir)

    @contextmanager
    def _steps(self) -> Iterator[Iterable[Prepared]]:
        """The batches of every step to come, prepared ahead where steps are graphs."""
        steps = count(self.trainer.step_count)
        if self.graphs is None:
            yield (self._prepare(step) for step in steps)
            return
        with Prefetch(lambda: self._prepare(next(steps))) as prepared:
            yield prepared

    def _prepare(self, step: int) -> Prepared:
        """Batches of a step, the same as graphs read them, and where the streams then stand."""
        draws = self.draws
        batches = draws.task_batch(), draws.language_batch(), draws.language_batch()
        host_step = None if self.graphs is None else self.graphs.host_step(step, *batches)
        return batches, host_step, draws.positions

    def _after_step(self, bar: Bar) -> None:
        step, config = self.trainer.step_count, self.config
        last = step == config.steps
        if last or step % config.log_every == 0:
            self.trainer.check()
            means = self.meter.take()
            if self.trainer.skipped:
                means["skipped_updates"] = self.trainer.skipped
            self._record({"kind": "train", "step": step, **means})
            bar.show(means)
            self._warn(bar)
        if last or (config.eval_every and step % config.eval_every == 0):
            with self.meter.paused():
                self._evaluate(bar)
        if not last and config.checkpoint_every and step % config.checkpoint_every == 0:
            with self.meter.paused():
                self._checkpoint()

    def _record(self, record: dict[str, Any]) -> None:
        self.metrics.write(record)
        for tracker in self.trackers:
            tracker.log(record)

    def _warn(self, bar: Bar) -> None:
        """Says in words, and only once, what the losses and accuracies so far look like."""
        trained = [r for r in self.history.records if r["kind"] == "train"]
        message = diagnose(trained, self.config)
        said = {r["message"] for r in self.history.records if r["kind"] == "warning"}
        if message is not None and message not in said:
            step = self.trainer.step_count
            self.metrics.write({"kind": "warning", "step": step, "message": message})
            bar.warn(f"step {step}: {message}")

    def _evaluate(self, bar: Bar) -> None:
        if not (self.dev or self.tests or self.observer or self.mean or self.choice.looks):
            return
        step = self.trainer.step_count
        record: dict[str, Any] = {"kind": "eval", "step": step}
        with self.trained.model.encoder.reading():
            if self.dev is not None:
                record["dev"] = self._score(self.dev)
            record["test"] = {name: self._score(test) for name, test in self.tests.items()}
            if self.choice.looks:
                record["unlabeled"] = self.choice.look(self.trained.model)
            if self.mean is not None:
                self.mean.add(self.trained.model, step)
            if self.observer is not None:
                record["observed"] = self.observer.observe(step)
        self._record(record)
        self._say_scores(bar, f"step {step}", record)
        self.choice.add(record)
        if step in self.choice.candidates():
            self._check_finite()
        if self.best_folder is not None:
            self.best_folder.update(self.choice, step)
        self._note_best()

    def _score(
        self, data: EvaluationSet, model: AdversarialModel | None = None
    ) -> dict[str, float]:
        model = model or self.trained.model
        return data.score(model, self.trained.labels, self.config.eval_batch_size)

    def _note_best(self) -> None:
        if (best := self.choice.best()) is not None:
            self.history.best_step, self.history.best_score = best

    def _say_scores(self, bar: Bar, what: str, record: Mapping[str, Any]) -> None:
        metric = self.choice.metric
        scores = {"dev": record["dev"]} if "dev" in record else {}
        scores |= record["test"]
        shown = "  ".join(f"{name} {values[metric]:.3f}" for name, values in scores.items())
        bar.say(f"{what}: {metric} {shown}")

    def _open(self, resume: bool) -> None:
        self.history = History(self.metrics.records)
        if self.output_dir is None:
            for wanted, what in ((resume, "resume needs"), (self.tracker_names, "trackers need")):
                if wanted:
                    raise ValueError(f"{what} an output_dir, expected the folder of the run")
            return
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"{self.output_dir}: found a file, expected a folder for the run")
        there = [
            n for n in (CHECKPOINT, METRICS, BEST, LAST, MEAN) if (self.output_dir / n).exists()
        ]
        if there and not resume:
            raise ValueError(
                f"{self.output_dir}: found {there[0]} of another run, expected a new folder, or "
                "resume=True to go on with it"
            )
        found = find_checkpoint(self.output_dir / CHECKPOINT)
        length = 0
        if found is not None:
            checkpoint, why_not_newest = found
            length = self._restore(checkpoint)
            if why_not_newest:
                notice(why_not_newest)
        # Before the file: a tracker that cannot start leaves a folder that a run can start in.
        config, step = dataclasses.asdict(self.config), self.trainer.step_count
        for name in self.tracker_names:
            tracker = open_tracker(name, self.output_dir, self.output_dir.name, config, step)
            self.trackers.append(tracker)
        self.metrics = MetricsFile(self.output_dir / METRICS, length)
        self.history.records = self.metrics.records
        for evaluation in self.history.evaluations():
            self.choice.add(evaluation)
        if self.best_folder is not None:
            self.best_folder.resume(self.choice)
        self._note_best()

    def _restore(self, checkpoint: Path) -> int:
        tensors, state = load_checkpoint(checkpoint)
        restore(self.trained, tensors, state, checkpoint)
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
        self.draws.positions = self.positions = run["positions"]
        self.meter.sums.copy_(tensors["run.loss_sums"])
        if self.mean is not None:
            self.mean.load_state_tensors(under(WEIGHT_MEAN, tensors))
        self.saved_step = self.trainer.step_count
        return int(run["metrics_length"])

    def _checkpoint(self) -> None:
        if self.output_dir is None:
            return
        self._check_finite()
        run = {
            "positions": self.positions,
            "data": self.draws.fingerprint(),
            "metrics_length": self.metrics.length,
        }
        tensors, state = state_of(self.trained)
        tensors["run.loss_sums"] = self.meter.sums
        if self.mean is not None:
            tensors |= {WEIGHT_MEAN + name: t for name, t in self.mean.state_tensors().items()}
        save_checkpoint(self.output_dir / CHECKPOINT, tensors, state | {"run": run})
        self.saved_step = self.trainer.step_count

    def _check_finite(self) -> None:
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

    def _kept(self) -> str:
        step = self.trainer.step_count
        if self.saved_step is None:
            return f"stopped at step {step}, no checkpoint was written before it"
        return f"stopped at step {step}, the checkpoint of step {self.saved_step} is kept"

    def _export(self, name: str) -> None:
        if self.output_dir is not None and self.export:
            replace_folder(self.output_dir / name, self.trained.save_pretrained)

    def _finish(self, bar: Bar) -> None:
        self._check_finite()
        self._export(LAST)
        self._checkpoint()
        self.trainer.flush()
        if self.best_folder is not None:
            self.best_folder.finish()
        # After the checkpoint: a run that was stopped here scores the mean again when resumed.
        if self.mean is not None and self.mean.count:
            self._finish_mean(bar, self.mean)

    def _finish_mean(self, bar: Bar, mean: WeightMean) -> None:
        """Scores the mean of the weights and exports it; the model keeps its own."""
        trained, model = self.trained, copy.deepcopy(self.trained.model)
        model.load_state_dict(mean.weights(), strict=False)
        record: dict[str, Any] = {
            "kind": "mean",
            "step": self.trainer.step_count,
            "evaluations": mean.count,
        }
        if self.dev is not None:
            record["dev"] = self._score(self.dev, model)
        record["test"] = {name: self._score(test, model) for name, test in self.tests.items()}
        self._record(record)
        self._say_scores(bar, f"mean of {mean.count} evaluations", record)
        if self.output_dir is not None and self.export:
            replace_folder(
                self.output_dir / MEAN,
                lambda folder: save_model(
                    folder, model, trained.task, trained.tokenizer, trained.labels, trained.config
                ),
            )
