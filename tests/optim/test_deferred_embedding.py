"""Deferred steps of a table equal steps taken at once, whatever rows are read when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from fastadv.batches.packing import TableRows
from fastadv.optim.host_adam import HostAdam
from fastadv.optim.host_embedding import HostEmbedding
from fastadv.weights.compensations import Compensations

WIDTH = 5


@dataclass
class Plan:
    """What two optimisers, T and G, do to a table in a number of iterations."""

    seed: int
    rows: int = 12
    steps: int = 60
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    # What gradients are at least; they reach up to 1.
    least: float = 1e-3
    varying: bool = False
    irregular: bool = False

    def events(self) -> Iterator[tuple[int, Tensor, Tensor, float]]:
        """(owner, rows, their gradients in float64, learning rate), in order."""
        generator = torch.Generator().manual_seed(self.seed)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, dtype=torch.float64)

        # Few rows are read often, most seldom; the last two never.
        often = 0.5 ** (torch.arange(self.rows) * 6 / self.rows)
        often[-2:] = 0
        for step in range(self.steps):
            for owner, lr in ((0, 1e-2), (1, 1e-4)):
                if self.irregular and float(uniform(1)) < 0.3:
                    continue
                rows = torch.nonzero(uniform(self.rows) < often)[:, 0]
                scale = self.least ** uniform(len(rows), WIDTH)
                sign = torch.where(uniform(len(rows), WIDTH) < 0.5, -1.0, 1.0)
                yield owner, rows, scale * sign, lr * (1 + step % 7 if self.varying else 1)

    def start(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1000)
        return torch.rand(self.rows, WIDTH, generator=generator, dtype=torch.float64)


PLANS = {
    "plain": Plan(0),
    "rates that change every step": Plan(1, varying=True),
    "owners that skip": Plan(2, irregular=True),
    "eps as large as gradients": Plan(3, least=1e-10),
    "large eps": Plan(4, eps=1e-2),
    "short memory": Plan(5, betas=(0.5, 0.9)),
    "no momentum": Plan(6, betas=(0.0, 0.99)),
    "momentum outlives its scale": Plan(7, betas=(0.95, 0.85), steps=30),
    "long waits": Plan(8, steps=300, rows=40),
    "everything": Plan(9, irregular=True, varying=True, least=1e-9, betas=(0.8, 0.99), steps=100),
}


def dense(plan: Plan) -> Tensor:
    """float64, every row in every step, by PyTorch's Adams over one table."""
    table = Parameter(plan.start())
    adams = [torch.optim.Adam([table], betas=plan.betas, eps=plan.eps) for _ in range(2)]
    for owner, rows, values, lr in plan.events():
        table.grad = torch.zeros_like(table)
        table.grad[rows] = values
        adams[owner].param_groups[0]["lr"] = lr
        adams[owner].step()
    return table.detach() - plan.start()


def deferred(
    plan: Plan, backend: str, dtype: torch.dtype, reads: bool = False
) -> tuple[Tensor, HostEmbedding]:
    """What `dense` gives, with rows made up when they are read; with `reads` now and then more."""
    table = Parameter(plan.start().to(dtype))
    compensation = Compensations().of(table)
    if compensation is not None:
        # The whole start, as far as it can be kept.
        compensation.copy_(plan.start() - table.detach().double())
    start = total(table, compensation)
    deferral = HostEmbedding(table, compensation, backend)
    owners = [deferral.add_owner(plan.betas, plan.eps) for _ in range(2)]
    for number, (owner, rows, values, lr) in enumerate(plan.events()):
        deferral.update(owners[owner], sparse(rows, values.to(dtype), table), lr)
        if reads and number % 5 == 0:
            deferral.catch_up(TableRows.of(torch.arange(number % 3, plan.rows, 3)))
        if reads and number % 50 == 49:
            deferral.flush()
    deferral.flush()
    return total(table, compensation) - start, deferral


def sparse(rows: Tensor, values: Tensor, table: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True)


def total(table: Tensor, compensation: Tensor | None) -> Tensor:
    exact = table.detach().double().clone()
    return exact if compensation is None else exact + compensation.double()


# The interpreter takes its time; its kernels are compared plan by plan in tests/ops.
CASES = [(name, backend) for name in PLANS for backend in ("torch", "native")]
CASES += [("short memory", "triton"), ("everything", "triton")]


