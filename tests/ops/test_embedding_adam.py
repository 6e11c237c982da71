"""Adam on rows of a table, and the steps that rows missed against their replay in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from adam_checks import (
    CATCH_UP_CASES,
    TABLE_ROWS,
    VOCABULARY,
    WIDTH,
    AdamCase,
    check_catch_up,
    check_embedding_adam,
)
from op_checks import CPU_LEVELS, DEVICES, need, run_at_cpu_level
from torch.library import opcheck

from fastadv import backends
from fastadv.backends import BACKENDS
from fastadv.ops.embedding_adam import embedding_adam, embedding_adam_catch_up

OP = "embedding_adam"
DTYPES = (torch.float32, torch.float64)
RATES = torch.full((4,), 1e-3, dtype=torch.float64)


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("vocabulary", "width", "rows"),
    [
        (1, 1, [0]),
        (9, 77, [0, 3, 4, 8]),
        (9, 77, []),
        (5, 768, [0, 1, 2, 3, 4]),
        # More than a block of Triton's, and more than a task of a thread.
        (60, 1031, list(range(1, 60, 2))),
    ],
)
def test_rows_of_adam(
    vocabulary: int, width: int, rows: list[int], backend: str, dtype: torch.dtype, device: str
) -> None:
    """Rows get what `adam` does to them; every other row keeps its bits."""
    need(OP, backend, device)
    op = partial(embedding_adam, backend=backend)
    check_embedding_adam(op, vocabulary, width, rows, dtype, device)


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CATCH_UP_CASES)
def test_catch_up(case: str, backend: str, dtype: torch.dtype, device: str) -> None:
    need(OP, backend, device)
    op = partial(embedding_adam_catch_up, backend=backend)
    check_catch_up(op, CATCH_UP_CASES[case], dtype, device, one_by_one=backend == "torch")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [name for name in CATCH_UP_CASES if not name.endswith("2000")])
def test_catch_up_in_two_parts(case: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """A row that is read now and then misses the same steps as one that is read once."""
    need(OP, backend, device)
    op = partial(embedding_adam_catch_up, backend=backend)
    given = CATCH_UP_CASES[case]
    check_catch_up(op, given, dtype, device, one_by_one=backend == "torch", split=True)


def test_replay_by_hand() -> None:
    """Two missed steps, so that what all else is held to is not only itself.

    Step 1 left m = 1 and v = 1, and beta1 is 1/2, beta2 1/4, eps 1. Step 2: m = 1/2, v = 1/4,
    corrected (1/2) / (3/4) = 2/3 and (1/4) / (15/16) = 4/15. Step 3: m = 1/4, v = 1/16, corrected
    (1/4) / (7/8) = 2/7 and (1/16) / (63/64) = 4/63.
    """
    wanted = -0.1 * (2 / 3) / (math.sqrt(4 / 15) + 1) - 0.3 * (2 / 7) / (math.sqrt(4 / 63) + 1)
    for backend in BACKENDS:
        if backends.why_not(OP, backend, "cpu") is not None:
            continue
        weight, m, v = (torch.full((3, 1), x, dtype=torch.float64) for x in (0, 1, 1))
        embedding_adam_catch_up(
            weight, None, m, v, torch.tensor([1]), torch.tensor([1]), step=3,
            lrs=torch.tensor([9.0, 0.1, 0.3], dtype=torch.float64), base=0, beta1=0.5, beta2=0.25,
            eps=1.0, backend=backend,
        )  # fmt: skip
        # Some roundings of numbers below 1.
        assert weight[:, 0].tolist() == [0, pytest.approx(wanted, rel=1e-15, abs=0), 0]
        assert (m[1].item(), v[1].item()) == (0.25, 0.0625)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_without_a_rate(dtype: torch.dtype, backend: str) -> None:
    """Rates of 0, as after the end of a schedule: nothing moves, though moments decay."""
    need(OP, backend, "cpu")
    weight = torch.randn(4, 5, dtype=dtype)
    compensation = torch.zeros(4, 5).bfloat16() if dtype == torch.float32 else None
    m, v = torch.ones_like(weight), torch.ones_like(weight)
    before, lrs = weight.clone(), torch.zeros(60, dtype=torch.float64)
    # Before what is missed, so that not all rates that are kept are 0.
    lrs[:10] = 1e-3
    embedding_adam_catch_up(
        weight, compensation, m, v, torch.tensor([1, 3]), torch.tensor([20, 58]), step=60, lrs=lrs,
        base=0, beta1=0.9, beta2=0.999, eps=1e-8, backend=backend,
    )  # fmt: skip
    assert torch.equal(weight, before)
    # As replays of float32 differ: two roundings for each of 40 steps.
    torch.testing.assert_close(m[1], torch.full((5,), 0.9**40, dtype=dtype), rtol=5e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_second_moment_is_refused(backend: str) -> None:
    """With beta2 of 0 the scale is gone after a step, and B_i is no number."""
    need(OP, backend, "cpu")
    weight, m, v = (torch.full((2, 3), x, dtype=torch.float64) for x in (0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="beta2 is 0, expected a number above 0"):
        embedding_adam_catch_up(
            weight, None, m, v, torch.tensor([1]), torch.tensor([4]), step=6,
            lrs=torch.full((2,), 0.1, dtype=torch.float64), base=4, beta1=0.5, beta2=0.0, eps=2.0,
            backend=backend,
        )  # fmt: skip
    assert float(weight.abs().max()) == 0


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
def test_rates_that_are_none_are_refused(rate: float) -> None:
    weight, m, v = (torch.zeros(2, 3, dtype=torch.float64) for _ in range(3))
    with pytest.raises(ValueError, match="lrs holds what is no rate"):
        embedding_adam_catch_up(
            weight, None, m, v, torch.tensor([1]), torch.tensor([4]), step=6,
            lrs=torch.tensor([0.1, rate], dtype=torch.float64), base=4, beta1=0.5, beta2=0.9,
            eps=1.0,
        )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str, device: str) -> None:
    """A batch whose words are all up to date, and one without words."""
    need(OP, backend, device)
    case = AdamCase(((4, 5),))
    lists = case.inputs(torch.float32, device)
    before = [[x.clone() for x in xs] for xs in lists]
    tables = (lists[0][0], lists[1][0], lists[3][0], lists[4][0])
    numbers: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "backend": backend}
    none = torch.zeros(0, dtype=torch.int64)
    embedding_adam(*tables, none.to(device), torch.zeros(0, 5, device=device), step=1, lr=0.1,
                   **numbers)  # fmt: skip
    rates = torch.ones(3, dtype=torch.float64)
    for rows, starts in ((none, none), (torch.tensor([0, 2]), torch.tensor([3, 3]))):
        embedding_adam_catch_up(*tables, rows.to(device), starts, step=3, lrs=rates, base=0,
                                **numbers)  # fmt: skip
    for some, others in zip(lists, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_same_bits_on_any_number_of_threads() -> None:
    """Rows are independent, and each has its rule whoever works it out."""
    need(OP, "native", "cpu")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        # More rows than a task has, and more rules.
        lists = AdamCase(((200, 301),)).inputs(torch.float32, "cpu")
        tables = (lists[0][0], lists[1][0], lists[3][0], lists[4][0])
        rows, starts = torch.arange(0, 200, 2), torch.arange(1, 101)
        numbers: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "backend": "native"}
        rates = torch.linspace(1e-3, 1e-4, 120, dtype=torch.float64)
        embedding_adam_catch_up(*tables, rows, starts, step=120, lrs=rates, base=0, **numbers)
        embedding_adam(*tables, rows, lists[2][0][rows], step=121, lr=1e-4, **numbers)
        results.append(tables)
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_rules_of_python(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Where there is no extension every missed step is a term, and the sum is the same."""
    need(OP, backend, "cpu")
    monkeypatch.setattr(backends, "extension", None)
    case = CATCH_UP_CASES["(0.9, 0.999) 17+200"]
    op = partial(embedding_adam_catch_up, backend=backend)
    # In float64, where the limit of a rule holds for more than 24 terms too.
    check_catch_up(op, case, torch.float64)


