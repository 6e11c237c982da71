"""The adversary: a language discriminator, and the two losses that pull it and the encoder apart.

Another adversary is another class here: `loss` trains it (phase D of Algorithm 1), and
`generator_loss` is what the encoder minimises to deceive it (phase G). Each takes the pooled
features of the texts of a draw, and sends gradients to its own side alone.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.batches.packing import PackedBatch
from fastadv.nn.initial_weights import draw_weights
from fastadv.ops.linear_bce import discriminator_loss, generator_loss


class Discrimination(NamedTuple):
    """The result of phase D: L_D, (), and the share of the texts that were told right, ()."""

    loss: Tensor
    accuracy: Tensor


class Adversary(Protocol):
    """A module that tells languages apart."""

    def loss(self, features: Tensor, draw: PackedBatch) -> Discrimination:
        """L_D for features (B, H) of the texts of a draw; no gradient goes to the features."""

    def generator_loss(self, features: Tensor, draw: PackedBatch) -> Tensor:
        """L_G, (), for features (B, H); gradients go to the features alone."""


class LanguageDiscriminator(nn.Linear):
    """w_D and b_D of Keung, Lu and Bhardwaj (2019), section 3.1: p(English | x) =
    σ(w_D · h̄_θ(x) + b_D).

    Args:
        hidden_size: H.
        std: Standard deviation of the initial weights, which are normal.
        seed: The seed of the initial weights.
        backend: Backend of `linear_bce`; None for the default.
        relaxation: β of the bounded p = σ(w_D · h̄_θ(x) + b_D) / (2 + β), with which both losses
            leave alone what is at most 1 + β times as dense in other languages as in English (Wu,
            Winston, Kaushik and Lipton, ICML 2019; see `linear_bce`). 0 for no bound, as above.
    """

    def __init__(
        self,
        hidden_size: int,
        std: float,
        seed: int,
        backend: str | None = None,
        relaxation: float = 0.0,
    ) -> None:
        super().__init__(hidden_size, 1)
        draw_weights(self, std, seed)
        self.backend = backend
        self.relaxation = relaxation

    def loss(self, features: Tensor, draw: PackedBatch) -> Discrimination:
        """L_D (Algorithm 1, lines 9 to 11): the mean of -log p over the English texts plus the
        mean of -log(1 - p) over the others.

        The accuracy counts a text as English where its logit z is above 0: where p > 1/2 or, with
        relaxation, where p is above half of its bound. A trained discriminator takes every text
        that it need not tell apart towards the bound itself, which no finite z reaches, so that the
        bound cannot be the threshold. At half of it the losses push half as hard as they can, and
        others are taken to be 3 + 2β times as dense as English. So 50% means that no text is found
        to be far beyond 1 + β, and 100% that all of the other languages is.

        Args:
            features: (B, H), h̄ of the texts; they get no gradient.
            draw: Says which texts are English.

        Raises:
            ValueError: The draw does not say so.
        """
        english = _english(draw)
        loss, logits = discriminator_loss(
            features,
            english,
            self.weight,
            self.bias,
            draw.counted,
            self.relaxation,
            backend=self.backend,
        )
        right = ((logits > 0) == english).float()
        if draw.counted is None:
            return Discrimination(loss, right.mean())
        return Discrimination(loss, (right * draw.counted).sum() / draw.counted.sum())

    def generator_loss(self, features: Tensor, draw: PackedBatch) -> Tensor:
        """L_G (Algorithm 1, lines 15 to 17), (): L_D with flipped labels. Arguments and errors are
        the same as for `loss`; gradients go to the features alone.
        """
        loss, _ = generator_loss(
            features,
            _english(draw),
            self.weight,
            self.bias,
            draw.counted,
            self.relaxation,
            backend=self.backend,
        )
        return loss

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """w_D · h̄ + b_D for features (N, H) on the host, (N,) float32: positive for English,
        with relaxation too (see `loss`).
        """
        weight, bias = (p.detach().float().cpu().numpy() for p in (self.weight[0], self.bias))
        result: NDArray[np.float32] = features @ weight + bias
        return result


class AllLanguagesDiscriminator(nn.Linear):
    """A softmax over K languages. With two languages it is the paper's discriminator written twice,
    once per side, and its losses are the paper's.

    Args:
        hidden_size: H.
        languages: K.
        std: Standard deviation of the initial weights, which are normal.
        seed: The seed of the initial weights.
    """

    def __init__(self, hidden_size: int, languages: int, std: float, seed: int) -> None:
        super().__init__(hidden_size, languages)
        draw_weights(self, std, seed)

    def loss(self, features: Tensor, draw: PackedBatch) -> Discrimination:
        """Cross-entropy, the mean over the texts of a language and then over languages.

        Args:
            features: (B, H), h̄ of the texts; they get no gradient.
            draw: Says which language each text is in.

        Raises:
            ValueError: The draw does not say so.
        """
        languages = _languages(draw)
        logits = self(features.detach())
        loss = _by_language(F.cross_entropy(logits, languages, reduction="none"), languages)
        return Discrimination(loss, (logits.argmax(1) == languages).float().mean())

    def generator_loss(self, features: Tensor, draw: PackedBatch) -> Tensor:
        """-log(1 - p) of each text's own language, (), the mean as in `loss`; for two languages
        that is the paper's cross-entropy with flipped labels. Gradients go to the features alone.
        """
        languages = _languages(draw)
        logits = F.linear(features, self.weight.detach(), self.bias.detach())
        own = F.one_hot(languages, logits.shape[1]).bool()
        others = logits.masked_fill(own, float("-inf")).logsumexp(1)
        return _by_language(logits.logsumexp(1) - others, languages)


def _english(draw: PackedBatch) -> Tensor:
    if draw.english is None:
        raise ValueError(
            "the batch does not say which texts are English, expected one made by "
            "collate(other_texts, english_texts)"
        )
    return draw.english


def _languages(draw: PackedBatch) -> Tensor:
    if draw.languages is None:
        raise ValueError("the batch does not say which languages its texts are in")
    return draw.languages


def _by_language(losses: Tensor, languages: Tensor) -> Tensor:
    """(): the mean over languages of the means over their texts."""
    counts = torch.bincount(languages)
    weights = 1.0 / (counts[languages] * (counts > 0).sum())
    return (losses * weights).sum()
