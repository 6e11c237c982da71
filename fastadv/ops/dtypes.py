"""Element types that the operations take."""

from __future__ import annotations

import torch

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over elements of `dtype` are kept and returned."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_float(x: torch.Tensor, name: str) -> None:
    """ValueError unless x is float32, bfloat16, float16 or float64."""
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"{name} has dtype {x.dtype}, expected float32, bfloat16, float16 or float64"
        )


def check_like(x: torch.Tensor, shape: tuple[int, ...], like: torch.Tensor, name: str) -> None:
    """ValueError unless x has this shape and is on the device of `like`."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {shape}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, expected {like.device}")


def check_dtype(x: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    """ValueError unless x has this dtype."""
    if x.dtype != dtype:
        raise ValueError(f"{name} has dtype {x.dtype}, expected {dtype}")


def check_contiguous(x: torch.Tensor, name: str) -> None:
    """ValueError unless x, which is written in place, is contiguous."""
    if not x.is_contiguous():
        raise ValueError(f"{name} has strides {x.stride()}, expected a contiguous tensor")


def check_leading(leading: int, rows: int) -> None:
    """ValueError unless the number of leading rows without gradient is between 0 and `rows`."""
    if not 0 <= leading <= rows:
        raise ValueError(f"leading is {leading}, expected at least 0 and at most the rows, {rows}")