def called(function: Any, **other: Any) -> None:
    """`function` on rows 1 and 3 of a table (5, 3), with some arguments replaced."""
    zeros = torch.zeros(5, 3)
    given: dict[str, Any] = {
        "weight": zeros.clone(),
        "compensation": zeros.bfloat16(),
        "exp_avg": zeros.clone(),
        "exp_avg_sq": zeros.clone(),
        "rows": torch.tensor([1, 3]),
        "step": 9,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
    }
    if function is embedding_adam:
        given |= {"grads": torch.zeros(2, 3), "lr": 1e-3}
    else:
        given |= {"starts": torch.tensor([5, 6]), "lrs": RATES, "base": 5}
    function(**(given | other))


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("function", [embedding_adam, embedding_adam_catch_up])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"weight": torch.zeros(5, 3).half()}, "weight has dtype torch.float16, expected float32"),
        ({"weight": torch.zeros(15)}, r"weight has shape \(15,\), expected \(V, H\)"),
        ({"exp_avg": torch.zeros(4, 3)}, r"exp_avg has shape \(4, 3\), expected \(5, 3\)"),
        ({"exp_avg": torch.zeros(5, 3).double()}, "exp_avg has dtype torch.float64"),
        ({"exp_avg_sq": torch.zeros(5, 4)}, r"exp_avg_sq has shape \(5, 4\), expected \(5, 3\)"),
        ({"exp_avg_sq": torch.zeros(5, 3).bfloat16()}, "exp_avg_sq has dtype torch.bfloat16"),
        ({"compensation": None}, "found no compensation, expected one with a float32 table"),
        (
            {"compensation": torch.zeros(5, 3)},
            "compensation has dtype torch.float32, expected torch.bflo",
        ),
        ({"compensation": torch.zeros(5, 2).bfloat16()}, r"compensation has shape \(5, 2\)"),
        ({"rows": torch.tensor([1, 3]).int()}, "rows has dtype torch.int32, expected torch.int64"),
        ({"rows": torch.tensor([[1, 3]])}, r"rows has shape \(1, 2\), expected \(2,\)"),
        ({"rows": torch.tensor([1, 5])}, "rows holds .*5, expected .*row.* of 5"),
        ({"rows": torch.tensor([-1, 3])}, "rows holds -1.*, expected .*row.* of 5"),
        ({"rows": torch.tensor([3, 1])}, "rows (holds 1 after 3|holds 3 to 1|are not ascending)"),
        ({"rows": torch.tensor([3, 3])}, "rows (holds 3 after 3|are not ascending), expected"),
        ({"beta1": 1.0}, r"beta1 is 1.0, expected a number in \[0, 1\)"),
        ({"beta2": 1.0}, r"beta2 is 1.0, expected a number in \[0, 1\)"),
        ({"eps": 0.0}, "eps is 0.0, expected a number above 0"),
    ],
)
def test_refused(function: Any, other: dict[str, Any], message: str, backend: str) -> None:
    need(OP, backend, "cpu")
    called(function, backend=backend)
    with pytest.raises(ValueError, match=message):
        called(function, **other, backend=backend)


