"""`AdversarialFinetuner`: the object that users work with."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from fastadv import backends
from fastadv.batches.packing import PackedBatch, pack
from fastadv.config import FinetuneConfig, MatchShares, ResolvedConfig, TaskName
from fastadv.data import Data
from fastadv.data.chunks import chunks
from fastadv.device import autocast_dtype, default_device, resolve_precision
from fastadv.embedder import Embedder
from fastadv.model_io.checks import checked_length, checked_tokenizer
from fastadv.model_io.finetuned import load_model, save_model
from fastadv.model_io.loading import load_encoder, load_tokenizer, set_dropout
from fastadv.model_io.packaged import resolve_model
from fastadv.nn.encoder import build_encoder
from fastadv.nn.heads import HEAD_OPERATIONS, AdversarialModel
from fastadv.recommended import resolved_for, say_recommended
from fastadv.records.history import History
from fastadv.run import checkpoint as checkpoints
from fastadv.run.observer import Observer
from fastadv.run.setting_up import prepared_run
from fastadv.run.state import restore, state_of
from fastadv.run.target_shares import MatchedPredictions, TargetText
from fastadv.selection.target_signals import TargetSignals
from fastadv.tasks.class_shares import ClassShares, Matched, matched_outputs
from fastadv.tasks.classification import DocumentPrediction
from fastadv.tasks.evaluation_set import EvaluationSet
from fastadv.tasks.majority import majority_class
from fastadv.tasks.ner import SentencePrediction
from fastadv.tasks.preparation import Preparation
from fastadv.tasks.registry import task_of
from fastadv.tasks.task import Report
from fastadv.training.trainer import Trainer


@dataclass(frozen=True)
class Losses:
    """One iteration's losses as floats, before each update; None without the adversary."""

    task: float
    discriminator: float | None
    generator: float | None
    discriminator_accuracy: float | None


