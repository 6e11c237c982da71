"""What an experiment measures at every evaluation, and the mean of the weights so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastadv.batches.tokenization import TokenizedDataset
from fastadv.data import Document, Sentence
from fastadv.run.weight_mean import WeightMean
from fastadv.selection import (
    discriminator_scores,
    probe_accuracy,
    soft_neighborhood_density,
)
from fastadv.selection.target_signals import TargetPredictions, signals_of, spread
from fastadv.tasks.inference import embeddings
from fastadv.tasks.metrics import median_cosine

if TYPE_CHECKING:
    from fastadv.finetuner import AdversarialFinetuner

Records = Sequence[Document] | Sequence[Sentence]


class TargetTexts:
    """Unlabelled text of one language.

    Args:
        unlabeled: Text for criteria over predictions.
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
    """Signals for criteria, the discriminator on held-out text, alignment, and a mean of weights.

    Args:
        tuner: Whose model is to be observed; texts are tokenised now, once.
        source: Held-out text of the source language.
        targets: Texts by language.
    """

    def __init__(
        self,
        tuner: AdversarialFinetuner,
        source: Records,
        targets: Mapping[str, TargetTexts],
    ) -> None:
        read = tuner.preparation.unlabeled
        self._targets = targets
        self._predictions = TargetPredictions(
            tuner, {name: t.unlabeled for name, t in targets.items()}
        )
        self._heldout = {name: read(t.heldout) for name, t in targets.items()}
        self._source = read(spread(source))
        self.mean = WeightMean(tuner.config.steps)

    def observe(self, tuner: AdversarialFinetuner, step: int) -> dict[str, dict[str, float]]:
        """{language: {signal: value}}; see `fastadv.selection` for what the signals are."""
        self.mean.add(tuner.model, step)
        english = self._embed(tuner, self._source)
        return {name: self._signals(tuner, name, english) for name in self._targets}

    def _signals(
        self, tuner: AdversarialFinetuner, name: str, english: NDArray[np.float32]
    ) -> dict[str, float]:
        probabilities = self._predictions.probabilities(tuner, name)
        others = self._embed(tuner, self._heldout[name])
        signals = signals_of(probabilities) | {
            "neighborhood_density": soft_neighborhood_density(probabilities),
            "probe_accuracy": probe_accuracy(others, english),
        }
        if tuner.config.adversarial:
            logits = (_logits(tuner, others), _logits(tuner, english))
            accuracy, loss = discriminator_scores(*logits)
            signals |= {"discriminator_accuracy": accuracy, "discriminator_loss": loss}
        if (pairs := self._targets[name].pairs) is not None:
            signals["alignment"] = median_cosine(*(tuner.embed(texts) for texts in pairs))
        return signals

    def _embed(self, tuner: AdversarialFinetuner, dataset: TokenizedDataset) -> NDArray[np.float32]:
        config = tuner.config
        return embeddings(tuner.model.encoder, dataset, config.eval_batch_size, config.backend)

    def state_tensors(self) -> dict[str, Tensor]:
        return self.mean.state_tensors()

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean.load_state_tensors(tensors)


def _logits(tuner: AdversarialFinetuner, embedded: NDArray[np.float32]) -> NDArray[np.float32]:
    head = tuner.model.discriminator
    weight, bias = (p.detach().float().cpu().numpy() for p in (head.weight[0], head.bias))
    result: NDArray[np.float32] = embedded @ weight + bias
    return result
