"""Compensations of weights: float32 has too few bits for the paper's rates (docs/adr/0008)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter
from torch.utils.weak import WeakTensorKeyDictionary

from fastadv.weights.flat import FlatParameters


class Compensations:
    """The compensations of float32 weights, shared by all optimisers that move them."""

    def __init__(self) -> None:
        self._of: Any = WeakTensorKeyDictionary()

    def of(self, parameter: Parameter) -> Tensor | None:
        """bfloat16 in the parameter's shape, zeros at first; None for float64, which needs none."""
        if parameter.dtype != torch.float32:
            return None
        if parameter not in self._of:
            self._of[parameter] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        found: Tensor = self._of[parameter]
        return found

    def put(self, flat: FlatParameters) -> None:
        """Makes the compensations of flat parameters views of the flat compensation."""
        if flat.compensation is not None:
            for parameter, compensation in zip(
                flat.parameters, flat.views(flat.compensation), strict=True
            ):
                self._of[parameter] = compensation
