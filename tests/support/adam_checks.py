"""Checks of Adam and of its deferred steps against float64, for tests of every backend.

They take the operation as a function, so that test_mutants.py can hand them broken ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from fastadv.ops.embedding_adam import embedding_adam_catch_up_ref, missed_steps

# Half a unit in the last place of 1: what one rounding may do.
HALF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}

Op = Callable[..., None]


@dataclass(frozen=True)
class AdamCase:
    """Shapes, the step of each tensor, the gradients' size, and the numbers of the step."""

    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...] = (1,)
    size: float = 1.0
    weight_decay: float = 0.0
    grad_scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    lr: float = 0.01

    def numbers(self) -> dict[str, float]:
        return {
            "lr": self.lr,
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "grad_scale": self.grad_scale,
        }

    def inputs(self, dtype: torch.dtype, device: str) -> list[list[Tensor]]:
        """weights, compensations, grads, exp_avgs and exp_avg_sqs."""
        random = torch.Generator().manual_seed(sum(map(sum, self.shapes)) * 31 + self.steps[-1])
        lists: list[list[Tensor]] = [[], [], [], [], []]
        for shape in self.shapes:
            weight, rest, grad, m, v = (
                torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(5)
            )
            weight = weight.to(dtype)
            lists[0].append(weight)
            if dtype == torch.float32:
                # Up to half a unit in the last place of a weight, as a step leaves it.
                unit = weight.abs() * (HALF[dtype] / 2)
                lists[1].append((rest.clamp(-1, 1) * unit).bfloat16())
            lists[2].append((grad * self.size).to(dtype))
            lists[3].append((m * self.size).to(dtype))
            lists[4].append((v * self.size * self.grad_scale).square().to(dtype))
        return [[x.to(device) for x in xs] for xs in lists]


ADAM_CASES = {
    "one number": AdamCase(((1,),)),
    "nothing": AdamCase(((0,),)),
    "odd": AdamCase(((77,),), (3,)),
    "matrix": AdamCase(((33, 77),), (10,)),
    "no rows": AdamCase(((0, 5),), (2,)),
    "large": AdamCase(((131, 1027),), (1000,), betas=(0.8, 0.95)),
    "several": AdamCase(((5,), (3, 7), (0,), (1,), (2, 3, 4)), (1, 2, 3, 500, 100000)),
    "decay": AdamCase(((33, 5), (9,)), (1, 4), weight_decay=0.1),
    "scaled": AdamCase(((19, 6),), (7,), grad_scale=0.03),
    "scaled, decay": AdamCase(((19, 6),), (7,), grad_scale=-64.0, weight_decay=0.5),
    "no gradient": AdamCase(((41,),), (9,), size=0.0, weight_decay=0.01),
    # A tenth of eps: it says how far the weight moves, not the gradient's sign alone.
    "eps": AdamCase(((50,),), (1,), size=1e-9),
    "no momentum": AdamCase(((50,),), (6,), betas=(0.0, 0.999)),
    "no rate": AdamCase(((50,),), (6,), lr=0.0),
}


def check_adam(op: Op, case: AdamCase, dtype: torch.dtype, device: str = "cpu") -> None:
    """One step of `op`, called as `adam`, against the formula in float64."""
    check_step(op, case, case.inputs(dtype, device), dtype)


def check_step(op: Op, case: AdamCase, before: list[list[Tensor]], dtype: torch.dtype) -> None:
    """`check_adam` on given weights, compensations, grads, exp_avgs and exp_avg_sqs."""
    given = [[x.clone() for x in xs] for xs in before]
    op(*given, list(case.steps), **case.numbers())
    for old, new in zip(before[2], given[2], strict=True):
        assert torch.equal(old, new), "the gradient was written to"
    beta1, beta2 = case.betas
    for i, step in enumerate(case.steps):
        w, g, m, v = (before[j][i].double() for j in (0, 2, 3, 4))
        g = g * case.grad_scale
        wide = w if dtype == torch.float64 else w + before[1][i].double()
        new_m, new_v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        root = (new_v / (1 - beta2**step)).sqrt() + case.eps
        rate = case.lr / (1 - beta1**step)
        exact = wide - rate * new_m / root - case.lr * case.weight_decay * wide
        # The sum of m may cancel, so its error is one of its terms: each has a constant that is
        # rounded, a scaled gradient, a product and the sum, 4 halves of a unit.
        terms = beta1 * m.abs() + (1 - beta1) * g.abs()
        half = HALF[dtype]
        within(given[3][i], new_m, 4 * half * terms, "exp_avg")
        # All of v is positive: constant, two of the gradient's, two products and the sum.
        within(given[4][i], new_v, 6 * half * new_v, "exp_avg_sq")
        # 4 of m and its rate, product and quotient 4, half of v's and its root 4, constant and sum
        # 4: 16 halves; decay has constant and product, and the sum of both.
        moved = rate * terms / root + case.lr * case.weight_decay * w.abs()
        after = given[0][i].double()
        if dtype == torch.float32:
            compensation = given[1][i]
            after = after + compensation.double()
            unit = torch.nextafter(given[0][i].abs(), given[0][i] + torch.inf) - given[0][i].abs()
            assert (compensation.double().abs() <= unit.double() / 2).all(), (
                "compensation above half a unit"
            )
        # What is kept is the weight and eight bits of the rest, which is at most half a unit of the
        # weight: half a unit of that. float64 has its own half unit.
        kept = 2.0**-9 * half if dtype == torch.float32 else half
        within(after, exact, 18 * half * moved + 2 * kept * exact.abs(), "weight")


