"""Baseline B2: packed, flash attention, one CUDA graph per step, no custom kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.batches.packing import IGNORE_INDEX
from fastadv.device import autocast_dtype
from fastadv.model_io.loading import set_dropout
from step.batches import StepDraws
from step.buckets import Bucket, fill
from step.systems import PIECES, Phase, Piece, Setup, pieces_of

PHASES = PIECES[::2]


def attention(qkv: Tensor, batch: Bucket, heads: int, dropout: float) -> Tensor:
    """Attention of every token within its own sequence: (T, 3H) to (T, H)."""
    query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)
    bound, ends = batch.longest, batch.cu_seqlens
    if qkv.is_cuda and qkv.dtype in (torch.bfloat16, torch.float16):
        flash = torch.ops.aten._flash_attention_forward
        found = flash(query, key, value, ends, ends, bound, bound, dropout, False, False)
        return found[0].flatten(1)
    # Flash attention takes neither float32 nor the CPU: there sequences are padded, which is exact
    # too.
    count = len(batch.inverse)
    padded = [
        x.new_zeros(count * bound, *x.shape[1:])
        .index_copy(0, batch.places, x)
        .unflatten(0, (count, bound))
        .transpose(1, 2)
        for x in (query, key, value)
    ]
    # An empty sequence reads one zero, because a softmax over nothing would be NaN.
    known = ends.diff().clamp(min=1)
    mask = torch.arange(bound, device=ends.device) < known[:, None, None, None]
    found = F.scaled_dot_product_attention(*padded, attn_mask=mask, dropout_p=dropout)
    return found.transpose(1, 2).flatten(0, 1).index_select(0, batch.places).flatten(1)


def embed(ids: Tensor, positions: Tensor, module: Any, low: torch.dtype) -> tuple[Tensor, Tensor]:
    """(T,) word-pieces to (T, H), in float32 and in `low`."""
    types = module.token_type_embeddings.weight[0]
    total = module.word_embeddings(ids) + module.position_embeddings(positions) + types
    hidden = module.dropout(module.LayerNorm(total))
    return hidden, hidden.to(low)


def add_norm(product: Tensor, residual: Tensor, module: Any, low: torch.dtype) -> Any:
    """What comes after the matrix product of `module.dense`: (T, H) in float32 and in `low`."""
    hidden = module.LayerNorm(module.dropout(product + module.dense.bias) + residual)
    return hidden, hidden.to(low)


def bias_gelu(product: Tensor, dense: nn.Linear) -> Tensor:
    """Bias and GELU after the matrix product of `dense`, (T, I)."""
    return F.gelu(product + dense.bias).to(product.dtype)


class Flash:
    """B2: packed tokens through aten's flash attention, in buckets, every step one CUDA graph.

    torch.compile fuses element-wise code only: embeddings with their norm, bias with GELU, bias
    with dropout, residual and norm. Shapes are symbolic: with fixed shapes, every batch size would
    compile all of it again, and rows of fixed width are equally fast either way.

    Weights are cast once for T, and once for D and G together, because they do not change in
    between.

    Raises:
        ValueError: The encoder is no BERT with exact GELU.
    """

    name: ClassVar[str] = "b2"
    what: ClassVar[str] = "packed, flash attention, buckets, CUDA graph, compiled, fused Adam"
    # A backend of torch.compile; None means "inductor" on a GPU, and no compiling elsewhere.
    backend: ClassVar[str | None] = None
    # The most memory that a graph of the latest instance used at once from the graphs' own pool: a
    # replay allocates none, so it cannot be measured from outside.
    graph_bytes: ClassVar[int] = 0

    def __init__(self, setup: Setup) -> None:
        source, config = setup.encoder.config, setup.config
        kind = source.model_type, getattr(source, "hidden_act", None)
        if kind != ("bert", "gelu"):
            raise ValueError(
                f"found a {kind[0]} encoder with activation {kind[1]}, expected bert with gelu: "
                "--baselines b0,b1 leaves B2 out"
            )
        self._encoder: Any = copy.deepcopy(setup.encoder)
        # As in the library, the pooler is neither run nor trained.
        self._encoder.pooler = None
        if config.dropout is not None:
            set_dropout(self._encoder, self._encoder.config, config.dropout)
        heads = (copy.deepcopy(h).to(setup.device) for h in (setup.task_head, setup.discriminator))
        self._encoder.train().to(device=setup.device)
        self._task_head, self._discriminator = heads
        self._task, self._device = setup.task, setup.device
        Flash.graph_bytes = 0
        self._low = autocast_dtype(config.precision) or torch.float32
        self._cast: list[list[Tensor]] | None = None
        self._embed, self._add_norm, self._gelu = self._compiled(embed, add_norm, bias_gelu)
        self._adams = self._optimizers(config)
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[Bucket], object]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._on_gpu else None
        self._warm = False

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def _compiled(self, *parts: Callable[..., Any]) -> list[Callable[..., Any]]:
        backend = self.backend or ("inductor" if self._on_gpu else None)
        if backend is None:
            return list(parts)
        # With and without gradient, in every precision and every rate of dropout that is run.
        torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
        return [torch.compile(p, dynamic=True, fullgraph=True, backend=backend) for p in parts]

    def _optimizers(self, config: Any) -> dict[str, torch.optim.Optimizer]:
        encoder = list(self._encoder.parameters())
        discriminator = list(self._discriminator.parameters())
        owned = ([*encoder, *self._task_head.parameters()], discriminator, encoder)
        rates = (config.lr_task, config.lr_discriminator, config.lr_generator)
        options = {"betas": (config.beta1, config.beta2), "eps": config.eps, "fused": True}
        return {
            phase: torch.optim.Adam(own, lr=rate, capturable=self._on_gpu, **options)
            for phase, own, rate in zip(PHASES, owned, rates, strict=True)
        }

    def prepare(self, draws: StepDraws) -> list[Bucket]:
        """The buckets of T, D and G. After `warm_up` a missing graph is captured here, because the
        time of `prepare` does not count as a step's.
        """
        batches = [fill(batch).apply(lambda t: t.to(self._device)) for batch in draws.packed()]
        if self._warm:
            self.warm_up(batches)
        return batches

    def warm_up(self, batches: Sequence[Bucket]) -> None:
        """Captures the graph for these sizes, and compiles what it needs; does nothing on a CPU."""
        self._warm = True
        if self._on_gpu and _key(batches) not in self._graphs:
            self._graphs[_key(batches)] = self._capture(batches)

    def step(self, batches: Sequence[Bucket]) -> object:
        if not self._on_gpu:
            return self._run(batches)
        # Only needed without a warm-up: `prepare` has done it for all batches that are timed.
        self.warm_up(batches)
        graph, inputs, losses = self._graphs[_key(batches)]
        targets = [t for bucket in inputs for t in bucket.tensors()]
        torch._foreach_copy_(targets, [t for bucket in batches for t in bucket.tensors()])
        graph.replay()
        return losses

    def _run(self, batches: Sequence[Bucket]) -> dict[str, Tensor]:
        losses = {}
        for phase, batch in zip(PHASES, batches, strict=True):
            losses[phase] = self.backward(phase, batch)
            self._adams[phase].step()
        return losses

    def _capture(self, batches: Sequence[Bucket]) -> Any:
        """The graph, the tensors that it reads and its losses. Capturing updates nothing, and what
        runs before it has no updates, so weights and states stay the same.
        """
        inputs = [batch.apply(torch.clone) for batch in batches]
        self._create_states()
        self.clear()
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):
                for phase, batch in zip(PHASES, inputs, strict=True):
                    self.backward(phase, batch)
        torch.cuda.current_stream(self._device).wait_stream(side)
        self.clear()
        held = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            losses = self._run(inputs)
        used = torch.cuda.max_memory_allocated(self._device) - held
        Flash.graph_bytes = max(Flash.graph_bytes, used)
        # The gradients lie in the pool, where the next graph may reuse their memory.
        self.clear()
        return graph, inputs, losses

    def _create_states(self) -> None:
        """Creates Adam's moments, which must exist before a graph reads them.

        With moments of zero, a gradient of zero moves nothing; only the step count must be reset.
        """
        for adam in self._adams.values():
            if adam.state:
                continue
            for parameter in adam.param_groups[0]["params"]:
                parameter.grad = torch.zeros_like(parameter)
            adam.step()
            for state in adam.state.values():
                state["step"].zero_()
            self.clear()

    def pieces(self, batches: Sequence[Bucket]) -> list[Piece]:
        return pieces_of(self.backward, lambda phase: self._adams[phase].step(), tuple(batches))

    def clear(self) -> None:
        self._cast = None
        for parameter in self._parameters().values():
            parameter.grad = None

    def backward(self, phase: str, batch: Bucket) -> Tensor:
        """The loss of a phase; its gradients, and no others, are in `.grad`."""
        cast = self._cast
        self.clear()
        # D does not change the encoder, so G reads the weights that D has cast.
        self._cast = cast if phase == "generator" else None
        loss = self._loss(phase, batch)
        loss.backward()
        if phase != "discriminator":
            self._cast = None
        return loss.detach()

    def gradients(self, batches: Sequence[Bucket]) -> dict[str, Phase]:
        found: dict[str, Phase] = {}
        for phase, batch in zip(PHASES, batches, strict=True):
            loss = self.backward(phase, batch)
            named = {n: p.grad for n, p in self._parameters().items() if p.grad is not None}
            found[phase] = loss, named
        self.clear()
        return found

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self._parameters().items()}

    def _parameters(self) -> dict[str, nn.Parameter]:
        parts = ("encoder", "task_head", "discriminator")
        modules = {part: getattr(self, f"_{part}") for part in parts}
        return {
            f"{part}.{n}": p
            for part, module in modules.items()
            for n, p in module.named_parameters()
        }

    def _loss(self, phase: str, batch: Bucket) -> Tensor:
        if phase == "task":
            assert batch.labels is not None and batch.scale is not None
            hidden = self.hidden(batch)
            rows = self._pooled(hidden, batch) if self._task == "classification" else hidden
            loss = F.cross_entropy(
                self._task_head(rows), batch.labels, ignore_index=IGNORE_INDEX, reduction="sum"
            )
            return loss * batch.scale
        assert batch.targets is not None and batch.shares is not None
        head, targets = self._discriminator, batch.targets
        weight, bias = head.weight, head.bias
        if phase == "generator":
            weight, bias, targets = weight.detach(), bias.detach(), -targets
        hidden = self.hidden(batch, gradient=phase == "generator")
        logits = F.linear(self._pooled(hidden, batch), weight, bias).squeeze(-1)
        return -(F.logsigmoid(targets * logits) * batch.shares).sum()

    def _pooled(self, hidden: Tensor, batch: Bucket) -> Tensor:
        """(B, H) means: a matrix product adds in a fixed order, without atomic additions."""
        owners = torch.arange(len(batch.inverse), device=hidden.device)
        return ((batch.sequences == owners[:, None]) * batch.inverse[:, None]) @ hidden

    def hidden(self, batch: Bucket, gradient: bool = True) -> Tensor:
        """(T, H) float32, the encoder's last layer; filler tokens get some finite values."""
        if self._cast is None:
            self._cast = [_cast_layer(layer, self._low) for layer in self._encoder.encoder.layer]
        config = self._encoder.config
        rate = config.attention_probs_dropout_prob
        with torch.set_grad_enabled(gradient):
            embeddings = self._encoder.embeddings
            x, low = self._embed(batch.input_ids, batch.position_ids, embeddings, self._low)
            for layer, cast in zip(self._encoder.encoder.layer, self._cast, strict=True):
                qkv, qkv_bias, output, up, down = cast
                mixed = attention(
                    F.linear(low, qkv, qkv_bias), batch, config.num_attention_heads, rate
                )
                x, low = self._add_norm(mixed @ output.T, x, layer.attention.output, self._low)
                wide = self._gelu(low @ up.T, layer.intermediate.dense)
                x, low = self._add_norm(wide @ down.T, x, layer.output, self._low)
        return x


def _cast_layer(layer: Any, low: torch.dtype) -> list[Tensor]:
    """A layer's matrices in `low`: Q, K and V as one, their biases, and the other three."""
    own = layer.attention.self
    parts = (own.query, own.key, own.value)
    others = (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
    return [
        torch.cat([p.weight.to(low) for p in parts]),
        torch.cat([p.bias.to(low) for p in parts]),
        *(dense.weight.to(low) for dense in others),
    ]


def _key(batches: Sequence[Bucket]) -> tuple[tuple[int, int, int], ...]:
    return tuple(batch.key for batch in batches)
