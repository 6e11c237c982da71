"""What the launches of every kernel share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton


def on_device(x: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: makes it that of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over elements of `dtype` are kept and given back in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def block_of(size: int, limit: int) -> int:
    """The power of two that covers `size`, at least 16 and at most `limit`."""
    return max(16, min(limit, triton.next_power_of_2(size)))
