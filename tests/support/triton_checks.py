"""What the tests of the packed encoder's Triton kernels share.

They call each kernel's function by itself; the public functions have tests of their own.
"""

from __future__ import annotations

import importlib
from typing import Any

import op_checks
import pytest
import torch
from op_checks import DEVICES, DTYPES, need
from torch import Tensor

from fastadv.ops.philox import keep_mask_ref, keep_scale

EPS = 1e-12
SITE = 5
# Bits in both words of the key, and a negative number.
SEED = -0x123456789ABCDEF

on_devices = pytest.mark.parametrize("device", DEVICES)
in_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def in_some_dtypes(cases: list[Any]) -> list[tuple[Any, torch.dtype]]:
    """The first two cases in every type and the others in two: a GPU's tests compile each."""
    return [(case, dtype) for i, case in enumerate(cases) for dtype in DTYPES[: 4 if i < 2 else 2]]


def kernels(op: str, device: str) -> Any:
    need(op, "triton", device)
    return importlib.import_module(f"fastadv.kernels.{op}")


def acc_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """Every element must be written: what is not stays NaN."""
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


def normal(*shape: int, dtype: torch.dtype, device: str, shift: float = 0.0) -> Tensor:
    return (torch.randn(*shape) + shift).to(device, dtype)


def factors(seed: Tensor, rows: Tensor, columns: int, p: float) -> Tensor:
    """0 or the scale of kept elements, float64; ones for p = 0."""
    if p == 0:
        return torch.ones(rows.shape[0], columns, dtype=torch.float64, device=seed.device)
    return keep_mask_ref(seed, SITE, rows, columns, p).double() * keep_scale(p)


def assert_close(got: Tensor, plain: Tensor, exact: Tensor, scale: Tensor) -> None:
    """op_checks.assert_close; scale is the size of the terms that make up an element.

    In float64 the plain result is the exact one, without an error to go by, so that the floor must
    hold the roundings of a whole chain of operations: 16 units instead of 2.
    """
    op_checks.assert_close(got, plain, exact, scale, 16 if got.dtype == torch.float64 else 2)
