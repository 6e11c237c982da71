"""Memory that operations and the encoder's passes write to."""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv import backends


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised, on like's device; on a CPU from blocks that are kept between steps."""
    if like.device.type == "cpu" and backends.extension is not None:
        return torch.ops.fastadv.pooled_empty(like, list(shape), dtype)
    return torch.empty(shape, dtype=dtype, device=like.device)