def within(got: Tensor, exact: Tensor, limit: Tensor, name: str) -> None:
    """Every element of `got` is finite and within `limit` of `exact`."""
    assert got.isfinite().all(), f"{name} is not finite"
    if got.numel() == 0:
        return
    error = (got.double() - exact.double()).abs()
    # Numbers below the normal ones of their type are absolutely precise.
    excess = (error - limit - torch.finfo(got.dtype).smallest_normal).max().item()
    assert excess <= 0, f"{name}: worst error {error.max().item():.3g}, {excess:.3g} over the limit"


# Momentum that decays faster than its scale, five ways, and the last where it is slower: a step
# without a gradient is then longer than the one before it, until eps stops it.
BETAS = ((0.9, 0.999), (0.8, 0.95), (0.9, 0.99), (0.0, 0.999), (0.95, 0.9))
EPS = (1e-8, 1e-3, 1e-12)
# The first start, and the longest run of missed steps.
RUNS = ((1, 30), (5000, 2000), (17, 200), (1, 2000))
VOCABULARY, WIDTH = 11, 21
TABLE_ROWS = (0, 2, 3, 4, 7, 8, 9)


@dataclass(frozen=True)
class CatchUpCase:
    """Numbers of Adam, the earliest start and the most steps missed."""

    betas: tuple[float, float]
    eps: float
    first: int
    longest: int

    @property
    def step(self) -> int:
        return self.first + self.longest

    @property
    def base(self) -> int:
        """Rates are kept from a step before the first start on."""
        return self.first - 1

    def random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.first * 31 + self.longest)

    def lrs(self) -> Tensor:
        """A rate of its own for every step, and one more than is needed."""
        count = self.step - self.base + 1
        return 1e-3 * (0.2 + torch.rand(count, generator=self.random(), dtype=torch.float64))

    def starts(self) -> Tensor:
        """Of the rows: the earliest, the latest (nothing missed), one step missed, and others."""
        some = torch.randint(
            self.first, self.step + 1, (len(TABLE_ROWS) - 3,), generator=self.random()
        )
        return torch.cat([some[:2], torch.tensor([self.first, self.step, self.step - 1]), some[2:]])

    def moments(self) -> tuple[Tensor, Tensor]:
        """m and v (V, H), float64 that float32 holds too: gradients from 1e-12 to 1e3 and none."""
        random = self.random()
        size = torch.logspace(-12, 3, WIDTH - 2, dtype=torch.float64)
        shape = (VOCABULARY, WIDTH)
        m = torch.randn(shape, generator=random, dtype=torch.float64)
        v = torch.rand(shape, generator=random, dtype=torch.float64) + 0.1
        m[:, 2:] *= size
        v[:, 2:] *= size.square()
        # A column that never got a gradient, and one whose squares are too small for their type.
        v[:, :2] = 0
        m[:, 0] = 0
        m[:, 1] *= 1e-30
        return m.float().double(), v.float().double()

    def numbers(self) -> dict[str, float]:
        return {"beta1": self.betas[0], "beta2": self.betas[1], "eps": self.eps}


CATCH_UP_CASES = {
    f"{betas} {first}+{longest}": CatchUpCase(betas, EPS[(i + j) % 3], first, longest)
    for (i, betas), (j, (first, longest)) in product(enumerate(BETAS), enumerate(RUNS))
}


@cache
def replayed(case: CatchUpCase) -> tuple[Tensor, Tensor, Tensor]:
    """Displacement, m and v after every step was done one by one in float64, from weights of 0."""
    m, v = case.moments()
    weight = torch.zeros_like(m)
    embedding_adam_catch_up_ref(
        weight, None, m, v, torch.tensor(TABLE_ROWS), case.starts(), step=case.step,
        lrs=case.lrs(), base=case.base, **case.numbers(),
    )  # fmt: skip
    return weight, m, v


def catch_up_limits(case: CatchUpCase, dtype: torch.dtype, one_by_one: bool) -> tuple[float, float]:
    """Relative errors that the displacement, and m and v, may have."""
    k = case.longest
    half = HALF[dtype]
    if dtype == torch.float64:
        # Rules are good to 1e-9 of what is missed, once for the steps they leave out and once for
        # the quadrature; a third for what both and the replay round. Replays differ by roundings:
        # of 2000 products for m and v, 2.2e-13 if all erred alike, and some of a quotient.
        return (1e-12 if one_by_one else 3e-9), 1e-12
    if one_by_one:
        # Each step rounds a constant and a product of m, and of v, whose root has half of that;
        # ten for what is rounded once in a step: root, constant, eps, sum, quotient, rate, weight.
        return (3 * k + 10) * half, (2 * k + 2) * half
    # Ten, for the same reason, and one for each term that is added, which are all positive. Where
    # momentum decays faster than its scale, a rule has no more than the steps that matter.
    ratio = case.betas[0] / case.betas[1] ** 0.5
    terms = k if ratio >= 1 else min(k, 24 + math.ceil(math.log(1e-9, max(ratio, 0.5))))
    return (terms + 10) * half + 3e-9, 2 * half


