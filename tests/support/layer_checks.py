"""Checks of the operations of an encoder's layer against their references in float64.

They take the operation as a function, so that test_layer_checks.py can hand them broken ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from op_checks import assert_close
from torch import Tensor

from fastadv.ops.bias_gelu import bias_gelu_ref
from fastadv.ops.dropout_add_layer_norm import dropout_add_layer_norm_ref
from fastadv.ops.dtypes import acc_dtype
from fastadv.ops.embedding_layer_norm import embedding_layer_norm_ref
from fastadv.ops.philox import keep_mask_ref, keep_scale

# Large enough to show in every result: one that left it out, or put it elsewhere, is far off.
EPS = 0.1
SITE = 5

Op = Callable[..., Tensor]


@dataclass(frozen=True)
class LayerCase:
    """Tokens, columns, tokens without gradient, and the probability of dropout."""

    tokens: int
    hidden: int
    leading: int = 0
    p: float = 0.0

    def random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.tokens * 1009 + self.hidden)

    def seed(self, device: str) -> Tensor:
        # Both words of the key are in use.
        return torch.tensor([-(2**45) + self.tokens], device=device)

    def factors(self, device: str) -> Tensor:
        """What dropout multiplies by: (tokens, hidden) float64."""
        rows = torch.arange(self.tokens, device=device)
        if self.p == 0:
            return torch.ones(self.tokens, self.hidden, dtype=torch.float64, device=device)
        return keep_mask_ref(self.seed(device), SITE, rows, self.hidden, self.p) * keep_scale(
            self.p
        )


LAYER_CASES = {
    "odd": LayerCase(17, 77),
    "leading": LayerCase(13, 40, leading=5),
    "all leading": LayerCase(6, 33, leading=6, p=0.5),
    "no tokens": LayerCase(0, 8, p=0.5),
    "one number": LayerCase(1, 1),
    "dropout": LayerCase(33, 130, p=0.1),
    "dropout, leading": LayerCase(70, 300, leading=21, p=0.3),
    "most dropped": LayerCase(9, 33, leading=2, p=0.97),
    # More than 64 parts of 16 rows.
    "many rows": LayerCase(1061, 24, leading=3, p=0.1),
    "wide": LayerCase(5, 771, p=0.1),
}

GELU_CASES = {
    "odd": LayerCase(17, 77),
    "leading": LayerCase(13, 40, leading=5),
    "all leading": LayerCase(6, 33, leading=6),
    "no tokens": LayerCase(0, 8),
    "one number": LayerCase(1, 1),
    "many rows": LayerCase(1061, 24, leading=3),
    "wide": LayerCase(5, 3079),
}


def run(op: Op, leaves: Sequence[Tensor | None], grad: Tensor) -> list[Tensor]:
    """The result of op and the gradients of the tensors, for the result's gradient `grad`."""
    tensors = [None if x is None else x.detach().requires_grad_() for x in leaves]
    y = op(*tensors)
    wanted = [x for x in tensors if x is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad.to(y.dtype))]


def compare(
    names: Sequence[str],
    got: Sequence[Tensor],
    plain: Sequence[Tensor],
    exact: Sequence[Tensor],
    scales: Sequence[Tensor],
) -> None:
    for name, *values in zip(names, got, plain, exact, scales, strict=True):
        try:
            assert_close(*values)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def normal_grad(case: LayerCase, dtype: torch.dtype, device: str) -> Tensor:
    """A gradient of the result, NaN in the leading rows, which nobody may read."""
    grad = torch.randn(case.tokens, case.hidden, generator=case.random()).to(device, dtype)
    grad[: case.leading] = torch.nan
    return grad


def check_bias_gelu(op: Op, case: LayerCase, dtype: torch.dtype, device: str = "cpu") -> None:
    """Result and gradients of `op(x, bias, leading=)` for one case."""
    random = case.random()
    # As far out as the tail of gelu is not zero in any of the types.
    x = (torch.randn(case.tokens, case.hidden, generator=random) * 3).to(device, dtype)
    bias = torch.randn(case.hidden, generator=random).to(device, acc_dtype(dtype))
    grad = normal_grad(case, dtype, device)

    def call(function: Op) -> Op:
        return lambda x, bias: function(x, bias, leading=case.leading)

    exact = run(call(bias_gelu_ref), (x.double(), bias.double()), grad)
    plain = run(call(bias_gelu_ref), (x, bias), grad)
    got = run(call(op), (x, bias), grad)
    assert got[0].dtype == got[1].dtype == dtype
    v = x.double().abs() + bias.double().abs()
    # The derivative's terms, Phi and v times the density, are at most 1.  For 16 bits it may be off
    # by 2^-15, a sixteenth of half a unit of float16 and less of bfloat16, before it is rounded.
    size = grad.double().nan_to_num().abs()
    coarse = 2**-15 / torch.finfo(torch.float32).eps / 2 if dtype.itemsize == 2 else 2
    compare(("y", "x", "bias"), got, plain, exact, (v, size * 2, size.sum(0) * coarse))


