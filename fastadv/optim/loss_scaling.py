"""Loss scaling: float16 loses gradients below 6e-8, so gradients of a larger loss are computed.

Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2; growth and backoff are the
same as in `torch.amp.GradScaler`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FIRST_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
# Below this the loss is scaled down, not up, and gradients still are not finite.
LEAST_SCALE = 1.0


class LossScaler:
    """The loss scale of one phase. It doubles after `GROWTH_INTERVAL` finite gradients in a row,
    and halves after one that is not finite, whose update is left out.

    Args:
        enabled: If False, the scale is always 1.
        device: The device of the scale.

    Attributes:
        tensor: (3,) float64: the scale, finite gradients in a row, and the interval; or None.
    """

    def __init__(self, enabled: bool, device: torch.device | str = "cpu") -> None:
        state = [FIRST_SCALE, 0.0, GROWTH_INTERVAL]
        self.tensor = torch.tensor(state, dtype=torch.float64, device=device) if enabled else None

    @property
    def scale(self) -> float:
        """The current scale; the host waits for a GPU."""
        return 1.0 if self.tensor is None else float(self.tensor[0])

    def scaled(self, loss: Tensor) -> Tensor:
        """loss () times the scale."""
        return loss if self.tensor is None else loss * self.tensor[0].to(loss.dtype)

    def update(self, finite: bool) -> None:
        """Called after a gradient; on the device `adam_begin` does this."""
        if self.tensor is None:
            return
        scale, streak, interval = self.tensor.tolist()
        streak = streak + 1 if finite else 0
        if not finite:
            scale /= 2
        elif streak >= interval:
            scale, streak = 2 * scale, 0
        self.tensor.copy_(torch.tensor([scale, streak, interval]))

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        if self.tensor is None:
            return {}
        return {"scale": self.tensor[0], "streak": self.tensor[1]}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `state_tensors` gave.

        Raises:
            ValueError: Something is missing.
        """
        for i, name in enumerate(self.state_tensors()):
            if name not in tensors:
                raise ValueError(f"the loss scaler's state has no {name}, expected one")
            assert self.tensor is not None
            self.tensor[i] = tensors[name]