def check_catch_up(
    op: Op,
    case: CatchUpCase,
    dtype: torch.dtype,
    device: str = "cpu",
    one_by_one: bool = False,
    split: bool = False,
) -> None:
    """`op`, called as `embedding_adam_catch_up`, against a replay in float64.

    Weights start at 0, so that the displacement is what they are, and nothing of it is cancelled.

    Args:
        one_by_one: `op` does every step, in `dtype`.
        split: The steps are missed in two parts: rows that start before the middle catch up first.
    """
    exact = replayed(case)
    m, v = (x.to(device, dtype) for x in case.moments())
    untouched = [i for i in range(VOCABULARY) if i not in TABLE_ROWS]
    weight = torch.zeros_like(m)
    compensation = torch.zeros_like(m).bfloat16() if dtype == torch.float32 else None
    tables = [weight, m, v, *([] if compensation is None else [compensation])]
    # Bits of their own in rows that nobody asked for, the weight's and the compensation's too.
    for table in tables:
        table[untouched] = 0.7
    before = [table.clone() for table in tables]
    rows, starts = torch.tensor(TABLE_ROWS), case.starts()
    still = [*untouched, *rows[starts == case.step].tolist()]

    def to(step: int, which: Tensor, starts: Tensor) -> None:
        op(
            weight, compensation, m, v, rows[which].to(device), starts, step=step,
            lrs=case.lrs()[: step - case.base], base=case.base, **case.numbers(),
        )  # fmt: skip

    everything = torch.ones(len(rows), dtype=torch.bool)
    if split:
        middle = case.first + case.longest // 2
        early = starts < middle
        to(middle, early, starts[early])
        starts = starts.clamp(min=middle)
    to(case.step, everything, starts)
    for old, new in zip(before, tables, strict=True):
        assert torch.equal(old[still], new[still]), "a row that missed nothing changed"
    moved = weight.double() if compensation is None else weight.double() + compensation.double()
    moved_limit, moment_limit = catch_up_limits(case, dtype, one_by_one)
    if split:
        # Two sums instead of one, the second from rounded moments.
        moved_limit, moment_limit = 2 * moved_limit, 2 * moment_limit
    for name, got, wanted, limit in zip(
        ("displacement", "exp_avg", "exp_avg_sq"), (moved, m, v), exact,
        (moved_limit, moment_limit, moment_limit), strict=True,
    ):  # fmt: skip
        wanted = wanted.to(device)
        floor = torch.finfo(dtype).smallest_normal
        within(got[rows], wanted[rows], limit * wanted[rows].abs() + floor, name)


def rule_errors(
    nodes: Tensor, weights: Tensor, s: int, k: int, lrs: Tensor, betas: tuple[float, float]
) -> np.ndarray:
    """Relative errors of a rule, with eps 1, in the sum of A / (y + B), for y from 0 to 1e6."""
    a, b = missed_steps(s, k, lrs.numpy(), *betas)
    y = np.concatenate([[0.0], np.logspace(-6, 6, 61)])[:, None]
    wanted = (a / (y + b)).sum(1)
    return np.abs((weights.numpy() / (y + nodes.numpy())).sum(1) - wanted) / wanted


def check_embedding_adam(
    op: Op,
    vocabulary: int,
    width: int,
    rows: list[int],
    dtype: torch.dtype,
    device: str = "cpu",
) -> None:
    """`op`, called as `embedding_adam`, on rows of a table: `check_adam` on these rows alone."""
    case = AdamCase(((vocabulary, width),), (12,), grad_scale=0.25)
    before = [xs[0] for xs in case.inputs(dtype, device) if xs]
    after = [x.clone() for x in before]
    weight, m, v = after[0], after[-2], after[-1]
    compensation = after[1] if dtype == torch.float32 else None
    at = torch.tensor(rows, dtype=torch.int64, device=device)
    numbers = {k: x for k, x in case.numbers().items() if k != "weight_decay"}
    op(weight, compensation, m, v, at, before[-3][at], step=12, **numbers)
    others = [i for i in range(vocabulary) if i not in rows]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[others], new[others]), "a row that was not named changed"

    def on_rows(weights: list[Tensor], compensations: list[Tensor], grads: list[Tensor],
                exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], *_: object,
                **__: object) -> None:  # fmt: skip
        weights[0].copy_(weight[at])
        exp_avgs[0].copy_(m[at])
        exp_avg_sqs[0].copy_(v[at])
        if compensation is not None:
            compensations[0].copy_(compensation[at])

    part = [[x[at]] for x in before]
    if compensation is None:
        part.insert(1, [])
    check_step(on_rows, case, part, dtype)
