"""Masked-language model over packed tokens, together with a language discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastadv.batches.packing import PackedBatch, concat
from fastadv.nn.adversary import Adversary, AllLanguagesDiscriminator, LanguageDiscriminator
from fastadv.nn.packed_encoder import PackedBert
from fastadv.ops import cross_entropy, masked_mean_pool
from fastadv.pretraining.masking import MaskedBatch
from fastadv.weights.layouts import WeightLayouts

# Added to the share of a piece before its logarithm is taken.
RAREST = 1e-6


class MaskedLanguageHead(nn.Module):
    """BERT's layers before the output, whose weight is the word table, and the output's bias."""

    def __init__(self, hidden_size: int, vocabulary: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor) -> Tensor:
        """(M, H) to (M, H)."""
        normed: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return normed


class MaskedLanguageModel(nn.Module):
    """Encoder, masked-language head and discriminator; the model that `Trainer` takes.

    Args:
        encoder: Its word table is also the output layer's weight.
        languages: K, for a discriminator over all languages; None for source against the rest.
        seed: The seed of the new weights.
        frequencies: (V,) shares of the pieces in the text; the output bias begins as their
            logarithms, so that the first steps need not find them. None for zeros.
        backend: Backend of the operations; None for the default.
    """

    def __init__(
        self,
        encoder: PackedBert,
        languages: int | None = None,
        seed: int = 0,
        frequencies: Tensor | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        config, width = encoder.config, encoder.hidden_size
        self.encoder, self.backend = encoder, backend
        encoder.tied = True
        self.task_head = MaskedLanguageHead(width, config.vocab_size, config.layer_norm_eps)
        generator = torch.Generator().manual_seed(2 * seed)
        with torch.no_grad():
            dense = self.task_head.dense
            dense.weight.normal_(0.0, config.initializer_range, generator=generator)
            # Near the identity: at first every token is predicted to be itself.
            dense.weight += torch.eye(width)
            dense.bias.zero_()
            if frequencies is not None:
                self.task_head.bias.copy_(torch.log(frequencies + RAREST))
        std, own_seed = config.initializer_range, 2 * seed + 1
        self.discriminator: Adversary = (
            LanguageDiscriminator(width, std, own_seed, backend)
            if languages is None
            else AllLanguagesDiscriminator(width, languages, std, own_seed)
        )

    def pooled(self, batch: PackedBatch, leading: PackedBatch | None = None) -> Tensor:
        """See `AdversarialModel.pooled`."""
        joint = batch if leading is None else concat(leading, batch)
        hidden = self.encoder(batch, leading)
        return masked_mean_pool(hidden, joint.cu_seqlens, backend=self.backend)

    def task_logits(self, batch: MaskedBatch) -> Tensor:
        """Scores of pieces at masked tokens, (M, V) in the type of the matrix products."""
        assert batch.masked is not None
        hidden = _Rows.apply(self.encoder(batch), batch.masked)
        features = self.task_head(hidden).to(self.encoder.dtype)
        table = self.encoder.embeddings.word.weight
        logits: Tensor = _TiedProduct.apply(
            features, table, self.task_head.bias, self.encoder.layouts
        )
        return logits

    def token_losses(self, batch: MaskedBatch) -> Tensor:
        """(M,) cross-entropies, in nats, of the pieces that were masked."""
        assert batch.labels is not None
        return cross_entropy(
            self.task_logits(batch), batch.labels, inplace_backward=True, backend=self.backend
        )

    def task_loss(self, batch: MaskedBatch) -> Tensor:
        """(), the mean over masked tokens."""
        return self.token_losses(batch).mean()


class _Rows(torch.autograd.Function):
    """Rows (M,) of x (T, H), each at most once: PyTorch would add gradients up, this sets them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return x.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, rows, grad), None


class _TiedProduct(torch.autograd.Function):
    """x (M, H) times the word table (V, H) transposed, plus bias (V,), through the copies of the
    table that its optimiser keeps up to date.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, bias: Tensor, layouts: WeightLayouts) -> Tensor:
        # The table itself, by which its copies are found; saved too, so that a change is noticed.
        ctx.save_for_backward(x, table)
        ctx.table, ctx.layouts = table, layouts
        logits = x.new_empty(x.shape[0], table.shape[0])
        layouts.product(x, table, bias, logits)  # type: ignore[arg-type]
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, _ = ctx.saved_tensors
        table, grad = ctx.table, grad.contiguous()
        grad_x, grad_table = torch.empty_like(x), torch.empty_like(table)
        grad_bias = table.new_empty(table.shape[0])
        ctx.layouts.backward_input(grad, table, grad_x)
        ctx.layouts.backward_weight(grad, x, grad_table, grad_bias)
        return grad_x, grad_table, grad_bias, None
