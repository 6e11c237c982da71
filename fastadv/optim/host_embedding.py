"""The embedding table under several Adams: the steps of a row wait until the row is read.

A batch reads a few thousand rows of a hundred thousand. A step of Adam still moves every row that
ever had a gradient, by its momentum. Without weight decay this move does not depend on the weights,
so the steps that a row misses, of all optimisers, can be taken at once before it is read again.
Nothing is approximated: docs/adr/0008.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import Parameter

from fastadv.batches.packing import TableRows
from fastadv.ops.embedding_adam import embedding_adam, embedding_adam_catch_up

UNTOUCHED = -1
# Rows whose moments are copied at a time where the table is only read.
READ_AT_ONCE = 8192


class _Owner:
    """One optimiser's part: its moments, its steps, and the rates of the steps.

    Attributes:
        steps: The steps taken so far.
        base: The steps up to the last flush.
        lrs: (steps - base,) float64, the rates since then.
    """

    def __init__(self, table: Tensor, betas: tuple[float, float], eps: float) -> None:
        self.betas, self.eps = betas, eps
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(table), torch.zeros_like(table)
        self.steps = self.base = 0
        self.lrs = _Growing(np.float64)


class _Growing:
    """An array that grows at its end."""

    def __init__(self, dtype: type) -> None:
        self._room: NDArray = np.empty(64, dtype)
        self._used = 0

    @property
    def values(self) -> NDArray:
        return self._room[: self._used]

    def append(self, value: float) -> None:
        if self._used == len(self._room):
            self._room = np.concatenate([self._room, np.empty_like(self._room)])
        self._room[self._used] = value
        self._used += 1

    def set(self, values: NDArray) -> None:
        self._room = np.zeros(len(values) + 64, self._room.dtype)
        self._room[: len(values)] = values
        self._used = len(values)


class HostEmbedding:
    """A table (V, H), the moments that each optimiser keeps of it, and how far each row is behind.

    One counter per row serves all optimisers. It holds the step of any of them, counted from the
    last flush, after which the row was last brought up to date, and a list holds how many steps
    each optimiser had taken by then.

    Args:
        table: float32 or float64, changed in place.
        compensation: The compensation of the table, (V, H) bfloat16; None for float64.
        backend: Backend of `embedding_adam`; None for the default.
    """

    def __init__(self, table: Parameter, compensation: Tensor | None, backend: str | None) -> None:
        self.table, self.compensation, self.backend = table, compensation, backend
        self._owners: list[_Owner] = []
        # The event that each row is up to date with, on the host.
        self._events: NDArray[np.int32] = np.full(len(table), UNTOUCHED, np.int32)
        self._reading = False
        # Which owner acted in events 1, 2, ... since the flush.
        self._actors = _Growing(np.int32)

    def add_owner(self, betas: tuple[float, float], eps: float) -> int:
        """A number for one more optimiser, which has taken no step yet."""
        self._owners.append(_Owner(self.table.detach(), betas, eps))
        return len(self._owners) - 1

    def catch_up(self, rows: TableRows) -> None:
        """Takes the steps that these rows missed. It is called before rows are read, and does
        nothing to rows that are up to date.
        """
        self._catch_up(rows.ids)

    def _catch_up(self, rows: Tensor) -> None:
        """The same for rows (U,) int64, ascending, each once, on the CPU."""
        rows = self._behind(rows)
        if len(rows) == 0 or self._reading:
            return
        places = rows.to(self.table.device)
        for number, owner in enumerate(self._owners):
            self._do_missed(
                number, rows, self.table, self.compensation, owner.exp_avg, owner.exp_avg_sq, places
            )
        self._events[rows.numpy()] = len(self._actors.values)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, the table is as it is after all steps. It is a copy, so that reading changes
        nothing that training resumes from.
        """
        rows = self._behind(torch.arange(len(self.table)))
        if self._reading or len(rows) == 0:
            yield
            return
        own = self.table.data
        with torch.no_grad():
            whole = own.clone()
            for part in rows.split(READ_AT_ONCE):
                places = part.to(own.device)
                whole[places] = self._current(part, places)
        self.table.data, self._reading = whole, True
        try:
            yield
        finally:
            self.table.data, self._reading = own, False

    def _behind(self, rows: Tensor) -> Tensor:
        """The rows among `rows` that missed a step and ever had a gradient."""
        events = self._events[rows.numpy()]
        late = (events != UNTOUCHED) & (events < len(self._actors.values))
        return rows[torch.from_numpy(late)]

    def _current(self, rows: Tensor, places: Tensor) -> Tensor:
        """The values of `rows` after all steps, (U, H)."""
        found = self.table.detach()[places]
        compensation = None if self.compensation is None else self.compensation[places]
        for number, owner in enumerate(self._owners):
            moments = owner.exp_avg[places], owner.exp_avg_sq[places]
            count = torch.arange(len(rows), device=places.device)
            self._do_missed(number, rows, found, compensation, *moments, count)
        return found

    def _do_missed(
        self,
        number: int,
        rows: Tensor,
        table: Tensor,
        compensation: Tensor | None,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        places: Tensor,
    ) -> None:
        """Takes an owner's steps that `rows` missed, at indices `places` of the given tensors."""
        owner = self._owners[number]
        if owner.steps == owner.base:
            return
        done = np.concatenate([[0], np.cumsum(self._actors.values == number)])
        embedding_adam_catch_up(
            table, compensation, exp_avg, exp_avg_sq, places,
            torch.from_numpy(owner.base + done[self._events[rows.numpy()]]), step=owner.steps,
            lrs=torch.from_numpy(owner.lrs.values), base=owner.base, beta1=owner.betas[0],
            beta2=owner.betas[1], eps=owner.eps, backend=self.backend,
        )  # fmt: skip

    def update(self, number: int, grad: Tensor, lr: float, grad_scale: float = 1.0) -> None:
        """One step of an optimiser.

        Args:
            number: The number that `add_owner` gave.
            grad: (V, H), sparse over rows, or dense: then every row has a gradient.
            lr: The rate of this step.
            grad_scale: The factor of the gradients.
        """
        if self._reading:
            raise RuntimeError("the table is being read, expected its next step afterwards")
        rows, values = rows_of(grad)
        self._catch_up(rows)
        owner = self._owners[number]
        embedding_adam(
            self.table, self.compensation, owner.exp_avg, owner.exp_avg_sq, rows.to(values.device),
            values, step=owner.steps + 1, lr=lr, beta1=owner.betas[0], beta2=owner.betas[1],
            eps=owner.eps, grad_scale=grad_scale, backend=self.backend,
        )  # fmt: skip
        owner.steps += 1
        owner.lrs.append(lr)
        self._actors.append(number)
        self._events[rows.numpy()] = len(self._actors.values)
        torch.autograd.graph.increment_version(self.table)

    def flush(self) -> None:
        """Brings every row up to date in place, before others read and change the whole table."""
        if self._reading:
            return
        touched = np.flatnonzero(self._events != UNTOUCHED)
        self._catch_up(torch.from_numpy(touched))
        self._events[touched] = 0
        self._actors.set(np.empty(0))
        for owner in self._owners:
            owner.base = owner.steps
            owner.lrs.set(np.empty(0))

    def set_rates(self, number: int, betas: tuple[float, float], eps: float) -> None:
        """Changes an optimiser's betas and eps; steps missed so far are taken with the old ones."""
        owner = self._owners[number]
        if (owner.betas, owner.eps) != (betas, eps):
            self.flush()
            owner.betas, owner.eps = betas, eps

    def state(self, number: int) -> tuple[int, Tensor, Tensor]:
        """An optimiser's step count, and its moments after the last step."""
        self.flush()
        owner = self._owners[number]
        return owner.steps, owner.exp_avg, owner.exp_avg_sq

    def set_state(self, number: int, steps: int, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """Takes over what `state` gave. Rows with moments count as touched."""
        self.flush()
        owner = self._owners[number]
        owner.steps = owner.base = steps
        owner.exp_avg.copy_(exp_avg)
        owner.exp_avg_sq.copy_(exp_avg_sq)
        moving = ((exp_avg != 0) | (exp_avg_sq != 0)).any(1).cpu().numpy()
        self._events[moving] = 0

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state, unchanged: rows that are behind stay so."""
        tensors = {
            "events": torch.from_numpy(self._events),
            "actors": torch.from_numpy(self._actors.values.copy()),
        }
        for number, owner in enumerate(self._owners):
            tensors |= {
                f"{number}.exp_avg": owner.exp_avg,
                f"{number}.exp_avg_sq": owner.exp_avg_sq,
                f"{number}.lrs": torch.from_numpy(owner.lrs.values.copy()),
                f"{number}.steps": torch.tensor(owner.steps),
            }
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `state_tensors` gave.

        Raises:
            ValueError: Something is missing, or has another shape.
        """
        wanted = self.state_tensors()
        fixed = ("events", "exp_avg", "exp_avg_sq")
        for name, own in wanted.items():
            if name not in tensors:
                raise ValueError(f"the embedding table's state has no {name}, expected one")
            if name.split(".")[-1] in fixed and tensors[name].shape != own.shape:
                raise ValueError(
                    f"the embedding table's {name} has shape {tuple(tensors[name].shape)}, "
                    f"expected {tuple(own.shape)}"
                )
        self._events[:] = tensors["events"].numpy()
        self._actors.set(tensors["actors"].numpy())
        for number, owner in enumerate(self._owners):
            owner.exp_avg.copy_(tensors[f"{number}.exp_avg"])
            owner.exp_avg_sq.copy_(tensors[f"{number}.exp_avg_sq"])
            owner.lrs.set(tensors[f"{number}.lrs"].numpy())
            owner.steps = int(tensors[f"{number}.steps"])
            owner.base = owner.steps - len(owner.lrs.values)


def rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a gradient, (U,) int64 ascending on the CPU, and their values (U, H)."""
    if not grad.is_sparse:
        return torch.arange(len(grad)), grad
    grad = grad.coalesce()
    return grad.indices()[0].cpu(), grad.values()
