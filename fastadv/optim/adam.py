"""Adam that takes its gradients as an argument instead of finding them on the parameters. This is
what its two kinds share: `HostAdam`, whose steps the host decides, and `DeviceAdam`, for CUDA
graphs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from fastadv.config import NonFinite
from fastadv.optim.loss_scaling import LossScaler
from fastadv.weights.waiting_rows import WaitingRows

STATE_NAMES = ("step", "exp_avg", "exp_avg_sq")
SCALER = "loss_scaler"

State = tuple[int, Tensor, Tensor]


class DeferredTable(WaitingRows, Protocol):
    """An embedding table under several optimisers, each of which has a number."""

    @property
    def table(self) -> Parameter:
        """(V, H)."""

    def state(self, number: int) -> State:
        """An optimiser's step count, and its moments after the last step."""

    def set_state(self, number: int, steps: int, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """Takes over what `state` gave. Rows with moments count as touched."""

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state, unchanged: rows that are behind stay so."""

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `state_tensors` gave; ValueError where it does not fit."""


class GradientAdam(ABC):
    """Adam over named parameters, fed by `step(gradients)`.

    Parameters carry no `.grad` before or after a step, so no phase of Algorithm 1 can see what
    another one left behind. A float32 weight has eight more bits in a compensation: the paper's
    rates of 2e-8 are less than half a unit in the last place of a weight of 0.9.

    Args:
        named_parameters: (name, parameter) pairs; names key the saved state. float32 or float64.
        betas, eps: Adam's decay rates and epsilon.
        weight_decay: Decoupled weight decay, 0 for plain Adam.
        max_grad_norm: Global gradient norm to clip to; None for no clipping.
        nonfinite: "stop" raises, "skip" leaves the step out and counts it.
        scaler: The loss scaler. If it is enabled, gradients are of `scaler.scaled(loss)`, and a
            step whose gradient is not finite is left out whatever `nonfinite` says; "stop" raises
            only once the scale is below 1.
        deferred: The table among the parameters whose untouched rows wait, if there is one.

    Attributes:
        names, parameters: As given, in order.
        lr: The learning rate (the paper's are constant); may be set between steps.
        skipped: Steps left out so far.
        scaler: The loss scaler.

    Raises:
        ValueError: A table is deferred and there is weight decay.
    """

    lr: float
    skipped: int

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_grad_norm: float | None,
        nonfinite: NonFinite,
        scaler: LossScaler,
        deferred: DeferredTable | None,
    ) -> None:
        self.names, self.parameters = map(list, zip(*named_parameters, strict=True))
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.max_grad_norm, self.nonfinite, self.scaler = max_grad_norm, nonfinite, scaler
        # The table's index among the parameters, and the number that it gives this optimiser.
        self._table = self._owner = -1
        if deferred is not None:
            for i, parameter in enumerate(self.parameters):
                if parameter is deferred.table:
                    self._table = i
        self._deferred = deferred if self._table >= 0 else None
        if self._deferred is not None and weight_decay:
            raise ValueError(
                f"weight_decay is {weight_decay} with a deferred table, expected 0: decay "
                "moves rows by what they are"
            )

    @abstractmethod
    def step(
        self, gradients: Sequence[Tensor | None], squares: Mapping[str, Tensor] | None = None
    ) -> bool:
        """One update.

        Args:
            gradients: One per parameter, in order.
            squares: Sums of squares of some of them, () float64 by the parameter's name, where they
                are already known.

        Returns:
            Whether the step was taken, as far as the host knows.
        """

    def reserve(self) -> None:  # noqa: B027  nothing, unless steps are of a graph
        """Called before a step that may be part of a graph; never part of one itself."""

    def check(self) -> None:  # noqa: B027  nothing, where `step` raises
        """Raises FloatingPointError where an earlier step could not be taken and raised nothing."""

    def paused(self) -> AbstractContextManager[None]:
        """Inside, steps run as usual but change nothing, where steps can be part of a graph."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """The state as `torch.optim.Adam(parameters).state_dict()` gives it, which
        `torch.optim.Adam.load_state_dict` takes.

        PyTorch keeps no compensations of weights: resuming there starts from the rounded weights.
        """
        twin = self._twin()
        for i in range(len(self.parameters)):
            if (found := self._state(i)) is not None:
                step, exp_avg, exp_avg_sq = found
                twin.state[self.parameters[i]] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": exp_avg,
                    "exp_avg_sq": exp_avg_sq,
                }
        return dict(twin.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state of `torch.optim.Adam` (or `AdamW`) over the same parameters in order:
        moments, step counts, lr, betas, eps.

        Raises:
            ValueError: The state is of other parameters, or of a variant (amsgrad, maximize, weight
                decay that is not decoupled), or of steps that this optimiser cannot have taken.
        """
        twin = self._twin()
        twin.load_state_dict(dict(state))
        (options,) = twin.param_groups
        coupled = options["weight_decay"] and not options.get("decoupled_weight_decay")
        for name, wrong in (("amsgrad", options["amsgrad"]), ("maximize", options["maximize"]),
                            ("coupled weight decay", coupled)):  # fmt: skip
            if wrong:
                raise ValueError(f"found an Adam with {name}, expected plain Adam or AdamW")
        if self._deferred is not None and options["weight_decay"]:
            raise ValueError("found weight decay, expected none with a deferred table")
        self.lr, self.eps = float(options["lr"]), options["eps"]
        self.betas, self.weight_decay = tuple(options["betas"]), options["weight_decay"]
        self._rates_changed()
        self._clear()
        for i, parameter in enumerate(self.parameters):
            found = twin.state.get(parameter)
            if found:
                self._set_state(i, int(found["step"]), found["exp_avg"], found["exp_avg_sq"])

    def state_tensors(self) -> dict[str, Tensor]:
        """`<parameter name>.<step|exp_avg|exp_avg_sq>` of every parameter updated so far; a
        deferred table's are its own (`DeferredTable.state_tensors`).
        """
        found: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            state = None if i == self._table else self._state(i)
            if state is not None:
                tensors = (torch.tensor(float(state[0])), *state[1:])
                found |= {f"{name}.{k}": x for k, x in zip(STATE_NAMES, tensors, strict=True)}
        return found | {f"{SCALER}.{k}": x for k, x in self.scaler.state_tensors().items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `state_tensors` gave, by name.

        Raises:
            ValueError: A tensor belongs to no parameter, or a parameter's state is incomplete.
        """
        left = dict(tensors)
        self._clear()
        self.scaler.load_state_tensors(
            {k: left.pop(f"{SCALER}.{k}") for k in ("scale", "streak") if f"{SCALER}.{k}" in left}
        )
        for i, name in enumerate(self.names):
            keys = [key for key in STATE_NAMES if f"{name}.{key}" in left]
            if not keys:
                continue
            if len(keys) < len(STATE_NAMES):
                raise ValueError(
                    f"the optimiser state of {name} holds {', '.join(keys)}, "
                    f"expected {', '.join(STATE_NAMES)}"
                )
            step, exp_avg, exp_avg_sq = (left.pop(f"{name}.{key}") for key in STATE_NAMES)
            self._set_state(i, int(step), exp_avg, exp_avg_sq)
        if left:
            raise ValueError(f"the optimiser state of {next(iter(left))} belongs to no parameter")

    def _state(self, i: int) -> State | None:
        if i != self._table or self._deferred is None:
            return self._own_state(i)
        found = self._deferred.state(self._owner)
        return found if found[0] else None

    def _set_state(self, i: int, step: int, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        if i == self._table and self._deferred is not None:
            self._deferred.set_state(self._owner, step, exp_avg, exp_avg_sq)
        else:
            self._set_own_state(i, step, exp_avg, exp_avg_sq)

    @abstractmethod
    def _own_state(self, i: int) -> State | None:
        """The state of parameter i, which is not the deferred table; None before its first step."""

    @abstractmethod
    def _set_own_state(self, i: int, step: int, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """Takes over what `_own_state` gave."""

    @abstractmethod
    def _clear(self) -> None:
        """Forgets the state of every parameter but the deferred table."""

    @abstractmethod
    def _rates_changed(self) -> None:
        """Called after `lr`, `betas`, `eps` and `weight_decay` were set."""

    def _twin(self) -> torch.optim.Adam:
        return torch.optim.Adam(
            self.parameters,
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=self.weight_decay > 0,
        )


def not_finite(where: str) -> FloatingPointError:
    """The error for a gradient that is not finite, with what can be done about it."""
    return FloatingPointError(
        f"the gradient {where} not finite, expected numbers: lower the learning rates, use "
        "precision fp32, or skip such steps (nonfinite_gradients=skip)"
    )
