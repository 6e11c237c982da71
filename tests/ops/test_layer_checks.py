"""The checks of the layer's operations bite, and hold on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_checks import (
    GELU_CASES,
    LAYER_CASES,
    check_bias_gelu,
    check_dropout_add_layer_norm,
    check_embedding_layer_norm,
)
from op_checks import CPU_LEVELS, need, run_at_cpu_level
from torch import Tensor

from fastadv.ops.bias_gelu import bias_gelu_ref
from fastadv.ops.dropout_add_layer_norm import dropout_add_layer_norm_ref
from fastadv.ops.embedding_layer_norm import embedding_layer_norm_ref


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """The value of one and the gradient of another."""
    return value.detach() + other - other.detach()


def tanh_form(x: Tensor, bias: Tensor, leading: int) -> Tensor:
    """The approximation by tanh in place of the exact form."""
    return torch.nn.functional.gelu((x.to(bias.dtype) + bias), approximate="tanh").to(x.dtype)


def sigmoid_slope(x: Tensor, bias: Tensor, leading: int) -> Tensor:
    """The right value with the gradient of v sigmoid(1.702 v)."""
    v = x.to(bias.dtype) + bias
    other = (v * torch.sigmoid(1.702 * v)).to(x.dtype)
    return with_gradient_of(bias_gelu_ref(x, bias, leading=leading), other)


def bias_left_out(x: Tensor, bias: Tensor, leading: int) -> Tensor:
    return bias_gelu_ref(x, bias * 0, leading=leading)


def leading_rows_count(x: Tensor, bias: Tensor, leading: int) -> Tensor:
    """Gives the leading rows a gradient."""
    return bias_gelu_ref(x, bias, leading=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mutant", [tanh_form, sigmoid_slope, bias_left_out, leading_rows_count])
def test_gelu_checks_bite(mutant: Callable[..., Tensor], dtype: torch.dtype) -> None:
    check_bias_gelu(bias_gelu_ref, GELU_CASES["leading"], dtype)
    with pytest.raises(AssertionError):
        check_bias_gelu(mutant, GELU_CASES["leading"], dtype)


NORM_MUTANTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another eps": lambda options: options | {"eps": 0.0},
    "another site": lambda options: options | {"site": options["site"] + 1},
    "another seed": lambda options: options | {"seed": options["seed"] + 1},
    "high word of the seed": lambda options: options | {"seed": options["seed"] + 2**32},
    "another probability": lambda options: options | {"p": options["p"] + 2**-10},
    "no dropout": lambda options: options | {"p": 0.0},
    "leading rows count": lambda options: options | {"leading": 0},
    "a row too few": lambda options: options | {"leading": options["leading"] + 1},
}
TABLE_MUTANTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    **NORM_MUTANTS,
    "padding counts": lambda options: options | {"padding_idx": None},
    "padding position counts": lambda options: options | {"position_padding_idx": None},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mutant", NORM_MUTANTS)
def test_layer_norm_checks_bite(mutant: str, dtype: torch.dtype) -> None:
    case, change = LAYER_CASES["dropout, leading"], NORM_MUTANTS[mutant]
    check_dropout_add_layer_norm(dropout_add_layer_norm_ref, case, dtype)
    with pytest.raises(AssertionError):
        check_dropout_add_layer_norm(
            lambda *leaves, **options: dropout_add_layer_norm_ref(*leaves, **change(options)),
            case,
            dtype,
        )


def statistics_as_constants(*leaves: Tensor, **options: Any) -> Tensor:
    """Leaves the means out of the gradient of z."""
    y = dropout_add_layer_norm_ref(*leaves, **options)
    x, bias, residual, gain, beta = leaves
    z = x.to(residual.dtype) + bias + residual
    mean, variance = (
        moment.detach() for moment in (z.mean(1, True), z.var(1, correction=0, keepdim=True))
    )
    n = (z - mean) * (variance + options["eps"]).rsqrt()
    return with_gradient_of(y, n * gain + beta)


def sixteen_bit_stream(*leaves: Tensor, **options: Any) -> Tensor:
    """Rounds the result, which is the residual of the next layer, to bfloat16."""
    y = dropout_add_layer_norm_ref(*leaves, **options)
    return y.bfloat16().to(y.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mutant", [statistics_as_constants, sixteen_bit_stream])
def test_layer_norm_checks_bite_on_arithmetic(
    mutant: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    with pytest.raises(AssertionError):
        check_dropout_add_layer_norm(mutant, LAYER_CASES["odd"], dtype)


@pytest.mark.parametrize("mutant", TABLE_MUTANTS)
def test_embedding_checks_bite(mutant: str) -> None:
    case, change = LAYER_CASES["dropout, leading"], TABLE_MUTANTS[mutant]
    check_embedding_layer_norm(embedding_layer_norm_ref, case, torch.float32)
    with pytest.raises(AssertionError):
        check_embedding_layer_norm(
            lambda *given, **options: embedding_layer_norm_ref(*given, **change(options)),
            case,
            torch.float32,
        )


LEVEL_SCRIPT = """
from functools import partial
import torch
from fastadv.ops.bias_gelu import bias_gelu
from fastadv.ops.dropout_add_layer_norm import dropout_add_layer_norm
from fastadv.ops.embedding_layer_norm import embedding_layer_norm
from layer_checks import *
from op_checks import DTYPES
from test_bias_gelu import test_far_out, test_tail_keeps_its_precision
from test_philox import check_native_masks
check_native_masks()
native = [partial(op, backend="native")
          for op in (bias_gelu, dropout_add_layer_norm, embedding_layer_norm)]
for dtype in DTYPES:
    test_far_out(dtype)
    for case in GELU_CASES.values():
        check_bias_gelu(native[0], case, dtype)
    for case in LAYER_CASES.values():
        check_dropout_add_layer_norm(native[1], case, dtype)
for dtype in (torch.float32, torch.float64):
    test_tail_keeps_its_precision(dtype)
    for case in LAYER_CASES.values():
        check_embedding_layer_norm(native[2], case, dtype)
"""


@pytest.mark.parametrize(("level", "allowed"), CPU_LEVELS)
def test_every_cpu_level(level: str, allowed: list[str]) -> None:
    need("bias_gelu", "native", "cpu")
    run_at_cpu_level(LEVEL_SCRIPT, level, allowed)
