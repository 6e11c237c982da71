"""The task's output projection, the language discriminator, and the model they complete."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.batches.packing import IGNORE_INDEX, PackedBatch, concat
from fastadv.nn.adversary import LanguageDiscriminator
from fastadv.nn.encoder import Encoder
from fastadv.nn.initial_weights import draw_weights
from fastadv.ops.linear import linear
from fastadv.ops.masked_mean_pool import masked_mean_pool

HEAD_OPERATIONS = ("masked_mean_pool", "linear", "linear_bce")
"""The operations that every model needs, whatever its encoder."""


def output_projection(hidden_size: int, outputs: int, std: float, seed: int) -> nn.Linear:
    """Linear(hidden_size, outputs), float32: normal weights from `seed` alone, zero bias."""
    projection = nn.Linear(hidden_size, outputs)
    draw_weights(projection, std, seed)
    return projection


class AdversarialModel(nn.Module):
    """θ, W_T, b_T, w_D and b_D together (paper, section 3.1).

    Args:
        encoder: h_θ over packed tokens.
        num_labels: K, the task's classes or tags.
        by_token: Whether the task head reads every word piece; else it reads the mean over a
            sequence's.
        head_dropout: Dropout on the task head's input.
        seed: Seed of both projections' initial weights.
        backend: Backend of the operations; None for the default.
        relaxation: The discriminator's.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_labels: int,
        by_token: bool = False,
        head_dropout: float = 0.0,
        seed: int = 0,
        backend: str | None = None,
        relaxation: float = 0.0,
    ) -> None:
        super().__init__()
        std = float(getattr(encoder.config, "initializer_range", 0.02))
        self.encoder = encoder
        self.task_head = output_projection(encoder.hidden_size, num_labels, std, 2 * seed)
        self.discriminator = LanguageDiscriminator(
            encoder.hidden_size, std, 2 * seed + 1, backend, relaxation
        )
        self.by_token = by_token
        self.head_dropout = head_dropout
        self.backend = backend

    def pooled(self, batch: PackedBatch, leading: PackedBatch | None = None) -> Tensor:
        """h̄_θ(x), (B, H) float32: the mean over each sequence's pieces, specials included.

        With `leading`, those of its sequences come first and carry no gradient.
        """
        joint = batch if leading is None else concat(leading, batch)
        hidden = self.encoder(batch, leading)
        return masked_mean_pool(hidden, joint.cu_seqlens, backend=self.backend)

    def task_logits(self, batch: PackedBatch) -> Tensor:
        """W_T h + b_T in float32: (B, K) over sequences, or (T, K) over all word pieces."""
        hidden = self.encoder(batch) if self.by_token else self.pooled(batch)
        hidden = F.dropout(hidden.float(), self.head_dropout, self.training)
        head = self.task_head
        return linear(hidden, head.weight, head.bias, backend=self.backend)

    def task_loss(self, batch: PackedBatch) -> Tensor:
        """L_T, scalar: cross-entropy, mean over examples; of a head by token the sum over an
        example's words first (section 3.1, "an additional summation over the length").
        """
        if batch.labels is None:
            raise ValueError("the task batch has no labels, expected labelled examples")
        logits = self.task_logits(batch)
        total = F.cross_entropy(logits, batch.labels, ignore_index=IGNORE_INDEX, reduction="sum")
        return total / batch.num_examples
