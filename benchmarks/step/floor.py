"""The least time that one step can take on a machine: its floor."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from step.batches import StepDraws, step_flops
from step.systems import Setup


@dataclass(frozen=True)
class Floor:
    """Means over some draws, and seconds at measured rates.

    Attributes:
        flops: Useful floating-point operations of a step.
        optimizer_bytes: The bytes that the updates cannot avoid moving.
        matrix_seconds, copy_seconds: The times of the two, one after the other.
    """

    flops: float
    optimizer_bytes: float
    matrix_seconds: float
    copy_seconds: float

    @property
    def seconds(self) -> float:
        """The floor."""
        return self.matrix_seconds + self.copy_seconds


def floor(setup: Setup, draws: Sequence[StepDraws], flop_rate: float, byte_rate: float) -> Floor:
    """The floor of a step over `draws`; rates are in operations and bytes per second."""
    flops = statistics.fmean(step_flops(setup.encoder.config, d) for d in draws)
    traffic = statistics.fmean(optimizer_bytes(setup, d) for d in draws)
    return Floor(flops, traffic, flops / flop_rate, traffic / byte_rate)


def optimizer_bytes(setup: Setup, draws: StepDraws) -> int:
    """Bytes that the updates of T and G cannot avoid moving.

    There are 28 bytes per weight: the float32 weight and its two moments are read and written, the
    gradient is read. Of the embedding table only the rows in the batch count, because without
    weight decay the update of the others can wait until they are read. D's few hundred weights are
    left out.
    """
    table: Tensor = setup.encoder.get_input_embeddings().weight  # type: ignore[assignment]
    pooler = getattr(setup.encoder, "pooler", None)
    unused = sum(p.numel() for p in pooler.parameters()) if pooler is not None else 0
    dense = sum(p.numel() for p in setup.encoder.parameters()) - unused - table.numel()
    rows_task, rows_generator = draws.rows()
    head = sum(p.numel() for p in setup.task_head.parameters())
    return 28 * (2 * dense + head + (rows_task + rows_generator) * table.shape[1])
