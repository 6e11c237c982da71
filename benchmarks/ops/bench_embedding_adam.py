"""Adam on rows of a table, and the steps that they missed: every backend; torch replays them.

pytest benchmarks/ops/bench_embedding_adam.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_common import DEVICES, need, synchronised
from torch import Tensor

from fastadv.backends import BACKENDS
from fastadv.ops.embedding_adam import (
    embedding_adam,
    embedding_adam_catch_up,
    embedding_adam_catch_up_ref,
    embedding_adam_ref,
)

# A tenth of mBERT's table, of which a batch reads a sixth.
WORDS, ROWS, HIDDEN = 12000, 2000, 768
# The most steps that a row has missed; rows differ in how many.
MISSED, START = 200, 300
STEP = START + MISSED
NUMBERS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


class Table:
    """A table and its moments, the rows of a batch, their gradients and last steps."""

    def __init__(self, device: str, dtype: torch.dtype = torch.float32) -> None:
        random = torch.Generator().manual_seed(4)

        def new(rows: int, size: float) -> Tensor:
            return (torch.randn(rows, HIDDEN, generator=random) * size).to(device, dtype)

        self.weight, self.exp_avg = new(WORDS, 0.02), new(WORDS, 1e-4)
        # At least the square of 1e-4: a row with hardly any gradient would move by hundreds of
        # rates.
        self.exp_avg_sq = new(WORDS, 1e-3).square() + 1e-8
        self.compensation = (
            torch.zeros_like(self.weight).bfloat16() if dtype == torch.float32 else None
        )
        self.grads = new(ROWS, 1e-3)
        self.rows = torch.randperm(WORDS, generator=random)[:ROWS].sort().values.to(device)
        self.starts = torch.randint(START, STEP, (ROWS,), generator=random)
        self.lrs = torch.linspace(2e-5, 1e-5, MISSED, dtype=torch.float64)

    def tables(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        return self.weight, self.compensation, self.exp_avg, self.exp_avg_sq, self.rows

    def catch_up(self, function: Callable[..., None], **options: Any) -> None:
        function(
            *self.tables(), self.starts, step=STEP, lrs=self.lrs, base=START, **NUMBERS, **options
        )

    def update(self, function: Callable[..., None], **options: Any) -> None:
        function(*self.tables(), self.grads, step=STEP + 1, lr=1e-5, **NUMBERS, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", BACKENDS)
@pytest.mark.parametrize("what", ["catch_up", "update"])
def test_bench(benchmark: Any, what: str, way: str, device: str) -> None:
    benchmark.group = f"{device} {what} {ROWS}x{HIDDEN}"
    need("embedding_adam", way, device)
    function = embedding_adam_catch_up if what == "catch_up" else embedding_adam
    reference = embedding_adam_catch_up_ref if what == "catch_up" else embedding_adam_ref
    table, exact = Table(device), Table(device, torch.float64)
    getattr(table, what)(function, backend=way)
    getattr(exact, what)(reference)
    # Before anything is timed. The limits are one unit of the float32 weight, and what the replay's
    # 200 roundings of moments do to a displacement of some rates.
    torch.testing.assert_close(table.weight.double(), exact.weight, rtol=1.2e-7, atol=1e-8)

    def step() -> None:
        getattr(table, what)(function, backend=way)

    moments = table.exp_avg.clone(), table.exp_avg_sq.clone()

    def restore() -> None:
        """Otherwise momentum would reach subnormal numbers, which are slow, after some rounds."""
        table.exp_avg.copy_(moments[0])
        table.exp_avg_sq.copy_(moments[1])
        if device == "cuda":
            torch.cuda.synchronize()

    # One replay takes seconds.
    rounds = 3 if (what, way) == ("catch_up", "torch") else 20
    timed = synchronised(step, device)
    benchmark.pedantic(timed, setup=restore, rounds=rounds, warmup_rounds=1)
    # Weight, both moments and compensation, both ways; a gradient, except for missed steps.
    moved = (28 + 4 * (what == "update")) * ROWS * HIDDEN
    benchmark.extra_info["GB/s"] = round(moved / benchmark.stats.stats.median / 1e9, 2)
