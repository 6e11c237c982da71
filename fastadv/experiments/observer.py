"""What an experiment measures at every evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.batches.tokenization import TokenizedDataset, tokenize_documents
from fastadv.data import Data, Document, Sentence, as_texts
from fastadv.finetuner import AdversarialFinetuner
from fastadv.nn.heads import AdversarialModel
from fastadv.run.observer import Answered, Tested
from fastadv.run.target_shares import INSTEAD
from fastadv.selection import (
    discriminator_scores,
    probe_accuracy,
    soft_neighborhood_density,
)
from fastadv.selection.target_signals import TargetSignals, signals_of, spread
from fastadv.shares.estimate import total_variation
from fastadv.tasks.class_shares import NAMED, ClassShares, matched_outputs
from fastadv.tasks.inference import embeddings
from fastadv.tasks.metrics import median_cosine
from fastadv.tasks.task import Outputs

Records = Sequence[Document] | Sequence[Sentence]


class TargetTexts:
    """Unlabelled text of one language.

    Args:
        unlabeled: Text for criteria that look at predictions.
        heldout: Text that no discriminator is trained on.
        pairs: Texts of the source language and their translations, equally many.
    """

    def __init__(
        self,
        unlabeled: Records,
        heldout: Records,
        pairs: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> None:
        self.unlabeled, self.heldout, self.pairs = spread(unlabeled), spread(heldout), pairs


class ExperimentObserver:
    """Signals for criteria, the discriminator on held-out text, and alignment.

    Args:
        tuner: The finetuner whose model is observed; texts are tokenised now, once.
        source: Labelled examples of the source language that are not trained on.
        targets: Texts by language.
        known: The classes, and shares of the source language.
        shares: By language and by what they are called, shares known from labels.
        labeled: By language a few labelled examples, to which constants are fitted.
    """

    def __init__(
        self,
        tuner: AdversarialFinetuner,
        source: Data,
        targets: Mapping[str, TargetTexts],
        known: ClassShares,
        shares: Mapping[str, Mapping[str, Mapping[str, float]]],
        labeled: Mapping[str, Sequence[Any]],
    ) -> None:
        read, size = tuner.preparation.unlabeled, tuner.config.eval_batch_size
        self._tuner, self._targets = tuner, targets
        unlabeled = {name: t.unlabeled for name, t in targets.items()}
        self._predictions = TargetSignals(tuner.preparation, unlabeled, size)
        self._pairs = {
            name: [
                tokenize_documents(
                    tuner.tokenizer, as_texts(texts, Document), None, tuner.config.max_length
                )
                for texts in target.pairs
            ]
            for name, target in targets.items()
            if target.pairs is not None
        }
        self._heldout = {name: read(t.heldout) for name, t in targets.items()}
        self._source = read(spread(list(tuner.preparation.task.texts(source))))
        self._known, self._shares = known, shares
        self._labeled = {n: (few, tuner.evaluation_set(few)) for n, few in labeled.items()}

    def observe(
        self, step: int, model: AdversarialModel, tested: Tested
    ) -> dict[str, dict[str, Any]]:
        """{language: {signal: value}}; see `fastadv.selection` for what the signals are.

        Beside them "matched" has the scores of predictions matched to shares, "shares" those that
        were estimated, "trust" how far, and "unshrunk" the estimate before that.
        """
        english = self._embed(model, self._source)
        assert tested.dev is not None
        found = {}
        for name in self._targets:
            text = self._predictions.outputs(model, name)
            signals = self._signals(model, name, english, text)
            found[name] = signals | self._matched(model, name, text, tested.dev, tested.tests[name])
        return found

    def _matched(
        self,
        model: AdversarialModel,
        name: str,
        text: Outputs,
        dev: Answered,
        tested: Answered,
    ) -> dict[str, Any]:
        known, labels = self._known, self._tuner.labels
        ways = {way: known.named(way) for way in NAMED}
        found: dict[str, Any] = {}
        estimates: dict[str, dict[str, float]] = {}
        source, said = dev
        if not known.missing(source.gold):
            drawn_by, estimate = known.estimated(said, source.gold, text)
            ways["estimate"], _ = known.estimated(said, source.gold, text, INSTEAD)
            estimates = {"estimate": drawn_by, "estimate_to_match": ways["estimate"]}
            found = {
                "shares": drawn_by,
                "unshrunk": estimate.unshrunk.tolist(),
                "trust": estimate.trust,
                "confidence_drop": estimate.confidence_drop,
            }
        test, outputs = tested
        scores = {}
        labelled = dict(self._shares.get(name, {}))
        for way, shares in (ways | labelled).items():
            constants = known.match(text, shares).constants
            scores[way] = test.report(matched_outputs(outputs, constants), labels).scores()
        if (labeled := self._labeled.get(name)) is not None:
            examples, few = labeled
            rows = few.outputs(model, self._tuner.config.eval_batch_size)
            constants = known.fit(rows, examples, few.gold).constants
            scores["fitted"] = test.report(matched_outputs(outputs, constants), labels).scores()
        found["matched"] = scores
        errors = ways | labelled | estimates
        if (truth := labelled.get("oracle")) is not None:
            found["share_error"] = {
                way: total_variation([*shares.values()], [*truth.values()])
                for way, shares in errors.items()
                if shares is not truth
            }
        return found

    def _signals(
        self, model: AdversarialModel, name: str, english: NDArray[np.float32], text: Outputs
    ) -> dict[str, Any]:
        tuner, probabilities = self._tuner, self._predictions.rows(text)
        others = self._embed(model, self._heldout[name])
        signals = signals_of(probabilities) | {
            "neighborhood_density": soft_neighborhood_density(probabilities),
            "probe_accuracy": probe_accuracy(others, english),
        }
        if tuner.config.adversarial:
            scores = model.discriminator.scores
            accuracy, loss = discriminator_scores(
                scores(others), scores(english), tuner.config.relaxation
            )
            signals |= {"discriminator_accuracy": accuracy, "discriminator_loss": loss}
        if (pairs := self._pairs.get(name)) is not None:
            signals["alignment"] = median_cosine(*(self._embed(model, texts) for texts in pairs))
        return signals

    def _embed(self, model: AdversarialModel, dataset: TokenizedDataset) -> NDArray[np.float32]:
        config = self._tuner.config
        return embeddings(model.encoder, dataset, config.eval_batch_size, config.backend)
