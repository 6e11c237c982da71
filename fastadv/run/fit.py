"""A finetuning run: Algorithm 1 with evaluation, checkpoints and a record of what happened."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastadv.batches.draws import Draws
from fastadv.batches.packing import PackedBatch
from fastadv.device import is_gpu
from fastadv.model_io.finetuned import save_model
from fastadv.nn.heads import AdversarialModel
from fastadv.records.health import diagnose
from fastadv.records.history import History
from fastadv.records.progress import Bar
from fastadv.records.trackers import Tracker, open_tracker
from fastadv.run.best_folder import BestFolder
from fastadv.run.folder import BEST, CHECKPOINT, LAST, MEAN, METRICS
from fastadv.run.loop import Loop
from fastadv.run.observer import Answered, Observer, Tested
from fastadv.run.state import under
from fastadv.run.stopping import Stopped, stop_request
from fastadv.run.target_shares import DrawnShares, MatchedPredictions, distrusted
from fastadv.run.trained import Finetuned
from fastadv.run.weight_mean import WeightMean
from fastadv.selection.step_choice import StepChoice
from fastadv.tasks.class_shares import matched_outputs
from fastadv.tasks.evaluation_set import EvaluationSet
from fastadv.training.step_graphs import HostStep, StepGraphs, say_why, why_no_graphs

WEIGHT_MEAN = "weight_mean."

Batches = tuple[PackedBatch, PackedBatch | None, PackedBatch | None]
# Batches of a step, the same as graphs read them, and where the streams then stand.
Prepared = tuple[Batches, HostStep | None, dict[str, int]]


class Run(Loop[Prepared]):
    """One call of `fit`: everything that changes during it.

    Args:
        trained: The finetuner.
        draws: Where batches come from.
        choice: Which step becomes best/.
        dev: Labelled source-language examples, scored at every evaluation.
        tests: More, by name.
        output_dir: The folder of the run.
        quiet: No progress; warnings are still shown.
        trackers: Names of trackers.
        observer: Looks at the model at every evaluation.
        exports: Whether models are written.
        majority: See `History`.
        shares: By what class shares English is drawn; None for English as it comes.
        matching: Matches predictions on tests that are named as a language.
        warn_of_shares: Makes sentences at the end of the run.
        warnings: Sentences about the data, said before the first step.
    """

    def __init__(
        self,
        trained: Finetuned,
        draws: Draws,
        choice: StepChoice,
        *,
        dev: EvaluationSet | None = None,
        tests: Mapping[str, EvaluationSet],
        output_dir: Path | None = None,
        quiet: bool = False,
        trackers: Sequence[str] = (),
        observer: Observer | None = None,
        exports: bool = True,
        majority: dict[str, Any] | None = None,
        shares: DrawnShares | None = None,
        matching: MatchedPredictions | None = None,
        warn_of_shares: Callable[[], list[str]] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.graphs: StepGraphs | None = None
        if (reason := why_no_graphs(trained.trainer)) is None:
            self.graphs = StepGraphs(trained.trainer)
        elif is_gpu(trained.device):
            say_why(reason)
        self.shares, self.matching, self.warn_of_shares = shares, matching, warn_of_shares
        self.warnings = warnings
        # Batches prepared ahead would be drawn by shares of an earlier estimate.
        ahead = self.graphs is not None and not (shares is not None and shares.estimated)
        super().__init__(trained, output_dir, ahead=ahead)
        self.choice, self.observer, self.exports = choice, observer, exports
        self.draws, self.dev, self.tests, self.quiet = draws, dev, dict(tests), quiet
        self.tracker_names, self.trackers = trackers, list[Tracker]()
        self.history, self.majority = History(), majority
        self.finetuned = trained
        self.mean = WeightMean(self.config.steps) if self.config.mean_weights else None
        self.best_folder = None
        if self.folder is not None and exports:
            self.best_folder = BestFolder(self.folder, trained.save_pretrained)
        self._guessing = draws.labeled.guessing_loss
        # Where the streams stand after the last step done; they may be ahead of it.
        self.positions = draws.positions
        self.bar: Bar | None = None

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
        self.history.majority = self.majority
        self.bar = Bar(self.config.steps, self.step, self.quiet)
        try:
            for message in self.warnings:
                self._warn(message)
            with stop_request(self.quiet) as stop:
                if self.step == 0 and self.config.eval_at_start:
                    self.evaluate()
                self.run_steps(stop)
                self._finish()
                if stop.signal is not None:
                    # Too late for this run, but there may be another after it.
                    raise Stopped(stop.signal, self.step, self.folder)
        except (FloatingPointError, OSError) as error:
            raise type(error)(f"{error}; {self._kept()}") from error
        finally:
            self.bar.close()
            for tracker in self.trackers:
                tracker.close()
        return self.history

    def prepare(self, step: int) -> Prepared:
        """The next batches of the streams, and the same as graphs read them."""
        draws = self.draws
        if self._estimates(step):
            self._estimate()
        batches = draws.task_batch(), draws.language_batch(), draws.language_batch()
        host_step = None if self.graphs is None else self.graphs.host_step(step, *batches)
        return batches, host_step, draws.positions

    def _estimates(self, step: int) -> bool:
        """Whether shares are estimated before a step; not before the first, as nothing is learned.

        It depends on nothing that a resumed run may change.
        """
        estimated = self.shares is not None and self.shares.estimated
        return bool(estimated) and step > 0 and step % self.config.shares_every == 0

    def _estimate(self) -> None:
        assert self.shares is not None
        with self.meter.paused(), self.trained.model.encoder.reading():
            told = self.shares.update(self.trained.model)
        self.draws.set_class_shares(self.shares.arrays())
        # Trackers take numbers.
        super().record({"kind": "shares", "step": self.step, "shares": told})
        for language, one in told.items():
            # Early estimates are not yet trusted, as the task is not learned.
            if 2 * self.step >= self.config.steps:
                self._warn(distrusted(language, one), f"class shares of {language} cannot")

    def take(self, prepared: Prepared) -> None:
        """One iteration of Algorithm 1."""
        batches, host_step, self.positions = prepared
        if host_step is not None and self.graphs is not None:
            losses = self.graphs.step(host_step)
        else:
            labeled, draw_d, draw_g = batches
            device = self.trained.device
            losses = self.trainer.step(
                labeled.to(device), draw_d and draw_d.to(device), draw_g and draw_g.to(device)
            )
        self.meter.add(losses, *batches)
        if self.bar is not None:
            self.bar.advance()

    def record(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl, which goes to the trackers too."""
        super().record(record)
        for tracker in self.trackers:
            tracker.log(record)

    def show(self, means: dict[str, Any]) -> None:
        """The losses on the bar; in words, and only once, what they look like."""
        if self.bar is not None:
            self.bar.show(means)
        trained = [r for r in self.history.records if r["kind"] == "train"]
        for message in diagnose(trained, self.config, self._guessing):
            self._warn(message)

    def _warn(self, message: str | None, about: str | None = None) -> None:
        """A sentence that is said once, or once of those that begin alike."""
        said = [r["message"] for r in self.history.records if r["kind"] == "warning"]
        if message is None or any(s.startswith(about or message) for s in said):
            return
        # Trackers take numbers.
        super().record({"kind": "warning", "step": self.step, "message": message})
        if self.bar is not None:
            self.bar.warn(f"step {self.step}: {message}")

    def evaluate(self) -> None:
        """Scores, signals and what the observer sees; best/ is renewed."""
        if not (self.dev or self.tests or self.observer or self.mean or self.choice.looks):
            return
        model, step = self.trained.model, self.step
        record: dict[str, Any] = {"kind": "eval", "step": step}
        with model.encoder.reading():
            scores, tested = self._scores(model)
            record |= scores
            if self.matching is not None:
                record |= self._matched(model, tested)
            if self.choice.looks:
                record["unlabeled"] = self.choice.look(model)
            if self.mean is not None:
                self.mean.add(model, step)
            if self.observer is not None:
                record["observed"] = self.observer.observe(step, model, tested)
        self.record(record)
        self._say_scores(f"step {step}", record)
        self.choice.add(record)
        if step in self.choice.candidates():
            self.check_finite()
        if self.best_folder is not None:
            self.best_folder.update(self.choice, step)
        self._note_best()

    def _scores(self, model: AdversarialModel) -> tuple[dict[str, Any], Tested]:
        """{"dev": scores} if there is a dev set, and {"test": {name: scores}}; and the outputs."""
        labels, size = self.trained.labels, self.config.eval_batch_size

        def answered(data: EvaluationSet) -> Answered:
            return data, data.outputs(model, size)

        tested = Tested(
            {name: answered(test) for name, test in self.tests.items()},
            None if self.dev is None else answered(self.dev),
        )
        found: dict[str, Any] = {}
        if tested.dev is not None:
            dev, outputs = tested.dev
            found["dev"] = dev.report(outputs, labels).scores()
        found["test"] = {
            name: test.report(outputs, labels).scores()
            for name, (test, outputs) in tested.tests.items()
        }
        return found, tested

    def _matched(self, model: AdversarialModel, tested: Tested) -> dict[str, Any]:
        """{"matched": {test: scores}, "shares": {language: {class: share}}}."""
        assert self.matching is not None
        self.finetuned.matched = matched = self.matching.of(model)
        labels = self.trained.labels
        scores = {
            name: test.report(matched_outputs(outputs, matched[name].constants), labels).scores()
            for name, (test, outputs) in tested.tests.items()
            if name in matched
        }
        return {
            "matched": scores,
            "shares": {name: dict(one.shares) for name, one in matched.items()},
        }

    def _note_best(self) -> None:
        if (best := self.choice.best()) is not None:
            self.history.best_step, self.history.best_score = best

    def _say_scores(self, what: str, record: Mapping[str, Any]) -> None:
        metric = self.choice.metric
        scores = {"dev": record["dev"]} if "dev" in record else {}
        scores |= record["test"]
        shown = "  ".join(f"{name} {values[metric]:.3f}" for name, values in scores.items())
        if self.bar is not None:
            self.bar.say(f"{what}: {metric} {shown}")

    def _open(self, resume: bool) -> None:
        self.history = History(self.metrics.records)
        if self.folder is None:
            for wanted, what in ((resume, "resume needs"), (self.tracker_names, "trackers need")):
                if wanted:
                    raise ValueError(f"{what} an output_dir, expected the folder of the run")
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder}: found a file, expected a folder for the run")
        there = [n for n in (CHECKPOINT, METRICS, BEST, LAST, MEAN) if (self.folder / n).exists()]
        if there and not resume:
            raise ValueError(
                f"{self.folder}: found {there[0]} of another run, expected a new folder, or "
                "resume=True to continue it"
            )
        self.restore()
        # Before the file: a tracker that cannot start leaves a folder that a run can start in.
        config = dataclasses.asdict(self.config)
        for name in self.tracker_names:
            tracker = open_tracker(name, self.folder, self.folder.name, config, self.step)
            self.trackers.append(tracker)
        self.open_metrics()
        self.history.records = self.metrics.records
        for evaluation in self.history.evaluations():
            self.choice.add(evaluation)
        if self.best_folder is not None:
            self.best_folder.resume(self.choice)
        self._note_best()

    def data_fingerprint(self) -> dict[str, Any]:
        """A checksum of every stream's tokens."""
        return self.draws.fingerprint()

    def other_data(self, saved: Any, ours: Any) -> str:
        """Names the streams that differ."""
        changed = sorted(n for n in saved.keys() | ours.keys() if saved.get(n) != ours.get(n))
        return f"other data ({', '.join(changed)})"

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Where the streams stand, shares of classes, and the mean of the weights so far."""
        tensors = {} if self.mean is None else self.mean.state_tensors()
        state: dict[str, Any] = {"positions": self.positions}
        if self.shares is not None:
            state["class_shares"] = self.shares.current
        return {WEIGHT_MEAN + n: t for n, t in tensors.items()}, state

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.draws.positions = self.positions = state["positions"]
        if self.shares is not None:
            self.shares.current = state["class_shares"]
            self.draws.set_class_shares(self.shares.arrays())
        if self.mean is not None:
            self.mean.load_state_tensors(under(WEIGHT_MEAN, tensors))

    def _kept(self) -> str:
        if self.saved_step is None:
            return f"stopped at step {self.step}, no checkpoint was written before it"
        return f"stopped at step {self.step}, the checkpoint of step {self.saved_step} is kept"

    def _finish(self) -> None:
        self.check_finite()
        if self.warn_of_shares is not None:
            for message in self.warn_of_shares():
                self._warn(message)
        if self.exports:
            self.export(LAST, self.trained.save_pretrained)
        self.checkpoint()
        self.trainer.flush()
        if self.best_folder is not None:
            self.best_folder.finish()
        # After the checkpoint: a run that was stopped here scores the mean again when resumed.
        if self.mean is not None and self.mean.count:
            self._finish_mean(self.mean)

    def _finish_mean(self, mean: WeightMean) -> None:
        """Scores the mean of the weights and exports it; the model keeps its own."""
        trained, model = self.finetuned, copy.deepcopy(self.trained.model)
        model.load_state_dict(mean.weights(), strict=False)
        head: dict[str, Any] = {"kind": "mean", "step": self.step, "evaluations": mean.count}
        scores, tested = self._scores(model)
        record = head | scores
        last = self.finetuned.matched
        if self.matching is not None:
            record |= self._matched(model, tested)
        if self.observer is not None:
            record["observed"] = self.observer.observe(self.step, model, tested)
        matched, self.finetuned.matched = self.finetuned.matched, last
        self.record(record)
        self._say_scores(f"mean of {mean.count} evaluations", record)
        if self.exports:
            self.export(
                MEAN,
                lambda folder: save_model(
                    folder,
                    model,
                    trained.task,
                    trained.tokenizer,
                    trained.labels,
                    trained.config,
                    trained.class_counts,
                    matched,
                ),
            )
