"""`HostEmbedding` for a GPU: how far each row is behind is known on the device alone.

Nothing here waits for the device. Everything may be part of a CUDA graph, unless it is said to run
between steps: kernels read counts and rates on the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from fastadv.batches.packing import TableRows
from fastadv.ops.embedding_adam import (
    embedding_adam_apply,
    embedding_adam_catch_up_on_device,
    powers_of,
)

UNTOUCHED = -1
# Steps whose rates are logged; then every row is brought up to date, and the log starts anew.
LOG_STEPS = 1 << 16
# Rows whose moments are copied at a time where the table is only read.
READ_AT_ONCE = 8192


@dataclass
class _Owner:
    """One optimiser's part; shapes as in `fastadv.ops.adam.adam_begin`.

    Attributes:
        row_steps: (V,) int32, the step that each row's moments are at.
        begun: Steps begun since the last flush, taken or not, counted on the host.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    row_steps: Tensor
    log: Tensor
    base: Tensor
    powers: Tensor
    rates: Tensor
    counter: Tensor
    step_scalars: Tensor
    begun: int = 0


class DeviceEmbedding:
    """A table (V, H), the moments that each optimiser keeps of it, and how far each row is behind.

    Args:
        table: float32 or float64, changed in place.
        compensation: The compensation of the table, (V, H) bfloat16; None for float64.
        backend: Backend of `adam`; None for the default.
        log_steps: Steps between flushes.
    """

    def __init__(
        self,
        table: Parameter,
        compensation: Tensor | None,
        backend: str | None,
        log_steps: int = LOG_STEPS,
    ) -> None:
        self.table, self.compensation, self.backend = table, compensation, backend
        self._log_steps = log_steps
        self._owners: list[_Owner] = []
        self._reading = False
        # Rows brought up to date since the last step, which then need not be checked again.
        self._fresh: deque[Tensor] = deque(maxlen=4)

    def add_owner(self, rates: Tensor, counter: Tensor, step_scalars: Tensor) -> int:
        """A number for one more optimiser, which has taken no step yet.

        Args:
            rates: (8,) float64; like the next two, the optimiser's own tensor, which it changes in
                place.
            counter: (1,) int64.
            step_scalars: (10,) float64.
        """
        table = self.table.detach()
        beta1, beta2 = rates[:2].tolist()
        self._owners.append(
            _Owner(
                torch.zeros_like(table),
                torch.zeros_like(table),
                torch.full((len(table),), UNTOUCHED, dtype=torch.int32, device=table.device),
                rates.new_zeros(2, self._log_steps),
                torch.zeros_like(counter),
                powers_of(beta1, beta2).to(table.device),
                rates,
                counter,
                step_scalars,
            )
        )
        return len(self._owners) - 1

    def log(self, number: int) -> tuple[Tensor, Tensor]:
        """The log and the base that `adam_begin` writes an optimiser's steps to."""
        return self._owners[number].log, self._owners[number].base

    def reserve(self, number: int) -> None:
        """Makes room for one more step of an optimiser; between steps, never in a graph."""
        if self._owners[number].begun == self._log_steps:
            self.flush()
        self._owners[number].begun += 1

    def catch_up(self, rows: TableRows) -> None:
        """Takes the steps that these rows missed. It is called before rows are read, and does
        nothing to rows that are up to date.
        """
        self._catch_up(rows.on(self.table.device))

    def _catch_up(self, rows: Tensor) -> None:
        """The same for rows (U,) int64, each once, -1 for none."""
        if self._reading or len(rows) == 0:
            return
        rows = rows.to(self.table.device)
        table = self.table.detach()
        for owner in self._owners:
            self._do_missed(owner, table, self.compensation, owner.exp_avg, owner.exp_avg_sq,
                          owner.row_steps, rows)  # fmt: skip
        self._fresh.append(rows)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, the table is as it is after all steps. It is a copy, so that reading changes
        nothing that training resumes from.
        """
        if self._reading or not any(owner.begun for owner in self._owners):
            yield
            return
        own = self.table.data
        with torch.no_grad():
            whole = own.clone()
            for start in range(0, len(own), READ_AT_ONCE):
                part = slice(start, start + READ_AT_ONCE)
                compensation = (
                    None if self.compensation is None else self.compensation[part].clone()
                )
                for owner in self._owners:
                    m, v, row_steps = (
                        x[part].clone() for x in (owner.exp_avg, owner.exp_avg_sq, owner.row_steps)
                    )
                    count = torch.arange(len(m), device=own.device)
                    self._do_missed(owner, whole[part], compensation, m, v, row_steps, count)
        self.table.data, self._reading = whole, True
        try:
            yield
        finally:
            self.table.data, self._reading = own, False

    def _do_missed(
        self, owner: _Owner, table: Tensor, compensation: Tensor | None, exp_avg: Tensor,
        exp_avg_sq: Tensor, row_steps: Tensor, rows: Tensor,
    ) -> None:  # fmt: skip
        embedding_adam_catch_up_on_device(
            table, compensation, exp_avg, exp_avg_sq, rows, row_steps, owner.counter, owner.base,
            owner.log, owner.powers, owner.rates, backend=self.backend,
        )  # fmt: skip

    def before_step(self, grad: Tensor) -> None:
        """Brings the rows of a gradient up to date, before its step is counted, unless that was
        done since the last step.
        """
        if self._reading:
            raise RuntimeError("the table is being read, expected its next step afterwards")
        rows, _ = _rows_of(grad)
        if not any(rows.data_ptr() == x.data_ptr() and len(rows) == len(x) for x in self._fresh):
            self._catch_up(rows)

    def update(self, number: int, grad: Tensor) -> None:
        """One step of an optimiser, with the scalars that `adam_begin` gave it.

        Args:
            number: The number that `add_owner` gave.
            grad: (V, H), sparse over rows, or dense: then every row has a gradient.
        """
        rows, values = _rows_of(grad)
        owner = self._owners[number]
        embedding_adam_apply(
            self.table.detach(), self.compensation, owner.exp_avg, owner.exp_avg_sq, rows, values,
            owner.step_scalars, owner.row_steps, owner.counter, backend=self.backend,
        )  # fmt: skip
        self._fresh.clear()
        torch.autograd.graph.increment_version(self.table)

    def flush(self) -> None:
        """Brings every row up to date in place, before others read the whole table and then change
        it. Called between steps, never in a graph.
        """
        if self._reading:
            return
        self._catch_up(torch.arange(len(self.table), device=self.table.device))
        self._fresh.clear()
        for owner in self._owners:
            owner.base.copy_(owner.counter)
            owner.begun = 0

    def set_rates(self, number: int) -> None:
        """Takes over betas that changed in `rates`; called after a flush, which takes the missed
        steps with the old betas.
        """
        owner = self._owners[number]
        beta1, beta2 = owner.rates[:2].tolist()
        owner.powers = powers_of(beta1, beta2).to(self.table.device)

    def state(self, number: int) -> tuple[int, Tensor, Tensor]:
        """An optimiser's step count, and its moments after the last step."""
        self.flush()
        owner = self._owners[number]
        return int(owner.counter), owner.exp_avg, owner.exp_avg_sq

    def set_state(self, number: int, steps: int, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """Takes over what `state` gave. Rows with moments count as touched."""
        self.flush()
        owner = self._owners[number]
        owner.counter.fill_(steps)
        owner.base.fill_(steps)
        owner.exp_avg.copy_(exp_avg)
        owner.exp_avg_sq.copy_(exp_avg_sq)
        moving = ((owner.exp_avg != 0) | (owner.exp_avg_sq != 0)).any(1)
        owner.row_steps.copy_(torch.where(moving, steps, UNTOUCHED))

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state, unchanged: rows that are behind stay so."""
        tensors: dict[str, Tensor] = {}
        for number, owner in enumerate(self._owners):
            tensors |= {
                f"{number}.exp_avg": owner.exp_avg,
                f"{number}.exp_avg_sq": owner.exp_avg_sq,
                f"{number}.row_steps": owner.row_steps,
                f"{number}.log": owner.log,
                f"{number}.base": owner.base,
                f"{number}.counter": owner.counter,
                f"{number}.begun": torch.tensor(owner.begun),
            }
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `state_tensors` gave.

        Raises:
            ValueError: Something is missing, or has another shape.
        """
        wanted = self.state_tensors()
        for name, own in wanted.items():
            if name not in tensors:
                raise ValueError(
                    f"the embedding table's state has no {name}, expected one: a run is resumed on "
                    "the kind of device that it began on"
                )
            if tensors[name].shape != own.shape:
                raise ValueError(
                    f"the embedding table's {name} has shape {tuple(tensors[name].shape)}, "
                    f"expected {tuple(own.shape)}"
                )
        for name, own in wanted.items():
            own.copy_(tensors[name])
        for number, owner in enumerate(self._owners):
            owner.begun = int(tensors[f"{number}.begun"])
        self._fresh.clear()


def _rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a gradient, (U,) int64 on its device, and their values (U, H)."""
    if not grad.is_sparse:
        return torch.arange(len(grad), device=grad.device), grad
    return grad._indices()[0], grad._values()