def layer_norm_scales(
    z: Tensor, terms: Tensor, gain: Tensor, beta: Tensor, grad: Tensor, low: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sizes of the terms of y, and of the gradients of z, gain and beta, in float64.

    `terms` is the size of what z adds up.  For the backward z is kept in `low`: an error of one
    unit (of half a unit where it is rounded, but Triton's interpreter cuts), which is also one of
    n = (z - mean) / std, and passes on to the gradients of z and gain.
    """
    kind = torch.finfo(acc_dtype(low))
    # In units of the sums' type, of which assert_close allows two.
    rounding = torch.finfo(low).eps / kind.eps / 2
    mean, variance = z.mean(1, keepdim=True), (z - z.mean(1, keepdim=True)).square().mean(1, True)
    inverse = (variance + EPS).rsqrt()
    n, unit = (z - mean) * inverse, (terms + mean.abs()) * inverse
    size = (grad * gain).abs()
    mean_size, mean_unit = size.mean(1, keepdim=True), (size * unit).mean(1, keepdim=True)
    along = (grad * gain * n).mean(1, keepdim=True).abs()
    exact = size + mean_size + n.abs() * (size * n.abs()).mean(1, keepdim=True) + unit * mean_unit
    # The last term, of second order, is all there is where n is 0.
    shaken = unit * along + n.abs() * mean_unit + torch.finfo(low).eps * unit * mean_unit
    return (
        unit * gain.abs() + beta.abs(),
        inverse * (exact + rounding * shaken),
        grad.abs() * unit * (1 + rounding),
        grad.abs(),
    )


def check_dropout_add_layer_norm(
    op: Op, case: LayerCase, dtype: torch.dtype, device: str = "cpu"
) -> None:
    """Result and gradients of `op(x, bias, residual, gain, beta, **options)` for one case."""
    random, acc = case.random(), acc_dtype(dtype)
    shape = (case.tokens, case.hidden)
    x = torch.randn(shape, generator=random).to(device, dtype)
    # Away from mean zero, so that a wrong mean is far off.
    residual = (torch.randn(shape, generator=random) + 0.5).to(device, acc)
    bias, gain, beta = (
        torch.randn(case.hidden, generator=random).to(device, acc) for _ in range(3)
    )
    grad = normal_grad(case, acc, device)
    inputs = (x, bias, residual, gain, beta)

    def call(function: Op) -> Op:
        return lambda *tensors: function(
            *tensors, eps=EPS, p=case.p, seed=case.seed(device), site=SITE, leading=case.leading
        )

    exact = run(call(dropout_add_layer_norm_ref), [x.double() for x in inputs], grad)
    plain = run(call(dropout_add_layer_norm_ref), inputs, grad)
    got = run(call(op), inputs, grad)
    assert got[0].dtype == got[3].dtype == acc
    assert got[1].dtype == dtype
    factors = case.factors(device)
    z = (x.double() + bias.double()) * factors + residual.double()
    terms = (x.double().abs() + bias.double().abs()) * factors + residual.double().abs()
    y, grad_z, grad_gain, grad_beta = layer_norm_scales(
        z, terms, gain.double(), beta.double(), grad.double().nan_to_num(), dtype
    )
    rest = slice(case.leading, None)
    scales = (
        y, grad_z * factors, (grad_z * factors)[rest].sum(0), grad_z, grad_gain[rest].sum(0),
        grad_beta[rest].sum(0),
    )  # fmt: skip
    compare(("y", "x", "bias", "residual", "gain", "beta"), got, plain, exact, scales)


def check_embedding_layer_norm(
    op: Op, case: LayerCase, dtype: torch.dtype, device: str = "cpu", token_type: bool = True
) -> None:
    """Result and gradients of `op(input_ids, position_ids, *tables, **options)` for one case."""
    random = case.random()
    words, places = 23, 11
    input_ids = torch.randint(0, words, (case.tokens,), generator=random).to(device)
    position_ids = torch.randint(0, places, (case.tokens,), generator=random).to(device)
    word = torch.randn(words, case.hidden, generator=random) + 0.5
    position = torch.randn(places, case.hidden, generator=random)
    kind, gain, bias = (torch.randn(case.hidden, generator=random) for _ in range(3))
    tables = [
        None if x is None else x.to(device, dtype)
        for x in (word, position, kind if token_type else None, gain, bias)
    ]
    grad = normal_grad(case, dtype, device)

    def call(function: Op) -> Op:
        return lambda *tensors: function(
            input_ids, position_ids, *tensors[:2], tensors[2] if token_type else None,
            *tensors[-2:], eps=EPS, p=case.p, seed=case.seed(device), site=SITE,
            leading=case.leading, padding_idx=3, position_padding_idx=2,
        )  # fmt: skip

    given = [x for x in tables if x is not None]
    exact = run(call(embedding_layer_norm_ref), [x.double() for x in given], grad)
    plain = run(call(embedding_layer_norm_ref), given, grad)
    got = run(call(op), given, grad)
    assert all(x.dtype == dtype for x in got)
    double = [x.double() for x in given]
    rows = [double[0][input_ids], double[1][position_ids], *(double[2:3] if token_type else [])]
    z, terms = sum(rows), sum(row.abs() for row in rows)
    factors = case.factors(device)
    passed = grad.double().nan_to_num() * factors
    y, grad_z, grad_gain, grad_bias = layer_norm_scales(
        z, terms, double[-2], double[-1], passed, dtype
    )
    sums = [grad_gain.sum(0), grad_bias.sum(0)]
    if token_type:
        sums.insert(0, grad_z.sum(0))
    grad_word = torch.zeros_like(double[0]).index_add(0, input_ids, grad_z)
    grad_position = torch.zeros_like(double[1]).index_add(0, position_ids, grad_z)
    names = ["y", "word", "position", *(["token_type"] if token_type else []), "gain", "bias"]
    compare(names, got, plain, exact, [y * factors, grad_word, grad_position, *sums])
