"""What an experiment measures at every evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastadv.batches.tokenization import TokenizedDataset
from fastadv.data import Document, Sentence
from fastadv.finetuner import AdversarialFinetuner
from fastadv.selection import (
    discriminator_scores,
    probe_accuracy,
    soft_neighborhood_density,
)
from fastadv.selection.target_signals import TargetSignals, signals_of, spread
from fastadv.tasks.inference import embeddings
from fastadv.tasks.metrics import median_cosine

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
        source: Held-out text of the source language.
        targets: Texts by language.
    """

    def __init__(
        self,
        tuner: AdversarialFinetuner,
        source: Records,
        targets: Mapping[str, TargetTexts],
    ) -> None:
        read, size = tuner.preparation.unlabeled, tuner.config.eval_batch_size
        self._tuner, self._targets = tuner, targets
        unlabeled = {name: t.unlabeled for name, t in targets.items()}
        self._predictions = TargetSignals(tuner.preparation, unlabeled, size)
        self._heldout = {name: read(t.heldout) for name, t in targets.items()}
        self._source = read(spread(source))

    def observe(self, step: int) -> dict[str, dict[str, float]]:
        """{language: {signal: value}}; see `fastadv.selection` for what the signals are."""
        english = self._embed(self._source)
        return {name: self._signals(name, english) for name in self._targets}

    def _signals(self, name: str, english: NDArray[np.float32]) -> dict[str, float]:
        tuner = self._tuner
        probabilities = self._predictions.probabilities(tuner.model, name)
        others = self._embed(self._heldout[name])
        signals = signals_of(probabilities) | {
            "neighborhood_density": soft_neighborhood_density(probabilities),
            "probe_accuracy": probe_accuracy(others, english),
        }
        if tuner.config.adversarial:
            scores = tuner.model.discriminator.scores
            accuracy, loss = discriminator_scores(
                scores(others), scores(english), tuner.config.relaxation
            )
            signals |= {"discriminator_accuracy": accuracy, "discriminator_loss": loss}
        if (pairs := self._targets[name].pairs) is not None:
            signals["alignment"] = median_cosine(*(tuner.embed(texts) for texts in pairs))
        return signals

    def _embed(self, dataset: TokenizedDataset) -> NDArray[np.float32]:
        config = self._tuner.config
        return embeddings(
            self._tuner.model.encoder, dataset, config.eval_batch_size, config.backend
        )
