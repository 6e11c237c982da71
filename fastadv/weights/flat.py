"""Parameters one after the other in one tensor, so that one kernel updates them all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.parameter import Parameter


class FlatParameters:
    """Moves parameters of one type and device into one buffer, of which they become views.

    Args:
        named_parameters: (name, parameter) pairs, in the order that they get in the buffer.
        low_dtype: A 16-bit type that copies of all of them are kept in; None for none.

    Attributes:
        weight: (N,), the parameters.
        compensation: (N,) bfloat16, the compensations, zeros at first; None for float64.
        low: (N,) in `low_dtype`, or None.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        low_dtype: torch.dtype | None = None,
    ) -> None:
        self.names, self.parameters = map(list, zip(*named_parameters, strict=True))
        self._ends = torch.tensor([p.numel() for p in self.parameters]).cumsum(0).tolist()
        like = self.parameters[0].detach()
        self.weight = like.new_empty(self._ends[-1])
        for parameter, view in zip(self.parameters, self.views(self.weight), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        wide = like.dtype == torch.float64
        self.compensation = None if wide else torch.zeros_like(self.weight, dtype=torch.bfloat16)
        self.low = None if low_dtype is None else self.weight.to(low_dtype)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The part of each parameter in a buffer (N,), in the parameter's shape."""
        starts = [0, *self._ends[:-1]]
        return [
            buffer[start:end].view(p.shape)
            for start, end, p in zip(starts, self._ends, self.parameters, strict=True)
        ]

    def named_views(self, buffer: Tensor) -> dict[str, Tensor]:
        """`views` by parameter name."""
        return dict(zip(self.names, self.views(buffer), strict=True))

    def rows(self, buffer: Tensor, name: str, rows: int) -> Tensor:
        """(rows, H) of a buffer (N,): the vector `name` (H,) and the vectors that follow it."""
        i = self.names.index(name)
        end, size = self._ends[i], self.parameters[i].numel()
        return buffer[end - size : end + (rows - 1) * size].view(rows, size)

    @property
    def intact(self) -> bool:
        """Whether the parameters are still views of `weight`: a model that moves to another device
        takes them away, and a copy of one has parameters of its own.
        """
        first, size = self.weight.data_ptr(), self.weight.element_size()
        return all(
            p.data_ptr() == first + start * size
            for p, start in zip(self.parameters, [0, *self._ends[:-1]], strict=True)
        )


def span(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of tensors of one type, one after the other, (N,): a view where they lie so in
    memory, else a copy.
    """
    first = tensors[0]
    place, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for tensor in tensors:
        if (
            tensor.data_ptr() != place
            or tensor.untyped_storage().data_ptr() != storage
            or not tensor.is_contiguous()
        ):
            return torch.cat([t.reshape(-1) for t in tensors])
        place += tensor.numel() * tensor.element_size()
    return first.as_strided((sum(t.numel() for t in tensors),), (1,))
