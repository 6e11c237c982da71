"""What an experiment measures at every evaluation, and the mean of the weights so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastadv.data import Document, Sentence
from fastadv.evaluate import document_probabilities, embeddings, word_probabilities
from fastadv.metrics import median_cosine
from fastadv.selection import (
    batch_nuclear_norm,
    discriminator_scores,
    mean_entropy,
    mutual_information,
    probe_accuracy,
    soft_neighborhood_density,
)
from fastadv.tokenization import TokenizedDataset, as_unlabeled

if TYPE_CHECKING:
    from fastadv.finetuner import AdversarialFinetuner

TEXTS = 500
"""Texts of a language that signals are computed from, at most."""
WORDS = 4000
"""Words of them, for NER: neighbourhood density takes time with their square."""
_COUNT = "count"

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


def spread(records: Any, count: int = TEXTS) -> Any:
    """`count` of the records, evenly over their order; all where there are not more."""
    places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[int(place)] for place in places]


class ExperimentObserver:
    """Signals for criteria, the discriminator on held-out text, alignment, and a mean of weights.

    The mean is over the evaluations in the second half of the run, as in Schmidt, Vulić and
    Glavaš, "Free Lunch: Robust Cross-Lingual Transfer via Model Checkpoint Averaging", ACL 2023,
    who average checkpoints of a run whose target labels are not seen; over its end alone as in
    Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.

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
        prepare = tuner.preparation
        read = prepare.documents if tuner.task == "classification" else prepare.sentences
        self._targets = targets
        self._unlabeled = {name: read(t.unlabeled) for name, t in targets.items()}
        self._heldout = {name: as_unlabeled(read(t.heldout)) for name, t in targets.items()}
        self._source = as_unlabeled(read(spread(source)))
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def observe(self, tuner: AdversarialFinetuner, step: int) -> dict[str, dict[str, float]]:
        """{language: {signal: value}}; see `fastadv.selection` for what the signals are."""
        if 2 * step >= tuner.config.steps:
            self._add(tuner)
        english = self._embed(tuner, self._source)
        return {name: self._signals(tuner, name, english) for name in self._targets}

    def _signals(
        self, tuner: AdversarialFinetuner, name: str, english: NDArray[np.float32]
    ) -> dict[str, float]:
        probabilities = self._probabilities(tuner, self._unlabeled[name])
        others = self._embed(tuner, self._heldout[name])
        signals = {
            "entropy": mean_entropy(probabilities),
            "information": mutual_information(probabilities),
            "nuclear_norm": batch_nuclear_norm(probabilities),
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

    def _probabilities(
        self, tuner: AdversarialFinetuner, dataset: TokenizedDataset
    ) -> NDArray[np.float32]:
        size = tuner.config.eval_batch_size
        if tuner.task == "classification":
            return document_probabilities(tuner.model, dataset, size)
        words = np.concatenate(word_probabilities(tuner.model, dataset, size))
        # A word of which the model saw no piece has no prediction.
        seen = words[~np.isnan(words).any(axis=1)]
        return np.stack(spread(seen, WORDS))

    def _embed(self, tuner: AdversarialFinetuner, dataset: TokenizedDataset) -> NDArray[np.float32]:
        config = tuner.config
        return embeddings(tuner.model.encoder, dataset, config.eval_batch_size, config.backend)

    def _add(self, tuner: AdversarialFinetuner) -> None:
        with torch.no_grad():
            for name, parameter in tuner.model.named_parameters():
                if name in self.sums:
                    self.sums[name] += parameter
                else:
                    self.sums[name] = parameter.detach().clone()
        self.count += 1

    def mean_weights(self) -> dict[str, Tensor]:
        """The mean of the weights at the evaluations so far, by name; empty before the first."""
        return {name: total / self.count for name, total in self.sums.items()}

    def state_tensors(self) -> dict[str, Tensor]:
        return {**self.sums, _COUNT: torch.tensor(self.count)}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.sums = {name: tensor.clone() for name, tensor in tensors.items() if name != _COUNT}
        self.count = int(tensors[_COUNT])


def _logits(tuner: AdversarialFinetuner, embedded: NDArray[np.float32]) -> NDArray[np.float32]:
    head = tuner.model.discriminator
    weight, bias = (p.detach().float().cpu().numpy() for p in (head.weight[0], head.bias))
    result: NDArray[np.float32] = embedded @ weight + bias
    return result
