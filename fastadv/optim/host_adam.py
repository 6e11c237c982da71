"""Adam that takes its gradients as an argument instead of finding them on the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from fastadv import backends
from fastadv.config import NonFinite
from fastadv.ops.adam import adam, gradient_norm
from fastadv.optim.host_embedding import DeferredEmbedding
from fastadv.optim.loss_scaling import LEAST_SCALE, LossScaler
from fastadv.weights.layouts import WeightLayouts
from fastadv.weights.residuals import Residuals

STATE_NAMES = ("step", "exp_avg", "exp_avg_sq")
SCALER = "loss_scaler"


class GradientAdam:
    """Adam over named parameters, fed by `step(gradients)`.

    Parameters carry no `.grad` before or after a step, so no phase of Algorithm 1 can see what
    another one left behind. A float32 weight has eight more bits in a residual: the paper's rates
    of 2e-8 are less than half of what float32 can tell from nothing at a weight of 0.9.

    The gradient of a step is checked first. If it holds a NaN or an infinity (or its norm is too
    large for float32), nothing changes, moments and step counts neither. A parameter whose gradient
    is None keeps weight, moments and step count, as with a missing `.grad` in PyTorch; so does one
    that is frozen, and a change of `lr` holds from the next step on.

    Args:
        named_parameters: (name, parameter) pairs; names key the saved state. float32 or float64.
        lr: Learning rate (the paper's are constant, section 3.1).
        betas, eps: Adam's.
        weight_decay: Decoupled weight decay, 0 for plain Adam.
        max_grad_norm: Global gradient norm to clip to; None for no clipping.
        nonfinite: "stop" raises, "skip" leaves the step out and counts it.
        residuals: Of the weights; shared by optimisers over the same ones.
        layouts: Copies of weights that the products read, to be kept in step with them.
        deferred: An embedding table among the parameters whose untouched rows wait.
        loss_scaling: Gradients are of `scaler.scaled(loss)`. Steps whose gradient is not finite are
            then left out whatever `nonfinite` says, which "stop" does once the scale is below 1.
        backend: Backend of `adam`; None for the default.

    Attributes:
        names, parameters: As given, in order.
        lr: May be set between steps.
        skipped: Steps left out so far.
        scaler: Of the loss.

    Raises:
        ValueError: A table is deferred and there is weight decay.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        *,
        nonfinite: NonFinite = "stop",
        residuals: Residuals | None = None,
        layouts: WeightLayouts | None = None,
        deferred: DeferredEmbedding | None = None,
        loss_scaling: bool = False,
        backend: str | None = None,
    ) -> None:
        self.names, self.parameters = map(list, zip(*named_parameters, strict=True))
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.max_grad_norm, self.nonfinite, self.skipped = max_grad_norm, nonfinite, 0
        self._residuals, self._layouts = residuals or Residuals(), layouts
        self._backend = backend
        self.scaler = LossScaler(loss_scaling)
        self._moments: dict[int, tuple[int, Tensor, Tensor]] = {}
        self._deferred, self._table, self._owner = deferred, -1, -1
        for i, parameter in enumerate(self.parameters):
            if deferred is not None and parameter is deferred.table:
                if weight_decay:
                    raise ValueError(
                        f"weight_decay is {weight_decay} with a deferred table, expected 0: decay "
                        "moves rows by what they are"
                    )
                self._table, self._owner = i, deferred.add_owner(betas, eps)

    @torch.no_grad()
    def step(
        self, gradients: Sequence[Tensor | None], squares: Mapping[str, Tensor] | None = None
    ) -> bool:
        """One update.

        Args:
            gradients: As many as parameters, in order; None leaves a parameter and its moments.
            squares: Sums of squares of some of them, () float64 by parameter's name, where whoever
                made them knows; they are not read for their norm again.

        Returns:
            Whether the step was done: False where it was skipped.

        Raises:
            ValueError: There is not one gradient (or None) a parameter.
            FloatingPointError: A gradient is not finite, and `nonfinite` is "stop".
        """
        if len(gradients) != len(self.parameters):
            raise ValueError(
                f"found {len(gradients)} gradients, expected one for each of "
                f"{len(self.parameters)} parameters"
            )
        gradients = [g.coalesce() if g is not None and g.is_sparse else g for g in gradients]
        loss_scale = self.scaler.scale
        norm = self._norm(gradients, squares or {}) / loss_scale
        self.scaler.update(norm < float("inf"))
        if not norm < float("inf"):
            return self._refuse(gradients)
        scale = 1.0 / loss_scale
        if self.max_grad_norm is not None:
            scale *= min(1.0, self.max_grad_norm / (norm + 1e-6))
        present = [i for i, g in enumerate(gradients) if g is not None and i != self._table]
        for group in self._groups(present):
            self._update(group, gradients, scale)
        table = gradients[self._table] if self._table >= 0 else None
        if table is not None and self._deferred is not None:
            self._deferred.update(self._owner, table, self.lr, scale)
        return True

    def _norm(self, gradients: Sequence[Tensor | None], squares: Mapping[str, Tensor]) -> float:
        groups: dict[Any, list[Tensor]] = {}
        total = 0.0
        for name, g in zip(self.names, gradients, strict=True):
            if g is not None and name in squares:
                total += float(squares[name])
            elif g is not None:
                x = g.values() if g.is_sparse else g
                groups.setdefault((x.dtype, x.device), []).append(x)
        norms = [float(gradient_norm(group, backend=self._backend)) for group in groups.values()]
        return math.hypot(*norms, math.sqrt(total))

    def _refuse(self, gradients: Sequence[Tensor | None]) -> bool:
        scaling = self.scaler.tensor is not None
        if self.nonfinite == "skip" or (scaling and self.scaler.scale >= LEAST_SCALE):
            self.skipped += 1
            return False
        wrong = [
            name
            for name, g in zip(self.names, gradients, strict=True)
            if g is not None and not torch.isfinite(g.values() if g.is_sparse else g).all()
        ]
        raise not_finite(f"of {wrong[0]} holds a value that is" if wrong else "has a norm that is")

    def _groups(self, present: Sequence[int]) -> list[list[int]]:
        """Numbers of parameters that one call can take: of one type and device, with layouts or
        without.
        """
        groups: dict[Any, list[int]] = {}
        for i in present:
            p = self.parameters[i]
            groups.setdefault((p.dtype, p.device, self._layout(p) is not None), []).append(i)
        return list(groups.values())

    def _layout(self, parameter: Parameter) -> tuple[Tensor, Tensor] | None:
        # Only the native kernel writes them; for others they are made again when they are read.
        if self._layouts is None or self._chosen(parameter) != "native":
            return None
        return self._layouts.packed(parameter)

    def _chosen(self, parameter: Parameter) -> str:
        return backends.resolve("adam", parameter.device, self._backend)

    def _update(self, group: Sequence[int], gradients: Sequence[Any], scale: float) -> None:
        parameters = [self.parameters[i] for i in group]
        for i, parameter in zip(group, parameters, strict=True):
            step, m, v = self._moments.get(i) or (
                0, torch.zeros_like(parameter), torch.zeros_like(parameter)
            )  # fmt: skip
            self._moments[i] = step + 1, m, v
        steps, exp_avgs, exp_avg_sqs = zip(*(self._moments[i] for i in group), strict=True)
        layouts = [pair for p in parameters if (pair := self._layout(p)) is not None]
        residuals = [r for p in parameters if (r := self._residuals.of(p)) is not None]
        grads = [gradients[i].to_dense() if gradients[i].is_sparse else gradients[i] for i in group]
        adam(
            [p.detach() for p in parameters], residuals, grads, exp_avgs, exp_avg_sqs, steps,
            lr=self.lr, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
            weight_decay=self.weight_decay, grad_scale=scale, layouts=layouts,
            backend=self._backend,
        )  # fmt: skip
        for parameter in parameters:
            torch.autograd.graph.increment_version(parameter)
            if layouts and self._layouts is not None:
                self._layouts.rewritten(parameter)

    def state_dict(self) -> dict[str, Any]:
        """The state as `torch.optim.Adam(parameters).state_dict()` gives it, which
        `torch.optim.Adam.load_state_dict` takes.

        PyTorch has no residuals: going on there starts from the rounded weights.
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
            ValueError: It is of other parameters, or of a variant (amsgrad, maximize, weight decay
                that is not decoupled).
        """
        twin = self._twin()
        twin.load_state_dict(dict(state))
        (options,) = twin.param_groups
        coupled = options["weight_decay"] and not options.get("decoupled_weight_decay")
        for name, wrong in (("amsgrad", options["amsgrad"]), ("maximize", options["maximize"]),
                            ("coupled weight decay", coupled)):  # fmt: skip
            if wrong:
                raise ValueError(f"found an Adam with {name}, expected plain Adam or AdamW")
        if self._table >= 0 and options["weight_decay"]:
            raise ValueError("found weight decay, expected none with a deferred table")
        self.lr, self.eps = float(options["lr"]), options["eps"]
        self.betas, self.weight_decay = tuple(options["betas"]), options["weight_decay"]
        if self._deferred is not None and self._table >= 0:
            self._deferred.set_rates(self._owner, self.betas, self.eps)
        self._clear()
        for i, parameter in enumerate(self.parameters):
            found = twin.state.get(parameter)
            if found:
                self._set_state(i, int(found["step"]), found["exp_avg"], found["exp_avg_sq"])

    def state_tensors(self) -> dict[str, Tensor]:
        """`<parameter name>.<step|exp_avg|exp_avg_sq>` of every parameter updated so far; a
        deferred table's are its own (`DeferredEmbedding.state_tensors`).
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

    def _clear(self) -> None:
        self._moments.clear()

    def _state(self, i: int) -> tuple[int, Tensor, Tensor] | None:
        if i != self._table or self._deferred is None:
            return self._moments.get(i)
        found = self._deferred.state(self._owner)
        return found if found[0] else None

    def _set_state(self, i: int, step: int, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        if i == self._table and self._deferred is not None:
            self._deferred.set_state(self._owner, step, exp_avg, exp_avg_sq)
            return
        like = self.parameters[i].detach()
        first, second = (torch.empty_like(like).copy_(x.detach()) for x in (exp_avg, exp_avg_sq))
        self._moments[i] = step, first, second

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
    """The error for a gradient that is not, with what can be done about it."""
    return FloatingPointError(
        f"the gradient {where} not finite, expected numbers: lower the learning rates, use "
        "precision fp32, or skip such steps (nonfinite_gradients=skip)"
    )