@pytest.mark.parametrize(
    ("function", "other", "message"),
    [
        (embedding_adam, {"step": 0}, "step is 0, expected at least 1"),
        (embedding_adam, {"lr": math.nan}, "lr is nan, expected a finite number of at least 0"),
        (embedding_adam, {"grads": torch.zeros(3, 3)}, r"grads has shape \(3, 3\), expected \(2, "),
        (embedding_adam, {"grads": torch.zeros(2, 3).half()}, "grads has dtype torch.float16"),
        (
            embedding_adam_catch_up,
            {"starts": torch.tensor([4, 9])},
            "starts holds 4 to 9, expected steps from 5 to 9",
        ),
        (
            embedding_adam_catch_up,
            {"starts": torch.tensor([5, 10])},
            "starts holds 5 to 10, expected steps from 5 to 9",
        ),
        (
            embedding_adam_catch_up,
            {"starts": torch.tensor([5])},
            r"starts has shape \(1,\), expected \(2,\)",
        ),
        (
            embedding_adam_catch_up,
            {"starts": torch.tensor([5, 6]).int()},
            "starts has dtype torch.int32, expected torch.int64",
        ),
        (
            embedding_adam_catch_up,
            {"lrs": RATES[:3]},
            "lrs ends at step 8, expected rates up to step 9",
        ),
    ],
)
def test_refused_alone(function: Any, other: dict[str, Any], message: str) -> None:
    """What only one of the two functions takes."""
    with pytest.raises(ValueError, match=message):
        called(function, **other)


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("function", [embedding_adam, embedding_adam_catch_up])
@pytest.mark.parametrize("which", ["weight", "exp_avg", "exp_avg_sq", "compensation"])
def test_strided_tables_are_refused(which: str, function: Any, backend: str) -> None:
    """Kernels that walk over memory in order would write to other elements than they mean."""
    need(OP, backend, "cpu")
    table = torch.zeros(
        3, 5, dtype=torch.bfloat16 if which == "compensation" else torch.float32
    ).t()
    with pytest.raises(ValueError, match=f"{which} has strides .*, expected a contiguous tensor"):
        called(function, **{which: table}, backend=backend)


