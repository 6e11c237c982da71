"""The weights that new layers begin with."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def draw_weights(layer: nn.Linear, std: float, seed: int) -> None:
    """Normal weights from `seed` alone, zero bias; in place."""
    layer.weight.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
    layer.bias.zero_()
