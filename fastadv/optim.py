"""Adam that takes its gradients as an argument instead of finding them on the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

STATE_NAMES = ("step", "exp_avg", "exp_avg_sq")


class GradientAdam:
    """`torch.optim.Adam` over named parameters, fed by `step(gradients)`.

    Parameters carry no `.grad` before or after a step, so no phase of Algorithm 1 can see what
    another one left behind.

    Args:
        named_parameters: (name, parameter) pairs; names key the saved state.
        lr: Learning rate, constant (paper, section 3.1).
        betas, eps: Adam's.
        weight_decay: Decoupled weight decay, 0 for plain Adam.
        max_grad_norm: Global gradient norm to clip to; None for no clipping.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
    ) -> None:
        self.names, self.parameters = map(list, zip(*named_parameters, strict=True))
        self.max_grad_norm = max_grad_norm
        self._adam = torch.optim.Adam(
            self.parameters,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=weight_decay > 0,
            fused=True,
        )

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One update. `gradients` match the parameters; None leaves a parameter and its moments.

        Raises:
            ValueError: There is not one gradient (or None) a parameter.
        """
        if len(gradients) != len(self.parameters):
            raise ValueError(
                f"found {len(gradients)} gradients, expected one for each of "
                f"{len(self.parameters)} parameters"
            )
        if self.max_grad_norm is not None:
            present = [g for g in gradients if g is not None]
            norm = torch.nn.utils.get_total_norm(present)
            scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = [None if g is None else g * scale for g in gradients]
        try:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self._adam.step()
        finally:
            for parameter in self.parameters:
                parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """`<parameter name>.<step|exp_avg|exp_avg_sq>` of every parameter updated so far."""
        return {
            f"{name}.{key}": self._adam.state[parameter][key]
            for name, parameter in zip(self.names, self.parameters, strict=True)
            if parameter in self._adam.state
            for key in STATE_NAMES
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `state_tensors` gave, by name.

        Raises:
            ValueError: A tensor belongs to no parameter, or a parameter's state is incomplete.
        """
        left = dict(tensors)
        self._adam.state.clear()
        for name, parameter in zip(self.names, self.parameters, strict=True):
            keys = [key for key in STATE_NAMES if f"{name}.{key}" in left]
            if not keys:
                continue
            if len(keys) < len(STATE_NAMES):
                raise ValueError(
                    f"the optimiser state of {name} holds {', '.join(keys)}, "
                    f"expected {', '.join(STATE_NAMES)}"
                )
            self._adam.state[parameter] = {
                # Fused Adam wants its step counts where the parameters are.
                key: left.pop(f"{name}.{key}").to(parameter.device)
                for key in STATE_NAMES
            }
        if left:
            raise ValueError(f"the optimiser state of {next(iter(left))} belongs to no parameter")
