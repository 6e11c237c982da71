"""What a run trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from fastadv.training.trainer import Trainer


class Trained(Protocol):
    """A finetuner, or a model that is being pretrained."""

    @property
    def model(self) -> Any:
        """Its weights, a `torch.nn.Module` with an `encoder`."""

    @property
    def trainer(self) -> Trainer:
        """Optimisers and the step count."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    @property
    def tokenizer(self) -> Any:
        """A fast one."""

    @property
    def task(self) -> str:
        """What it learns."""

    @property
    def labels(self) -> Sequence[str]:
        """Classes, tags, or languages."""

    @property
    def config(self) -> Any:
        """Settings, a dataclass."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes the model as it is now into a folder."""