@pytest.mark.parametrize("reads", [False, True], ids=["", "read between"])
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_equals_dense(name: str, backend: str, reads: bool) -> None:
    """In float64 the quadrature's 1e-9 of what a row missed is all that may differ; where the
    replay is, the roundings of some hundred steps.
    """
    plan = PLANS[name]
    wanted = dense(plan)
    found, _ = deferred(plan, backend, torch.float64, reads)
    limit = 1e-12 if backend == "torch" else 2e-9
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= limit
    # No row by itself: its own displacement is the measure, down to float64's rounding of weights.
    error = (found - wanted).abs().amax(1)
    assert (error <= limit * wanted.abs().amax(1) + 1e-14).all()
    assert not wanted[-2:].any() and not found[-2:].any()


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_equals_dense_in_float32(name: str, backend: str) -> None:
    """A step rounds the compensation by 2^-9 of half an ulp, 3e-8, of a weight near 1, and the
    moments by 6e-8 of the displacement a few times.
    """
    plan = PLANS[name]
    wanted = dense(plan)
    found, _ = deferred(plan, backend, torch.float32)
    steps = sum(1 for _ in plan.events())
    assert float((found - wanted).abs().max()) <= steps * (3e-8 / 512) + 2e-6 * float(
        wanted.abs().max()
    )


def test_a_row_that_waits_for_ten_thousand_steps() -> None:
    """Rows read at steps 1 and 10,000, at 10,000 for the first time, and in every step."""
    table, theirs = (Parameter(torch.full((3, 2), 0.9, dtype=torch.float64)) for _ in range(2))
    deferral = HostEmbedding(table, None, "native")
    owner = deferral.add_owner((0.9, 0.999), 1e-8)
    adam = torch.optim.Adam([theirs], lr=2e-6)
    for step in range(1, 10_001):
        rows = torch.tensor({1: [0, 2], 10_000: [0, 1, 2]}.get(step, [2]))
        values = torch.full((len(rows), 2), 1e-4, dtype=torch.float64)
        values[:, 1] = 1e-9
        theirs.grad = torch.zeros_like(theirs).index_copy(0, rows, values)
        adam.step()
        deferral.update(owner, sparse(rows, values, table), 2e-6)
    deferral.flush()
    moved = theirs.detach() - 0.9
    assert moved.abs().min() > 1e-8
    # Ten thousand roundings of 1e-16 in the dense sum, and the quadrature's 1e-9.
    assert ((table.detach() - 0.9 - moved).abs() <= 1e-9 * moved.abs() + 1e-12).all()


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_reading_shows_all_steps_and_changes_nothing(backend: str) -> None:
    _, whole = deferred(PLANS["everything"], backend, torch.float32)
    plan = PLANS["everything"]
    table = Parameter(plan.start().float())
    compensation = Compensations().of(table)
    assert compensation is not None
    compensation.copy_(plan.start() - table.detach().double())
    waiting = HostEmbedding(table, compensation, backend)
    owners = [waiting.add_owner(plan.betas, plan.eps) for _ in range(2)]
    for owner, rows, values, lr in plan.events():
        waiting.update(owners[owner], sparse(rows, values.float(), table), lr)
    before = {n: t.clone() for n, t in waiting.state_tensors().items()}
    stale, low, address = table.detach().clone(), compensation.clone(), table.data_ptr()
    assert not torch.equal(stale, whole.table)
    with waiting.reading(), waiting.reading():
        assert torch.equal(table, whole.table)
        waiting.catch_up(TableRows.of(torch.arange(len(table))))
        waiting.flush()
        assert torch.equal(table, whole.table)
        with pytest.raises(RuntimeError, match="the table is being read"):
            waiting.update(0, torch.ones_like(table), 1.0)
    assert table.data_ptr() == address
    assert torch.equal(table, stale) and torch.equal(compensation, low)
    assert all(torch.equal(t, waiting.state_tensors()[n]) for n, t in before.items())
    waiting.flush()
    assert torch.equal(table, whole.table)


def test_untouched_rows_are_not_written() -> None:
    _, deferral = deferred(PLANS["plain"], "native", torch.float32)
    exact = PLANS["plain"].start().float()
    assert torch.equal(deferral.table.detach()[-2:], exact[-2:])


