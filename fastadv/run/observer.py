"""What looks at a model while a run goes on, beyond scores on labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from fastadv.finetuner import AdversarialFinetuner


class Observer(Protocol):
    """Called by `fit` at every evaluation; must leave the model as it is."""

    def observe(self, tuner: AdversarialFinetuner, step: int) -> Mapping[str, Any]:
        """What is kept in the evaluation's record as "observed": anything JSON can hold.

        Args:
            tuner: With the weights as they are after `step` steps.
            step: Steps done.
        """

    def state_tensors(self) -> Mapping[str, Tensor]:
        """What it carries from evaluation to evaluation, to be kept in checkpoints."""

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `state_tensors` gave before a run was stopped."""
