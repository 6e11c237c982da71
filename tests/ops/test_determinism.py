"""Every native operation has the same bits on any number of threads, at every level of instructions
that this processor can be held to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from op_checks import need, run_with_environment
from torch import Tensor

from fastadv import ops
from fastadv.ops.adam import adam, gradient_norm
from fastadv.ops.bias_gelu import bias_gelu
from fastadv.ops.cross_entropy import cross_entropy
from fastadv.ops.dropout_add_layer_norm import dropout_add_layer_norm
from fastadv.ops.embedding_adam import embedding_adam, embedding_adam_catch_up
from fastadv.ops.embedding_layer_norm import embedding_layer_norm
from fastadv.ops.linear import linear
from fastadv.ops.varlen_attention import varlen_attention

THREADS = (1, 2, 3, 4)
LAYER = {"p": 0.1, "site": 3, "leading": 7, "backend": "native"}
Results = Iterator[tuple[str, list[Tensor]]]


def outcome(
    op: Callable[..., Tensor | tuple[Tensor, Tensor]], leaves: list[Tensor]
) -> list[Tensor]:
    """The result, the gradients of the floating-point arguments for a fixed gradient of it, and the
    result in inference mode, which the threads of a pool do not inherit.
    """
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    found = op(*leaves)
    y = found[0] if isinstance(found, tuple) else found
    random = torch.Generator().manual_seed(5)
    grad = torch.randn(y.shape, generator=random).to(y.dtype)
    with torch.inference_mode():
        found = op(*(x.detach() for x in leaves))
        quiet = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(quiet.clone(), y.detach())
    return [y.detach(), *torch.autograd.grad(y, leaves, grad), quiet]


def results(dtype: torch.dtype) -> Results:
    """Name and tensors of every operation, over sizes that several threads share out."""
    random = torch.Generator().manual_seed(1)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    seed = torch.tensor([2**40 + 3])

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    def wide(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(acc)

    # Sums over many tokens for few weights, which libraries like to split; odd depths; many tiles.
    for rows, depth, width in ((1300, 130, 522), (4000, 64, 128), (70, 33, 9), (650, 600, 1100)):
        tensors = [normal(rows, depth), wide(width, depth) / depth**0.5, wide(width)]
        yield (
            f"linear {rows} {depth} {width}",
            outcome(lambda *x: linear(*x, leading=5, backend="native"), tensors),
        )
        squares = torch.zeros((), dtype=torch.float64)
        grad_weight = torch.empty(width, depth, dtype=acc)
        grad = normal(rows, width)
        torch.ops.fastadv.linear_backward_weight(grad, tensors[0], grad_weight, None, squares)
        yield f"squares {rows} {depth} {width}", [squares]
    # One head of one sequence is one task; the others are many.
    for lengths, heads, dim in (([700], 1, 64), ([7, 190, 0, 77, 40], 4, 32), ([65, 9], 2, 33)):
        offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        settings = {"p": 0.1, "seed": seed, "leading": 7 if lengths[0] == 7 else 0}
        attention = partial(
            varlen_attention, cu_seqlens=offsets, max_seqlen=max(lengths), heads=heads,
            backend="native", **settings,
        )  # fmt: skip
        qkv = normal(sum(lengths), 3 * heads * dim)
        yield f"varlen_attention {lengths}", outcome(attention, [qkv])
    tokens, width, vocabulary = 1061, 390, 97
    ids = torch.randint(vocabulary, (tokens,), generator=random)
    yield (
        "embedding_layer_norm",
        outcome(
            lambda *x: embedding_layer_norm(
                ids, ids % 13, *x, eps=1e-12, seed=seed, padding_idx=0, **LAYER
            ),
            [wide(vocabulary, width), wide(13, width), wide(width), wide(width), wide(width)],
        ),
    )
    yield (
        "dropout_add_layer_norm",
        outcome(
            lambda *x: dropout_add_layer_norm(*x, eps=1e-12, seed=seed, **LAYER),
            [normal(tokens, width), wide(width), wide(tokens, width), wide(width), wide(width)],
        ),
    )
    yield (
        "bias_gelu",
        outcome(
            lambda *x: bias_gelu(*x, leading=7, backend="native"),
            [normal(tokens, width), wide(width)],
        ),
    )
    cu_seqlens = torch.tensor([0, 500, 500, 700, tokens], dtype=torch.int32)
    yield (
        "masked_mean_pool",
        outcome(
            lambda x: ops.masked_mean_pool(x, cu_seqlens, backend="native"), [normal(tokens, width)]
        ),
    )
    targets = (torch.rand(tokens, generator=random) < 0.5).to(acc)
    yield (
        "linear_bce",
        outcome(
            lambda h, w, b: ops.linear_bce(h, w, b, targets, backend="native"),
            [normal(tokens, width), wide(width), wide(1)],
        ),
    )
    yield (
        "cross_entropy",
        outcome(lambda x: cross_entropy(x, ids, backend="native"), [normal(tokens, vocabulary)]),
    )
    yield from updates(random, acc)


def updates(random: torch.Generator, acc: torch.dtype) -> Results:
    """The operations that write over their arguments."""

    def tensors(*shape: int) -> list[Tensor]:
        found = [torch.randn(shape, generator=random).to(acc) for _ in range(4)]
        found[3].square_()
        return found

    rates = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "backend": "native"}
    lists = [list(x) for x in zip(tensors(300, 700), tensors(77), tensors(9, 13), strict=True)]
    weights, grads, exp_avgs, exp_avg_sqs = lists
    low = [torch.zeros_like(w, dtype=torch.bfloat16) for w in weights if acc == torch.float32]
    yield "gradient_norm", [gradient_norm(grads, backend="native")]
    adam(weights, low, grads, exp_avgs, exp_avg_sqs, [3, 4, 5], **rates)
    yield "adam", [*weights, *low, *exp_avgs, *exp_avg_sqs]
    table, grad, exp_avg, exp_avg_sq = tensors(600, 200)
    compensation = torch.zeros_like(table, dtype=torch.bfloat16) if acc == torch.float32 else None
    rows = torch.arange(0, 600, 2)
    embedding_adam(
        table, compensation, exp_avg, exp_avg_sq, rows, grad[rows].contiguous(), step=9, **rates
    )
    yield "embedding_adam", [table.clone(), exp_avg.clone(), exp_avg_sq.clone()]
    rates.pop("lr")
    embedding_adam_catch_up(
        table, compensation, exp_avg, exp_avg_sq, rows, torch.full((300,), 9), step=700,
        lrs=torch.full((700,), 1e-3, dtype=torch.float64), base=0, **rates,
    )  # fmt: skip
    yield "embedding_adam_catch_up", [table, exp_avg, exp_avg_sq]


def bits(x: Tensor) -> Tensor:
    """The bytes of a tensor, in which a zero has its sign and NaNs are equal."""
    return x.contiguous().reshape(-1).view(torch.uint8)


def check() -> None:
    """Every operation in every precision, on each number of threads as on one."""
    before = torch.get_num_threads()
    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            first: dict[str, list[Tensor]] = {}
            for threads in THREADS:
                torch.set_num_threads(threads)
                for name, found in results(dtype):
                    wanted = first.setdefault(name, found)
                    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
                        same = torch.equal(bits(a), bits(b))
                        assert same, f"{name}, {dtype}, tensor {number}: other bits on {threads}"
    finally:
        torch.set_num_threads(before)


SCRIPT = "from test_determinism import check; check()"
# What libraries and kernels may be held to; a processor that has less uses that.
LEVELS = [
    {},
    {"FASTADV_CPU_LEVEL": "portable"},
    {"FASTADV_CPU_LEVEL": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
]


def name_of(level: dict[str, str]) -> str:
    return ",".join(level.values()) or "all it has"


@pytest.mark.parametrize("level", LEVELS, ids=name_of)
def test_same_bits_on_any_number_of_threads(level: dict[str, str]) -> None:
    need("linear", "native", "cpu")
    run_with_environment(SCRIPT, level)


@pytest.mark.parametrize("level", [LEVELS[0], LEVELS[1], LEVELS[4]], ids=name_of)
def test_same_bits_where_mkl_splits_sums(
    level: dict[str, str], as_on_intel: dict[str, str]
) -> None:
    need("linear", "native", "cpu")
    run_with_environment(SCRIPT, level | as_on_intel)


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AssertionError, match="FASTADV_CPU_LEVEL is 'xx', expected one of portable"):
        run_with_environment("import fastadv.backends", {"FASTADV_CPU_LEVEL": "xx"})
