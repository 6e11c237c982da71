"""What the trainer asks of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Self

from torch import Tensor
from torch.nn.parameter import Parameter

from fastadv.batches.packing import PackedBatch
from fastadv.nn.adversary import Adversary
from fastadv.nn.encoder import Encoder


class Trainable(Protocol):
    """θ, the task's head and the adversary, as one `torch.nn.Module` whose parts are named
    "encoder", "task_head" and "discriminator".
    """

    @property
    def encoder(self) -> Encoder:
        """h_θ."""

    @property
    def discriminator(self) -> Adversary:
        """The adversary."""

    def task_loss(self, batch: Any) -> Tensor:
        """L_T, (), of a labelled batch."""

    def pooled(self, batch: PackedBatch, leading: PackedBatch | None = None) -> Tensor:
        """h̄_θ(x), (B, H); with `leading`, those of its sequences come first, without gradient."""

    # The rest is of torch.nn.Module.
    def parameters(self, recurse: bool = True) -> Iterator[Parameter]: ...
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]: ...
    def train(self, mode: bool = True) -> Self: ...
