"""Memory of the encoder's passes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastadv.ops.memory import empty


class Stack:
    """A buffer for what every layer writes for all tokens; only the rows with a gradient are kept.

    Layers go downwards in memory: the leading rows of a layer are where the next layer's last rows
    will be, so that all layers together take (leading + layers * rest) rows. The next layer
    overwrites what a layer wrote for leading tokens.
    """

    def __init__(
        self, like: Tensor, layers: int, leading: int, rest: int, width: int, dtype: torch.dtype
    ) -> None:
        self.layers, self.leading, self.rest = layers, leading, rest
        self.rows = empty(like, (leading + layers * rest, width), dtype)

    def all(self, layer: int) -> Tensor:
        """(leading + rest, width) to write."""
        start = (self.layers - 1 - layer) * self.rest
        return self.rows[start : start + self.leading + self.rest]

    def kept(self, layer: int) -> Tensor:
        """(rest, width): the rows with a gradient."""
        return self.all(layer)[self.leading :]


@dataclass
class Saved:
    """What the forward leaves for the backward: one stack per kind, by layer."""

    inputs: Stack
    qkv: Stack
    context: Stack
    lse: Stack
    attended: Stack
    inner: Stack
    sums: dict[int, Stack] = field(default_factory=dict)
    statistics: dict[int, Stack] = field(default_factory=dict)
