"""The encoder's forward and backward pass as a whole, over the operations' raw functions.

`composed_pass` does the same with public operations and autograd; this is tested against it. Here
the backward recomputes the feed-forward's activations instead of keeping them, gradients of the
residual stream and of the matrix products are added where they are read, and buffers are laid out
so that tokens without a gradient leave nothing behind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastadv import backends
from fastadv.nn.composed_pass import composed_forward
from fastadv.nn.packed_weights import PackedWeights, Tokens
from fastadv.nn.pass_buffers import Saved, Stack
from fastadv.ops.memory import empty
from fastadv.weights.layouts import WeightLayouts

# The operations of a pass, apart from matrix products.
KERNELS = ("embedding_layer_norm", "varlen_attention", "dropout_add_layer_norm", "bias_gelu")


def packed_forward(encoder: PackedWeights, tokens: Tokens) -> Tensor:
    """Last hidden states, (T, H) in the type of the weights.

    Runs `composed_forward` where an operation's backend is "torch".
    """
    device = tokens.input_ids.device
    chosen = {op: backends.resolve(op, device, encoder.backend) for op in KERNELS}
    if "torch" in chosen.values():
        return composed_forward(encoder, tokens)
    parameters = [p for _, p in encoder.named_parameters()]
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        result: Tensor = _PackedPass.apply(encoder, tokens, chosen, *parameters)
        return result
    return _Forward(encoder, tokens, chosen, keeps=False).run()


# The two layer norms of a layer, by what they follow.
ATTENTION, OUTPUT = 2, 3


class _Pass:
    """What forward and backward share: weights, kernels, dropout rates and sites."""

    def __init__(self, encoder: PackedWeights, tokens: Tokens, chosen: dict[str, str]) -> None:
        self.encoder, self.tokens, self.kind = encoder, tokens, encoder.architecture
        self.chosen = chosen
        self.low, self.acc = encoder.dtype, encoder.embeddings.word.weight.dtype
        self.kernels = {op: backends.kernels(op, backend) for op, backend in chosen.items()}
        self.layouts: WeightLayouts = encoder.layouts
        self.hidden, self.inner = self.kind.hidden_size, self.kind.intermediate_size
        token_type = encoder.embeddings.token_type
        tables = encoder.embeddings
        self.tables = (
            tables.word.weight,
            tables.position.weight,
            None if token_type is None else token_type.weight[0],
        )

    def empty(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        return empty(self.tokens.input_ids, (rows, width), dtype)

    def dropout(self, rate: float, layer: int, place: int) -> tuple[float, Tensor | None, int]:
        """p, seed and site of one dropout; each layer has three sites."""
        seed = self.tokens.seed
        return (0.0 if seed is None else rate), seed, 3 * layer + place


class _Forward(_Pass):
    def __init__(
        self, encoder: PackedWeights, tokens: Tokens, chosen: dict[str, str], keeps: bool
    ) -> None:
        super().__init__(encoder, tokens, chosen)
        # Without a backward no token needs a gradient, and nothing is kept.
        self.leading = tokens.leading if keeps else tokens.total
        rest, layers = tokens.total - self.leading, self.kind.layers
        self.keeps = keeps

        def stack(width: int, dtype: torch.dtype = self.low, leading: int = self.leading) -> Stack:
            return Stack(tokens.input_ids, layers, leading, rest, width, dtype)

        self.saved = Saved(
            stack(self.hidden), stack(3 * self.hidden), stack(self.hidden),
            stack(self.kind.heads, self.acc), stack(self.hidden), stack(self.inner),
        )  # fmt: skip
        if keeps:
            for norm in (ATTENTION, OUTPUT):
                self.saved.sums[norm] = stack(self.hidden, leading=0)
                self.saved.statistics[norm] = stack(2, self.acc, leading=0)

    def run(self) -> Tensor:
        tokens, tables = self.tokens, self.encoder.embeddings
        total = tokens.total
        stream, other = (self.empty(total, self.hidden, self.acc) for _ in range(2))
        self.projected = self.empty(total, self.hidden, self.low)
        self.activated = self.empty(total, self.inner, self.low)
        first = self.saved.inputs.all(0)
        self.kernels["embedding_layer_norm"].embedding_layer_norm(
            tokens.input_ids, tokens.position_ids, *self.tables, tables.norm.weight,
            tables.norm.bias, self.kind.eps, *self.dropout(self.kind.dropout.embedding, 0, 0),
            stream, first,
        )  # fmt: skip
        for number, layer in enumerate(self.encoder.layers):
            self._layer(number, layer, stream, other)
        return stream

    def _layer(self, number: int, layer: Any, stream: Tensor, other: Tensor) -> None:
        """Reads and writes the stream; `other` holds it between the layer's two halves."""
        tokens, saved, rates = self.tokens, self.saved, self.kind.dropout
        qkv, context = saved.qkv.all(number), saved.context.all(number)
        product = self.layouts.product
        product(saved.inputs.all(number), layer.qkv.weight, layer.qkv.bias, qkv)
        self.kernels["varlen_attention"].varlen_attention(
            qkv, tokens.cu_seqlens, tokens.max_seqlen, self.kind.heads,
            *self.dropout(rates.attention, number, 1), context, saved.lse.all(number),
        )  # fmt: skip
        product(context, layer.attention_output.weight, None, self.projected)
        attended, inner = saved.attended.all(number), saved.inner.all(number)
        self._norm(number, ATTENTION, layer.attention_output.bias, layer.attention_norm,
                   rates.attention_output, stream, other, attended)  # fmt: skip
        bias = layer.intermediate.bias
        if self.layouts.fuses_gelu(attended, layer.intermediate.weight):
            self.layouts.product_gelu(
                attended,
                layer.intermediate.weight,
                bias,
                inner if self.keeps else None,
                self.activated,
            )
        else:
            product(attended, layer.intermediate.weight, None, inner)
            self.kernels["bias_gelu"].bias_gelu(inner, bias, self.activated)
        product(self.activated, layer.output.weight, None, self.projected)
        last = number == self.kind.layers - 1
        self._norm(number, OUTPUT, layer.output.bias, layer.output_norm, rates.output, other,
                   stream, None if last else saved.inputs.all(number + 1))  # fmt: skip

    def _norm(
        self, number: int, place: int, bias: Tensor, norm: Any, rate: float, residual: Tensor,
        y: Tensor, y_low: Tensor | None,
    ) -> None:  # fmt: skip
        z = stats = None
        if self.keeps:
            z = self.saved.sums[place].all(number)
            stats = self.saved.statistics[place].all(number)
        self.kernels["dropout_add_layer_norm"].dropout_add_layer_norm(
            self.projected, bias, residual, norm.weight, norm.bias, self.kind.eps,
            *self.dropout(rate, number, place), self.leading, y, y_low, z, stats,
        )  # fmt: skip