def test_opcheck() -> None:
    """The schemas say what is written to."""
    need(OP, "native", "cpu")
    zeros = torch.zeros(5, 3)
    tables = (zeros.clone(), zeros.bfloat16(), zeros.clone(), zeros.clone(), torch.tensor([1, 3]))
    ops = torch.ops.fastadv
    update = (*tables, torch.ones(2, 3), 7, 1e-3, 0.9, 0.999, 1e-8, 1.0)
    opcheck(ops.embedding_adam.default, update, test_utils="test_schema")
    wide = torch.ones(2, dtype=torch.float64)
    rules = (torch.tensor([0, 0]), torch.tensor([0, 2]), wide, wide, wide[None])
    opcheck(ops.embedding_adam_catch_up.default, (*tables, *rules), test_utils="test_schema")
    counts = (torch.tensor([5]), torch.tensor([3]), RATES, 5, 0.9, 0.999, 1e-8)
    opcheck(ops.deferred_rules.default, counts, test_utils="test_schema")


def test_float64_has_no_compensation() -> None:
    """A compensation that nobody reads would be a mistake of the caller's."""
    wide = {name: torch.zeros(5, 3).double() for name in ("weight", "exp_avg", "exp_avg_sq")}
    with pytest.raises(ValueError, match="found a compensation, expected one with a float32 table"):
        called(embedding_adam_catch_up, **wide)


def test_cases_say_what_they_test() -> None:
    """Every kind of row is in every case: nothing missed, one step, and all of them."""
    for case in CATCH_UP_CASES.values():
        missed = (case.step - case.starts()).tolist()
        assert {0, 1, case.longest} <= set(missed)
        assert len(missed) == len(TABLE_ROWS) < VOCABULARY
        m, v = case.moments()
        assert m.shape == (VOCABULARY, WIDTH)
        assert (v[:, :2] == 0).all() and (m[:, 0] == 0).all() and (m[:, 1] != 0).all()


LEVEL_SCRIPT = """
from functools import partial
import torch
from adam_checks import *
from fastadv.ops.adam import adam
from fastadv.ops.embedding_adam import embedding_adam, embedding_adam_catch_up
for dtype in (torch.float32, torch.float64):
    for case in ADAM_CASES.values():
        check_adam(partial(adam, backend="native"), case, dtype)
    check_embedding_adam(partial(embedding_adam, backend="native"), 9, 77, [0, 3, 8], dtype)
    for name, case in CATCH_UP_CASES.items():
        if not name.endswith("2000"):
            check_catch_up(partial(embedding_adam_catch_up, backend="native"), case, dtype)
"""


@pytest.mark.parametrize(("level", "allowed"), CPU_LEVELS)
def test_every_cpu_level(level: str, allowed: list[str]) -> None:
    need(OP, "native", "cpu")
    run_at_cpu_level(LEVEL_SCRIPT, level, allowed)
