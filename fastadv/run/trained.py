"""What a run trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from fastadv.training.trainer import Trainer


class Trained(Protocol):
    """What is trained: a finetuner, or a model that is being pretrained."""

    @property
    def model(self) -> nn.Module:
        """Its weights."""

    @property
    def trainer(self) -> Trainer:
        """Optimisers and the step count."""

    @property
    def task(self) -> str:
        """What it learns."""

    @property
    def labels(self) -> Sequence[str]:
        """Classes, tags, or languages."""

    @property
    def config(self) -> Any:
        """Settings, a dataclass."""