@pytest.mark.usefixtures("one_thread")
def test_state_goes_on_where_it_was() -> None:
    """Rows that are behind are saved as they are, and nothing differs by a bit afterwards."""
    events = list(PLANS["everything"].events())

    def fresh() -> tuple[HostEmbedding, Tensor]:
        table = Parameter(PLANS["everything"].start().float())
        compensation = Compensations().of(table)
        assert compensation is not None
        deferral = HostEmbedding(table, compensation, "native")
        for _ in range(2):
            deferral.add_owner((0.8, 0.99), 1e-8)
        return deferral, compensation

    def run(deferral: HostEmbedding, part: list) -> None:
        for owner, rows, values, lr in part:
            deferral.update(owner, sparse(rows, values.float(), deferral.table), lr)

    (one, low_one), (two, low_two) = fresh(), fresh()
    run(one, events[:100])
    saved = {name: t.clone() for name, t in one.state_tensors().items()}
    with torch.no_grad():
        two.table.copy_(one.table)
    low_two.copy_(low_one)
    two.load_state_tensors(saved)
    for deferral in (one, two):
        run(deferral, events[100:])
        deferral.flush()
    assert torch.equal(one.table, two.table) and torch.equal(low_one, low_two)
    for name, tensor in one.state_tensors().items():
        assert torch.equal(tensor, two.state_tensors()[name]), name


def test_states_that_do_not_fit_are_refused() -> None:
    _, deferral = deferred(PLANS["plain"], "native", torch.float32)
    state = deferral.state_tensors()
    with pytest.raises(ValueError, match=r"has no 1\.lrs, expected one"):
        deferral.load_state_tensors({n: t for n, t in state.items() if n != "1.lrs"})
    with pytest.raises(ValueError, match=r"0\.exp_avg has shape \(1, 5\), expected \(12, 5\)"):
        deferral.load_state_tensors(state | {"0.exp_avg": torch.zeros(1, 5)})


def test_changed_betas_hold_from_the_next_step_on() -> None:
    """What rows missed before is made up with the betas of that time."""
    plan = PLANS["plain"]
    table, theirs = Parameter(plan.start()), Parameter(plan.start())
    deferral = HostEmbedding(table, None, "native")
    owner = deferral.add_owner(plan.betas, plan.eps)
    adam = torch.optim.Adam([theirs], betas=plan.betas, eps=plan.eps)
    for number, (_, rows, values, lr) in enumerate(plan.events()):
        if number == 50:
            deferral.set_rates(owner, (0.7, 0.98), 1e-6)
            adam.param_groups[0] |= {"betas": (0.7, 0.98), "eps": 1e-6}
        adam.param_groups[0]["lr"] = lr
        theirs.grad = torch.zeros_like(theirs).index_copy(0, rows, values)
        adam.step()
        deferral.update(owner, sparse(rows, values, table), lr)
    deferral.flush()
    moved = theirs.detach() - plan.start()
    assert ((table.detach() - theirs).abs() <= 2e-9 * moved.abs().max()).all()


def test_a_dense_gradient_counts_for_every_row() -> None:
    start = PLANS["plain"].start()
    table, theirs = Parameter(start.clone()), Parameter(start.clone())
    deferral = HostEmbedding(table, None, "native")
    owner = deferral.add_owner((0.9, 0.999), 1e-8)
    adam = torch.optim.Adam([theirs], lr=1e-2)
    for step in range(4):
        theirs.grad = torch.sin(start * step)
        adam.step()
        deferral.update(owner, theirs.grad, 1e-2)
    # Two orders of the same operations, each rounded.
    torch.testing.assert_close(table.detach(), theirs.detach(), rtol=0, atol=1e-15)


def test_weight_decay_is_refused() -> None:
    table = Parameter(torch.ones(2, 2))
    deferral = HostEmbedding(table, Compensations().of(table), "native")
    with pytest.raises(ValueError, match=r"weight_decay is 0\.1 with a deferred table"):
        HostAdam([("table", table)], lr=1.0, weight_decay=0.1, deferred=deferral)


def test_steps_count_the_tables_version_and_making_up_does_not() -> None:
    """A backward pass over a forward of before a step is refused by autograd; rows that are made up
    for another batch in between are none that the forward read behind time.
    """
    plan = PLANS["plain"]
    table = Parameter(plan.start())
    deferral = HostEmbedding(table, None, "native")
    owner = deferral.add_owner(plan.betas, plan.eps)
    for expected in (1, 2):
        before = table._version
        deferral.update(
            owner, sparse(torch.tensor([expected]), torch.ones(1, WIDTH).double(), table), 0.1
        )
        assert table._version > before
    version, stale = table._version, table.detach().clone()
    deferral.catch_up(TableRows.of(torch.tensor([1])))
    assert table._version == version and not torch.equal(table, stale)