class AdversarialFinetuner:
    """Finetunes a pretrained encoder on labelled source-language text while it forgets languages.

    Keung, Lu and Bhardwaj, EMNLP 2019, Algorithm 1.

    Args:
        model: A hub id, a folder, "fastadv-mini", "e5-small", or a transformers model (then
            `tokenizer` must be given). Loaded in float32.
        task: "classification" of documents, or "ner".
        labels: The classes, or for NER the tags ("O", "B-PER", "I-PER", ...), in the order of
            the output.
        config: Settings; the paper's are the defaults, but for rates of the two named encoders
            (`FinetuneConfig.recipe`).
        tokenizer: A fast tokenizer; by default the model's own.
        device: Where to run; by default the GPU if there is one.

    Raises:
        ValueError: There is no such task, the model cannot be loaded, the tokenizer is not a fast
            one, or the labels are fewer than two, repeated, or for NER without "O".
        RuntimeError: The backend that `config` names cannot run on the device.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        task: TaskName = "classification",
        labels: Sequence[str] = (),
        config: FinetuneConfig | None = None,
        *,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
    ) -> None:
        config = config or FinetuneConfig()
        self.device = default_device(device)
        self.task: TaskName = task
        chosen = task_of(task)
        self.labels = chosen.checked_labels(labels)
        resolved = resolved_for(config, task, model)
        precision = resolve_precision(resolved.precision, self.device)
        resolved = dataclasses.replace(resolved, precision=precision)
        self._check_backend(config.backend, HEAD_OPERATIONS)
        if isinstance(model, PreTrainedModel):
            encoder = model
            if tokenizer is None:
                raise ValueError("a model object came without a tokenizer, expected both")
        else:
            path = resolve_model(model)
            encoder = load_encoder(path)
            tokenizer = tokenizer or load_tokenizer(path)
        self.tokenizer = checked_tokenizer(tokenizer, encoder)
        self.config: ResolvedConfig = checked_length(resolved, encoder)
        say_recommended(config, task, model)
        self.class_counts: Mapping[str, int] = {}
        self.matched: dict[str, Matched] = {}
        self.preparation = Preparation(chosen, self.labels, tokenizer, self.config)
        if config.dropout is not None:
            set_dropout(encoder, encoder.config, config.dropout)
        packed = build_encoder(
            encoder, config.encoder, autocast_dtype(self.config.precision), config.backend
        )
        self._check_backend(config.backend, packed.operations)
        self.model = AdversarialModel(
            packed,
            len(self.labels),
            by_token=chosen.by_token,
            head_dropout=config.head_dropout,
            seed=config.seed,
            backend=config.backend,
            relaxation=config.relaxation,
        ).to(self.device)
        self.trainer = Trainer(self.model, self.config)

    @property
    def majority(self) -> str | None:
        """The commonest class of the examples that `fit` was given, or of those that a saved model
        was trained on; None before, for NER, and of models saved without their counts.
        """
        return majority_class(task_of(self.task), self.class_counts, self.labels)

    def _check_backend(self, backend: str | None, operations: Sequence[str]) -> None:
        """Refuses a backend that cannot run now, not after the data was read."""
        for operation in operations:
            backends.resolve(operation, self.device, backend)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        config: FinetuneConfig | None = None,
        device: str | torch.device | None = None,
    ) -> AdversarialFinetuner:
        """A finetuner with the weights, labels and settings that `save_pretrained` wrote.

        Optimiser states are not part of a saved model; they are in checkpoints.

        Raises:
            ValueError: The folder was not written by `save_pretrained`.
        """
        saved = load_model(Path(folder))
        tuner = cls(
            saved.encoder,
            saved.task,
            saved.labels,
            config or saved.config,
            tokenizer=saved.tokenizer,
            device=device,
        )
        # The encoder's weights are loaded already.
        missing, unexpected = tuner.model.load_state_dict(saved.heads, strict=False)
        wrong = unexpected + [name for name in missing if not name.startswith("encoder.")]
        if wrong:
            raise ValueError(f"{folder}: the heads file does not match the model at {wrong[0]}")
        tuner.class_counts, tuner.matched = saved.class_counts, saved.matched
        return tuner

    def save_pretrained(self, folder: str | os.PathLike[str], language: str | None = None) -> None:
        """Writes config.json, model.safetensors in Hugging Face's names, and the tokenizer's files.

        The encoder loads with `AutoModel`, a NER model with `AutoModelForTokenClassification`.

        Args:
            folder: Where to write.
            language: One of `matched`: the model becomes one for this language, whose constants
                are in the bias of its head, so that any tool that loads it has matched
                predictions.

        Raises:
            ValueError: No predictions in that language were matched.
        """
        model, matched = self.model, self.matched
        if language is not None:
            model, matched = copy.deepcopy(model), {}
            constants = torch.from_numpy(self._constants(language))
            with torch.no_grad():
                model.task_head.bias.add_(constants.to(model.task_head.bias))
        save_model(
            Path(folder), model, self.task, self.tokenizer, self.labels, self.config,
            self.class_counts, matched,
        )  # fmt: skip

    def collate(self, first: Data, second: Data | None = None) -> PackedBatch:
        """A batch made by hand.

        Args:
            first: Labelled examples, for the task phase; or, if `second` is given, texts of other
                languages (labels are dropped).
            second: Texts of the source language, for a discriminator or generator draw.

        Returns:
            A `PackedBatch` on the finetuner's device.

        Raises:
            ValueError: Malformed examples, or none; a label that is missing or unknown.
        """
        prepare = self.preparation
        if second is None:
            return pack(list(prepare.labeled(first))).to(self.device)
        others, english = prepare.unlabeled(first), prepare.unlabeled(second)
        flags = [False] * len(others) + [True] * len(english)
        return pack([*others, *english], english=flags).to(self.device)

    def step(
        self,
        labeled: PackedBatch,
        discriminator_draw: PackedBatch | None = None,
        generator_draw: PackedBatch | None = None,
    ) -> Losses:
        """One iteration of Algorithm 1 over the caller's batches.

        Args:
            labeled: `collate(labeled_examples)`; lines 2-6.
            discriminator_draw: `collate(other_texts, english_texts)`; lines 7-12.
            generator_draw: The same with fresh texts; lines 13-18.

        Raises:
            ValueError: The adversary is on and a draw is missing.
            FloatingPointError: A gradient is not finite, and `nonfinite_gradients` is "stop".
        """
        if self.config.adversarial and (discriminator_draw is None or generator_draw is None):
            raise ValueError(
                "a discriminator or generator draw is missing, expected both unless the "
                "configuration says adversarial=False"
            )
        losses = self.trainer.step(labeled, discriminator_draw, generator_draw)
        self.trainer.check()
        values = (getattr(losses, f.name) for f in dataclasses.fields(Losses))
        return Losses(*(None if v is None else float(v) for v in values))  # type: ignore[arg-type]

    def fit(
        self,
        labeled: Data,
        unlabeled: Mapping[str, Data] | None = None,
        dev: Data | None = None,
        test: Mapping[str, Data] | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        quiet: bool = False,
        trackers: Sequence[str] = (),
        observer: Observer | None = None,
        export: bool = True,
    ) -> History:
        """Runs Algorithm 1 for `config.steps` iterations.

        Args:
            labeled: Labelled source-language examples.
            unlabeled: Text by language; labels in it are dropped. Several languages share each
                batch equally. Text under `config.source_language` ("en") joins the labelled
                examples' own text as the English side.
            dev: Labelled source-language examples that choose the best step, unless the
                configuration's `selection` looks at `unlabeled` for that.
            test: Labelled examples by name, scored at every evaluation and used for nothing else.
            output_dir: Gets metrics.jsonl, checkpoint.safetensors, best/ and last/, and mean/
                if the configuration says `mean_weights`.
            resume: Resume from the checkpoint in `output_dir`, if there is one.
            quiet: Show no progress; warnings are still shown.
            trackers: Where else to send what goes to metrics.jsonl: "tensorboard", "wandb",
                "trackio".
            observer: Looks at the model at every evaluation (see `fastadv.run.observer`).
            export: Write best/, last/ and mean/; without, the checkpoint holds the last weights
                alone.

        Returns:
            The history; the finetuner itself holds the last step's weights.

        Raises:
            ValueError: Malformed data, no other language with the adversary on or for `selection`
                to look at, or a run in `output_dir` that cannot be resumed.
            FloatingPointError: A loss is no longer finite; the last good checkpoint is kept.
            OSError: The disk is full; likewise.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        run = prepared_run(
            self,
            labeled,
            dict(unlabeled or {}),
            dev,
            dict(test or {}),
            output_dir=None if output_dir is None else Path(output_dir),
            quiet=quiet,
            trackers=trackers,
            observer=observer,
            exports=export,
        )
        return run.go(resume)

    def match(
        self,
        unlabeled: Mapping[str, Data],
        shares: MatchShares = "english",
        dev: Data | None = None,
    ) -> dict[str, Matched]:
        """Matches predictions in each language to class shares, as the model now is.

        Adds a constant to each class's logit so that the mean prediction over the language's text
        has the given shares (Saerens, Latinne and Decaestecker, Neural Computation 2002). `predict`
        and `evaluate` use the constants where they are asked to, `save_pretrained` keeps them.

        Args:
            unlabeled: Text by language; labels in it are dropped. At most 500 texts are read.
            shares: "english", "equal", "halfway", "estimate", or by language one of these or a
                share for each class.
            dev: Labelled English that was not trained on, for "estimate".

        Returns:
            By language the shares and the constants, which are in `matched` from now on.

        Raises:
            ValueError: Malformed data, unknown shares, or a model saved before the counts of its
                training classes were kept.
        """
        size = self.config.eval_batch_size
        # Checks the argument as that of a configuration is checked.
        wanted = FinetuneConfig(match_shares=shares).match_shares
        texts = {name: list(self.preparation.task.texts(data)) for name, data in unlabeled.items()}
        text = TargetText(
            ClassShares(self.preparation.task, self.labels, self.class_counts),
            TargetSignals(self.preparation, texts, size),
            None if dev is None else self.evaluation_set(dev),
            size,
        )
        self.matched |= MatchedPredictions(text, wanted, list(texts)).of(self.model)
        return self.matched

    def calibrate(self, labeled: Mapping[str, Data]) -> dict[str, Matched]:
        """Fits the constants of `match` to a few labelled texts of each language instead.

        With 50 texts this leaves less error than a count of their classes does
        (`fastadv.shares.fitting`).

        Args:
            labeled: Labelled examples by language, none of them trained on.

        Returns:
            As `match`.

        Raises:
            ValueError: Malformed data, or a model saved before the counts of its training classes
                were kept.
        """
        task, size = self.preparation.task, self.config.eval_batch_size
        known = ClassShares(task, self.labels, self.class_counts)
        for language, data in labeled.items():
            examples = task.labeled(data)
            few = self.evaluation_set(examples)
            self.matched[language] = known.fit(few.outputs(self.model, size), examples, few.gold)
        return self.matched

    def _constants(self, language: str) -> NDArray[np.float64]:
        if language not in self.matched:
            known = ", ".join(self.matched) or "none"
            raise ValueError(
                f"found no matched predictions in the language {language!r}, expected one of those "
                f"that the model was matched in: {known}"
            )
        return self.matched[language].constants

    def evaluate(
        self, data: Mapping[str, Data], matched: bool = False
    ) -> dict[str, dict[str, float]]:
        """Scores by name: {"accuracy", "macro_f1"}, or for NER {"precision", "recall", "f1"}.

        Args:
            data: Labelled examples by name.
            matched: Names are languages, in each of which predictions are matched.

        Raises:
            ValueError: Malformed data, or a language in which predictions were not matched.
        """
        reports = {
            name: self.report(self.evaluation_set(examples), name if matched else None)
            for name, examples in data.items()
        }
        return {name: report.scores() for name, report in reports.items()}

    def report(self, data: EvaluationSet, language: str | None = None) -> Report:
        """What scores sum up, see `EvaluationSet`; with a language, of matched predictions."""
        outputs = data.outputs(self.model, self.config.eval_batch_size)
        if language is not None:
            outputs = matched_outputs(outputs, self._constants(language))
        return data.report(outputs, self.labels)

    def evaluation_set(self, data: Data) -> EvaluationSet:
        """Labelled data tokenised once, to be scored as often as wanted with `score`."""
        return self.preparation.evaluation_set(data)

    def score(self, data: EvaluationSet) -> dict[str, float]:
        """Like `evaluate`, for one data set."""
        return data.score(self.model, self.labels, self.config.eval_batch_size)

    def predict(
        self, data: Data, language: str | None = None
    ) -> list[DocumentPrediction] | list[SentencePrediction]:
        """Labels of documents, or tags of sentences (strings are split at white space).

        Args:
            data: Texts; labels in it are dropped.
            language: One of `matched`, whose constants are used.

        Raises:
            ValueError: Malformed data, or predictions in that language were not matched.
        """
        return self._predict(list(self.preparation.task.texts(data)), language)

    def iter_predict(
        self, data: Data, chunk_size: int = 1024, language: str | None = None
    ) -> Iterator[DocumentPrediction] | Iterator[SentencePrediction]:
        """`predict` for inputs of any length: memory holds `chunk_size` examples at a time.

        Args:
            data: Anything that `predict` takes; files and iterators are read as they are needed.
            chunk_size: Examples tokenised and sorted by length together.
            language: See `predict`.
        """
        for chunk in chunks(self.preparation.task.texts(data), chunk_size):
            yield from self._predict(chunk, language)

    def _predict(self, examples: Any, language: str | None) -> Any:
        prepare, size = self.preparation, self.config.eval_batch_size
        dataset = prepare.tokenized(examples)
        outputs = prepare.task.outputs(self.model, dataset, size)
        if language is not None:
            outputs = matched_outputs(outputs, self._constants(language))
        return prepare.task.predictions(outputs, examples, self.labels)

    def embed(self, texts: Data) -> NDArray[np.float32]:
        """(N, H) float32: the mean-pooled embedding h̄_θ(x) of each text (paper, section 3.4)."""
        return self.embedder.embed(texts)

    @property
    def embedder(self) -> Embedder:
        """The encoder, as it is now, behind `Embedder`'s interface."""
        config = self.config
        return Embedder(
            self.model.encoder,
            self.tokenizer,
            config.max_length,
            config.eval_batch_size,
            config.backend,
        )

    def save_checkpoint(
        self,
        path: str | os.PathLike[str],
        tensors: Mapping[str, Tensor] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes weights, the three optimisers, the step count and the settings to one file.

        The step count and the seed are the whole random state: dropout is drawn from them.

        Args:
            path: The file, replaced atomically.
            tensors: More tensors to keep.
            state: More values to keep; anything that JSON can hold.
        """
        own_tensors, own_state = state_of(self)
        checkpoints.save_checkpoint(
            Path(path), own_tensors | dict(tensors or {}), own_state | dict(state or {})
        )

    def load_checkpoint(
        self, path: str | os.PathLike[str]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Loads what `save_checkpoint` wrote; a run resumed from it equals one that never stopped.

        Returns:
            All tensors and state in the file.

        Raises:
            ValueError: The file is no checkpoint, or of a run with another task, other labels or
                settings.
        """
        tensors, state = checkpoints.load_checkpoint(Path(path))
        restore(self, tensors, state, Path(path))
        return tensors, state
