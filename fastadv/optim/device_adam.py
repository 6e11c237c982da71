"""Adam for a GPU: one kernel over flat parameters, and no wait of the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from fastadv.config import NonFinite
from fastadv.ops.adam import StepScalar, adam_apply, adam_begin, gradient_norm, rates_of
from fastadv.optim.adam import GradientAdam, State, not_finite
from fastadv.optim.device_embedding import DeviceEmbedding
from fastadv.optim.loss_scaling import LEAST_SCALE, LossScaler
from fastadv.weights.flat import FlatParameters, span
from fastadv.weights.layouts import WeightLayouts


class DeviceAdam(GradientAdam):
    """`GradientAdam` over flat parameters and perhaps a deferred table, in steps that a CUDA graph
    may hold.

    The device decides whether a step is taken. If a gradient is not finite and that is to stop the
    run, this and all later steps are left out, and `check` raises. Every parameter has a gradient
    in every step.

    Args:
        flats: The parameters.
        table: (name, parameter) of the table of `deferred`, or None.
        lr: Learning rate.
        betas, eps, weight_decay, max_grad_norm, nonfinite: As for `GradientAdam`.
        layouts: Copies of weights that the matrix products read, to be kept in step with them.
        deferred: The table whose untouched rows wait.
        loss_scaling: Whether the loss is scaled.
        backend: Backend of "adam"; None for the default.

    Raises:
        ValueError: A table is deferred and there is weight decay.
    """

    def __init__(
        self,
        flats: Sequence[FlatParameters],
        table: tuple[str, Parameter] | None,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        *,
        nonfinite: NonFinite = "stop",
        layouts: WeightLayouts | None = None,
        deferred: DeviceEmbedding | None = None,
        loss_scaling: bool = False,
        backend: str | None = None,
    ) -> None:
        first = [] if table is None else [table]
        named = [(n, p) for flat in flats for n, p in zip(flat.names, flat.parameters, strict=True)]
        device = (first + named)[0][1].device
        super().__init__(
            first + named, betas=betas, eps=eps, weight_decay=weight_decay,
            max_grad_norm=max_grad_norm, nonfinite=nonfinite,
            scaler=LossScaler(loss_scaling, device), deferred=deferred if first else None,
        )  # fmt: skip
        self._flats, self._layouts, self._backend = list(flats), layouts, backend
        self._lr = lr
        self._rates = rates_of(lr, *betas, eps, weight_decay, max_grad_norm).to(device)
        clocks = len(first) + len(self._flats)
        self._counters = torch.zeros(clocks, dtype=torch.int64, device=device)
        self._step_scalars = torch.zeros(
            clocks, len(StepScalar), dtype=torch.float64, device=device
        )
        self._flags = torch.zeros(3, dtype=torch.int64, device=device)
        self._buffers = [(torch.zeros_like(f.weight), torch.zeros_like(f.weight)) for f in flats]
        self._embedding: DeviceEmbedding | None = None
        if table is not None:
            assert self._deferred is not None and deferred is not None
            self._embedding = deferred
            self._owner = deferred.add_owner(self._rates, self._counters[:1], self._step_scalars[0])

    @property
    def lr(self) -> float:
        """Learning rate; may be set between steps, also of a graph."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = lr
        self._rates[3].fill_(lr)

    @property
    def skipped(self) -> int:
        """Steps left out so far; the host waits for the device."""
        skips = self.nonfinite == "skip" or self.scaler.tensor is not None
        return int(self._flags[0]) if skips else 0

    @skipped.setter
    def skipped(self, count: int) -> None:
        self._flags[0] = count

    def reserve(self) -> None:
        """Called before a step that may be part of a graph; never part of one itself."""
        if self._embedding is not None:
            self._embedding.reserve(self._owner)
        if not all(flat.intact for flat in self._flats):
            raise RuntimeError(
                "the model's parameters have moved, expected them where they were when training "
                "was set up: move the model first"
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, steps run as usual but change nothing."""
        self._flags[2].fill_(1)
        try:
            yield
        finally:
            self._flags[2].fill_(0)

    def check(self) -> None:
        """Raises what `GradientAdam.step` would have raised; the host waits for the device.

        Raises:
            FloatingPointError: A gradient was not finite, and that is to stop the run.
        """
        if self.nonfinite != "stop":
            return
        if self.scaler.tensor is None:
            wrong = int(self._flags[1]) != 0
        else:
            wrong = self.scaler.scale < LEAST_SCALE
        if wrong:
            raise not_finite("of an earlier step is")

    @torch.no_grad()
    def step(
        self, gradients: Sequence[Tensor | None], squares: Mapping[str, Tensor] | None = None
    ) -> bool:
        """One update, or none: `check` and `skipped` say so.

        Args:
            gradients: One per parameter, in order.
            squares: Not read.

        Raises:
            ValueError: A gradient is missing.
        """
        given = [g for g in gradients if g is not None]
        if len(given) != len(self.parameters):
            raise ValueError(
                f"found {len(given)} gradients, expected one for each of {len(self.parameters)} "
                "parameters"
            )
        table = given[0] if self._embedding is not None else None
        spans, start = [], 0 if table is None else 1
        for flat in self._flats:
            end = start + len(flat.parameters)
            spans.append(span(given[start:end]))
            start = end
        log, base = None, None
        if self._embedding is not None and table is not None:
            self._embedding.before_step(table)
            log, base = self._embedding.log(self._owner)
        adam_begin(
            self._norm_of(spans, table), self._rates, self._counters, self._flags,
            self.scaler.tensor, self._step_scalars, log, base,
            skips=self.nonfinite == "skip" or self.scaler.tensor is not None, backend=self._backend,
        )  # fmt: skip
        first = len(self._counters) - len(self._flats)
        for i, (flat, grad, (m, v)) in enumerate(
            zip(self._flats, spans, self._buffers, strict=True)
        ):
            adam_apply(
                flat.weight,
                flat.compensation,
                grad,
                m,
                v,
                flat.low,
                self._step_scalars[first + i],
                backend=self._backend,
            )
            for parameter in flat.parameters:
                torch.autograd.graph.increment_version(parameter)
            if self._layouts is not None and flat.low is not None:
                self._layouts.rewritten_in(flat)
        if self._embedding is not None and table is not None:
            self._embedding.update(self._owner, table)
        return True

    def _norm_of(self, spans: Sequence[Tensor], table: Tensor | None) -> Tensor:
        """The norm of all gradients, () on the device."""
        found = list(spans)
        if table is not None:
            found.append(table._values() if table.is_sparse else table)
        kinds = {x.dtype for x in found}
        norms = [
            gradient_norm([x for x in found if x.dtype == kind], backend=self._backend)
            for kind in sorted(kinds, key=str)
        ]
        return norms[0] if len(norms) == 1 else torch.stack([n.double() for n in norms]).norm()

    def _rates_changed(self) -> None:
        if self._embedding is not None:
            # The steps that rows missed so far have the old rates.
            self._embedding.flush()
        rates = rates_of(self.lr, *self.betas, self.eps, self.weight_decay, self.max_grad_norm)
        self._rates.copy_(rates)
        if self._embedding is not None:
            self._embedding.set_rates(self._owner)

    def _clear(self) -> None:
        for m, v in self._buffers:
            m.zero_()
            v.zero_()
        self._counters[len(self._counters) - len(self._flats) :] = 0
        self._loaded: dict[int, int] = {}

    def _flat_of(self, i: int) -> tuple[int, int]:
        """The index of the flat that a parameter is in, and its index there."""
        i -= len(self.parameters) - sum(len(flat.parameters) for flat in self._flats)
        for number, flat in enumerate(self._flats):
            if i < len(flat.parameters):
                return number, i
            i -= len(flat.parameters)
        raise IndexError(i)

    def _own_state(self, i: int) -> State | None:
        number, place = self._flat_of(i)
        step = int(self._counters[len(self._counters) - len(self._flats) + number])
        m, v = (self._flats[number].views(x)[place] for x in self._buffers[number])
        return (step, m, v) if step else None

    def _set_own_state(self, i: int, step: int, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        number, place = self._flat_of(i)
        if self._loaded.setdefault(number, step) != step:
            raise ValueError(
                f"found step {step} of {self.names[i]} and {self._loaded[number]} of parameters "
                "that it is updated with, expected one number"
            )
        for buffer, value in zip(self._buffers[number], (exp_avg, exp_avg_sq), strict=True):
            self._flats[number].views(buffer)[place].copy_(value)
        self._counters[len(self._counters) - len(self._flats) + number] = step
