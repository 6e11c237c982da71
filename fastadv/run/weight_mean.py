"""The mean of a model's weights over a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_COUNT, _STEPS = "count", "steps"


class WeightMean:
    """The mean over the evaluations in the second half of a run.

    As in Schmidt, Vulić and Glavaš, "Free Lunch: Robust Cross-Lingual Transfer via Model
    Checkpoint Averaging", ACL 2023, who average checkpoints of a run whose target labels are not
    seen; over a run's end alone as in Izmailov et al., "Averaging Weights Leads to Wider Optima
    and Better Generalization", UAI 2018.

    Args:
        steps: The steps of the whole run. One that is resumed for more begins a new mean: its
            second half is another.

    Attributes:
        sums: The sum of every weight, by name.
        count: Evaluations in them.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.count = steps, 0
        self.sums: dict[str, Tensor] = {}

    def add(self, model: nn.Module, step: int) -> None:
        """The weights after `step` steps, if these are half of all."""
        if 2 * step < self.steps:
            return
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.sums:
                    self.sums[name] += parameter
                else:
                    self.sums[name] = parameter.detach().clone()
        self.count += 1

    def weights(self) -> dict[str, Tensor]:
        """The mean so far, by name; empty before the first."""
        return {name: total / self.count for name, total in self.sums.items()}

    def state_tensors(self) -> dict[str, Tensor]:
        """What `load_state_tensors` takes."""
        return {
            **self.sums,
            _COUNT: torch.tensor(self.count),
            _STEPS: torch.tensor(self.steps),
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on with the mean of a run that was stopped."""
        sums = dict(tensors)
        count, steps = int(sums.pop(_COUNT)), int(sums.pop(_STEPS))
        if steps == self.steps:
            self.sums = {name: tensor.clone() for name, tensor in sums.items()}
            self.count = count
