"""Adam whose steps the host decides: it reads the norm of the gradients, and waits for it."""

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
from fastadv.optim.adam import GradientAdam, State, not_finite
from fastadv.optim.host_embedding import HostEmbedding
from fastadv.optim.loss_scaling import LEAST_SCALE, LossScaler
from fastadv.weights.compensations import Compensations
from fastadv.weights.layouts import WeightLayouts


class HostAdam(GradientAdam):
    """`GradientAdam` on any device, over parameters that lie anywhere and step one by one.

    The gradient of a step is checked first. If it holds a NaN or an infinity (or its norm is too
    large for float32), nothing changes, not even moments and step counts. A parameter whose
    gradient is None keeps weight, moments and step count, as with a missing `.grad` in PyTorch; so
    does a frozen one. A change of `lr` takes effect from the next step on.

    Args:
        named_parameters: As for `GradientAdam`; so are betas, eps, weight_decay, max_grad_norm and
            nonfinite.
        lr: Learning rate.
        compensations: The compensations of the weights, shared by optimisers over the same weights.
        layouts: Copies of weights that the matrix products read, to be kept in step with them.
        deferred: An embedding table among the parameters whose untouched rows wait.
        loss_scaling: Whether the loss is scaled.
        backend: Backend of `adam`; None for the default.

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
        compensations: Compensations | None = None,
        layouts: WeightLayouts | None = None,
        deferred: HostEmbedding | None = None,
        loss_scaling: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            named_parameters, betas=betas, eps=eps, weight_decay=weight_decay,
            max_grad_norm=max_grad_norm, nonfinite=nonfinite, scaler=LossScaler(loss_scaling),
            deferred=deferred,
        )  # fmt: skip
        self.lr, self.skipped = lr, 0
        self._compensations, self._layouts = compensations or Compensations(), layouts
        self._backend = backend
        self._moments: dict[int, State] = {}
        self._embedding: HostEmbedding | None = None
        if self._deferred is not None and deferred is not None:
            self._embedding, self._owner = deferred, deferred.add_owner(betas, eps)

    @torch.no_grad()
    def step(
        self, gradients: Sequence[Tensor | None], squares: Mapping[str, Tensor] | None = None
    ) -> bool:
        """One update.

        Args:
            gradients: One per parameter, in order; None leaves a parameter and its moments
                unchanged.
            squares: Sums of squares of some of them, () float64 by the parameter's name, where they
                are already known; the norm then need not read these gradients again.

        Returns:
            Whether the step was taken: False where it was skipped.

        Raises:
            ValueError: There is not one gradient (or None) per parameter.
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
        if table is not None and self._embedding is not None:
            self._embedding.update(self._owner, table, self.lr, scale)
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
        """Indices of parameters that one call can take: of one type and device, and either all with
        layouts or all without.
        """
        groups: dict[Any, list[int]] = {}
        for i in present:
            p = self.parameters[i]
            groups.setdefault((p.dtype, p.device, self._layout(p) is not None), []).append(i)
        return list(groups.values())

    def _layout(self, parameter: Parameter) -> tuple[Tensor, Tensor] | None:
        # Only the native kernel rewrites layouts; for others they are remade when they are read.
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
        compensations = [r for p in parameters if (r := self._compensations.of(p)) is not None]
        grads = [gradients[i].to_dense() if gradients[i].is_sparse else gradients[i] for i in group]
        adam(
            [p.detach() for p in parameters], compensations, grads, exp_avgs, exp_avg_sqs, steps,
            lr=self.lr, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
            weight_decay=self.weight_decay, grad_scale=scale, layouts=layouts,
            backend=self._backend,
        )  # fmt: skip
        for parameter in parameters:
            torch.autograd.graph.increment_version(parameter)
            if layouts and self._layouts is not None:
                self._layouts.rewritten(parameter)

    def _clear(self) -> None:
        self._moments.clear()

    def _rates_changed(self) -> None:
        if self._embedding is not None:
            self._embedding.set_rates(self._owner, self.betas, self.eps)

    def _own_state(self, i: int) -> State | None:
        return self._moments.get(i)

    def _set_own_state(self, i: int, step: int, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        like = self.parameters[i].detach()
        first, second = (torch.empty_like(like).copy_(x.detach()) for x in (exp_avg, exp_avg_sq))
        self._moments[i] = step, first, second