class _Backward(_Pass):
    def __init__(
        self, encoder: PackedWeights, tokens: Tokens, chosen: dict[str, str], saved: Saved
    ) -> None:
        super().__init__(encoder, tokens, chosen)
        self.saved = saved
        self.rest = tokens.total - tokens.leading
        # Sequences of the leading tokens become empty and keep their index.
        self.cu_seqlens = (tokens.cu_seqlens - tokens.leading).clamp(min=0)
        self.gradients: dict[str, Tensor] = {}
        # Where weights are in one buffer, their gradients are too.
        self.flat: dict[str, Tensor] = {}
        flat = encoder.flat
        if flat is not None and flat.intact:
            self.flat_buffer = torch.empty_like(flat.weight)
            views = flat.named_views(self.flat_buffer)
            self.flat = {n.removeprefix("encoder."): view for n, view in views.items()}

    def run(self, grad: Tensor) -> dict[str, Tensor]:
        """Gradients by name, from the gradient of the hidden states (T, H)."""
        low, acc, rest = self.low, self.acc, self.rest
        stream = grad[self.tokens.leading :].contiguous()
        branch: Tensor | None = None
        self.streams = [self.empty(rest, self.hidden, acc) for _ in range(2)]
        self.branch, self.normed = (self.empty(rest, self.hidden, low) for _ in range(2))
        self.wide = [self.empty(rest, self.inner, low) for _ in range(2)]
        self.grad_qkv = self.empty(rest, 3 * self.hidden, low)
        for number in reversed(range(self.kind.layers)):
            stream, branch = self._layer(number, stream, branch)
        self._embeddings(stream, branch)
        return self.gradients

    def _layer(self, number: int, stream: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """From the gradient of a layer's result, a sum of two, to the gradient of its input."""
        layer, saved, prefix = self.encoder.layers[number], self.saved, f"layers.{number}."
        rates = self.kind.dropout
        grad_inner, activated = self.wide
        self._norm(number, OUTPUT, "output", layer.output_norm, rates.output, stream, branch,
                   self.streams[0])  # fmt: skip
        self._gelu(layer, saved.inner.kept(number), prefix, grad_inner, activated)
        self._weight(prefix + "output", self.normed, activated)
        self._weight(prefix + "intermediate", grad_inner, saved.attended.kept(number))
        self.layouts.backward_input(grad_inner, layer.intermediate.weight, self.branch)
        self._norm(
            number, ATTENTION, "attention_output", layer.attention_norm, rates.attention_output,
            self.streams[0], self.branch, self.streams[1],
        )  # fmt: skip
        self._weight(prefix + "attention_output", self.normed, saved.context.kept(number))
        self.layouts.backward_input(self.normed, layer.attention_output.weight, self.branch)
        self._attention(number)
        self._weight(prefix + "qkv", self.grad_qkv, saved.inputs.kept(number), bias=True)
        self.layouts.backward_input(self.grad_qkv, layer.qkv.weight, self.branch)
        return self.streams[1], self.branch

    def _gelu(
        self, layer: Any, inner: Tensor, prefix: str, grad_inner: Tensor, activated: Tensor
    ) -> None:
        """From `normed` through the second matrix product to the first; recomputes gelu."""
        sums = self._new(prefix + "intermediate.bias", (self.inner,))
        bias, layouts = layer.intermediate.bias, self.layouts
        if layouts.fuses_gelu(self.normed, layer.output.weight):
            layouts.backward_input_gelu(
                self.normed, layer.output.weight, inner, bias, grad_inner, activated, sums
            )
            return
        grad_act = torch.empty_like(grad_inner)
        layouts.backward_input(self.normed, layer.output.weight, grad_act)
        self.kernels["bias_gelu"].bias_gelu_backward(
            grad_act, inner, bias, grad_inner, activated, sums
        )

    def _attention(self, number: int) -> None:
        """From `branch`, the gradient of the context, to `grad_qkv`."""
        saved, tokens = self.saved, self.tokens
        self.kernels["varlen_attention"].varlen_attention_backward(
            self.branch, saved.qkv.kept(number), saved.context.kept(number),
            saved.lse.kept(number), self.cu_seqlens, tokens.max_seqlen, self.kind.heads,
            *self.dropout(self.kind.dropout.attention, number, 1), tokens.leading, self.grad_qkv,
        )  # fmt: skip

    def _norm(
        self, number: int, place: int, name: str, norm: Any, rate: float, stream: Tensor,
        branch: Tensor | None, residual: Tensor,
    ) -> None:  # fmt: skip
        """Gradients of the matrix product's result, into `normed`, and of the residual."""
        prefix = f"layers.{number}."
        which = "attention_norm" if place == ATTENTION else "output_norm"
        vectors = self._vectors(
            f"{prefix}{name}.bias", f"{prefix}{which}.weight", f"{prefix}{which}.bias"
        )
        self.kernels["dropout_add_layer_norm"].dropout_add_layer_norm_backward(
            stream, branch, self.saved.sums[place].kept(number),
            self.saved.statistics[place].kept(number), norm.weight,
            *self.dropout(rate, number, place), self.tokens.leading, self.normed, residual, vectors,
        )  # fmt: skip

    def _weight(self, name: str, grad: Tensor, x: Tensor, bias: bool = False) -> None:
        sums = self._new(name + ".bias", (grad.shape[1],)) if bias else None
        weight = self._new(name + ".weight", (grad.shape[1], x.shape[1]))
        squares = self.layouts.backward_weight(grad, x, weight, sums)
        if squares is not None:
            self.encoder.keep_squares(name + ".weight", squares)

    def _new(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name in self.flat:
            self.gradients[name] = self.flat[name]
        else:
            self.gradients[name] = empty(self.saved.qkv.rows, shape, self.acc)
        return self.gradients[name]

    def _vectors(self, *names: str) -> Tensor:
        """A buffer for the gradients of vectors that follow each other, (len(names), H)."""
        if all(name in self.flat for name in names):
            flat = self.encoder.flat
            assert flat is not None
            vectors = flat.rows(self.flat_buffer, f"encoder.{names[0]}", len(names))
        else:
            vectors = empty(self.saved.qkv.rows, (len(names), self.hidden), self.acc)
        self.gradients |= dict(zip(names, vectors, strict=True))
        return vectors

    def _embeddings(self, stream: Tensor, branch: Tensor | None) -> None:
        tokens, kind = self.tokens, self.kind
        rows = slice(tokens.leading, None)
        word, position, token_type = self.tables
        tables = self.encoder.embeddings
        position_sums = self._new("embeddings.position.weight", tuple(position.shape)).zero_()
        rows_read, padding = tokens.rows, -1 if kind.padding_idx is None else kind.padding_idx
        known: dict[str, Any] = {}
        if rows_read is None:
            word_sums = self._new("embeddings.word.weight", tuple(word.shape)).zero_()
        else:
            ids = rows_read.on(word.device)
            word_sums = empty(stream, (len(ids), self.hidden), self.acc).zero_()
            self.gradients["embeddings.word.weight"] = torch.sparse_coo_tensor(
                ids[None], word_sums, word.shape, is_coalesced=True, check_invariants=False
            )
            segments = rows_read.segments
            if segments is not None and self.chosen["embedding_layer_norm"] == "triton":
                # The segments leave out the padding row.
                known["segments"], padding = segments, -1
            else:
                padding = _place(rows_read.ids, padding)
        sums_type = None
        if tables.token_type is not None:
            whole = self._new("embeddings.token_type.weight", tuple(tables.token_type.weight.shape))
            sums_type = whole.zero_()[0]
        vectors = self._vectors("embeddings.norm.weight", "embeddings.norm.bias")
        position_padding = -1 if kind.position_padding_idx is None else kind.position_padding_idx
        self.kernels["embedding_layer_norm"].embedding_layer_norm_backward(
            stream, branch, tokens.input_ids[rows], tokens.position_ids[rows], word, position,
            token_type, tables.norm.weight, kind.eps, *self.dropout(kind.dropout.embedding, 0, 0),
            tokens.leading, None if rows_read is None else rows_read.inverse, padding,
            position_padding, word_sums, position_sums, sums_type, vectors, **known,
        )  # fmt: skip


def _place(ids: Tensor, wanted: int) -> int:
    """The index of a number among ids (U,) on the CPU; -1 if it is absent or negative."""
    found = (ids == wanted).nonzero()
    return int(found[0]) if wanted >= 0 and len(found) else -1


class _PackedPass(torch.autograd.Function):
    """The encoder's parameters are arguments so that autograd knows of them."""

    @staticmethod
    def forward(
        ctx: Any,
        encoder: PackedWeights,
        tokens: Tokens,
        chosen: dict[str, str],
        *parameters: Tensor,
    ) -> Tensor:
        run = _Forward(encoder, tokens, chosen, keeps=True)
        hidden = run.run()
        # Saved for autograd's check that no parameter was changed before the backward.
        ctx.save_for_backward(*parameters)
        ctx.encoder, ctx.tokens, ctx.chosen, ctx.kept = encoder, tokens, chosen, run.saved
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        if ctx.kept is None:
            raise RuntimeError(
                "trying to go backward through the encoder a second time, expected one backward a "
                "forward: what it needs was freed"
            )
        gradients = _Backward(ctx.encoder, ctx.tokens, ctx.chosen, ctx.kept).run(grad)
        ctx.kept = None
        names = [name for name, _ in ctx.encoder.named_parameters()]
        wanted = zip(names, ctx.needs_input_grad[3:], strict=True)
        return (None, None, None, *[gradients[name] if need else None for name, need in wanted])
