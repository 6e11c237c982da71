"""What a run trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from fastadv.tasks.class_shares import Matched
from fastadv.tasks.preparation import Preparation
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


class Finetuned(Trained, Protocol):
    """What a finetuner has beyond that: what its labels' classes are matched by.

    Attributes:
        class_counts: Of each class, in the labelled training data; see `Task.counts`.
        matched: Matched predictions by language.
    """

    class_counts: Mapping[str, int]
    matched: dict[str, Matched]

    @property
    def preparation(self) -> Preparation:
        """How its data are read."""
