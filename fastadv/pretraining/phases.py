"""Algorithm 1 with masked-language modelling for its task."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastadv.batches.packing import PackedBatch
from fastadv.pretraining.batches import LanguageBatch
from fastadv.training.trainer import Gradients, Trainer


class PretrainingTrainer(Trainer):
    """`Trainer` whose discriminator may tell all languages apart.

    With one score a text it is the paper's: source language against the rest.
    """

    def discriminator_gradients(
        self, draw: PackedBatch, pooled: Tensor
    ) -> tuple[Tensor, Tensor, Gradients]:
        """As in `Trainer`; for K languages L_D is the cross-entropy, mean over the texts of a
        language and then over languages.
        """
        head = self.model.discriminator
        if head.out_features == 1:
            return super().discriminator_gradients(draw, pooled)
        languages = _languages(draw)
        logits = head(pooled)
        loss = _by_language(F.cross_entropy(logits, languages, reduction="none"), languages)
        accuracy = (logits.argmax(1) == languages).float().mean()
        return loss.detach(), accuracy, self._gradients(loss, "discriminator")

    def generator_gradients(self, draw: PackedBatch, pooled: Tensor) -> tuple[Tensor, Gradients]:
        """As in `Trainer`; for K languages -log(1 - p) of a text's own one, which for two is the
        paper's cross-entropy with flipped labels.
        """
        head = self.model.discriminator
        if head.out_features == 1:
            return super().generator_gradients(draw, pooled)
        languages = _languages(draw)
        logits = F.linear(pooled, head.weight.detach(), head.bias.detach())
        own = F.one_hot(languages, logits.shape[1]).bool()
        others = logits.masked_fill(own, float("-inf")).logsumexp(1)
        loss = _by_language(logits.logsumexp(1) - others, languages)
        return loss.detach(), self._gradients(loss, "generator")


def _languages(draw: PackedBatch) -> Tensor:
    if not isinstance(draw, LanguageBatch) or draw.languages is None:
        raise ValueError("the batch does not say which languages its texts are in")
    return draw.languages


def _by_language(losses: Tensor, languages: Tensor) -> Tensor:
    """(): the mean over languages of the means over their texts."""
    counts = torch.bincount(languages)
    weights = 1.0 / (counts[languages] * (counts > 0).sum())
    return (losses * weights).sum()
