"""Adam on rows of a table, and the steps that rows missed against their replay in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adam_checks import (
    BETAS,
    CATCH_UP_CASES,
    TABLE_ROWS,
    VOCABULARY,
    WIDTH,
    AdamCase,
    CatchUpCase,
    check_catch_up,
    check_embedding_adam,
    replayed,
    rule_errors,
)
from op_checks import DEVICES, need
from torch import Tensor
from torch.library import opcheck

from fastadv import backends
from fastadv.backends import BACKENDS
from fastadv.ops.embedding_adam import embedding_adam, embedding_adam_catch_up, missed_steps

OP = "embedding_adam"
DTYPES = (torch.float32, torch.float64)


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
    residual = torch.zeros(4, 5).bfloat16() if dtype == torch.float32 else None
    m, v = torch.ones_like(weight), torch.ones_like(weight)
    before, lrs = weight.clone(), torch.zeros(60, dtype=torch.float64)
    # Before what is missed, so that not all rates that are kept are 0.
    lrs[:10] = 1e-3
    embedding_adam_catch_up(
        weight, residual, m, v, torch.tensor([1, 3]), torch.tensor([20, 58]), step=60, lrs=lrs,
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


def rule_of(
    betas: tuple[float, float], s: int, k: int, lrs: Tensor, eps: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Weights and nodes of one rule; lrs are the rates from step s + 1 on."""
    offsets, weights, nodes = torch.ops.fastadv.deferred_rules(
        torch.tensor([s]), torch.tensor([k]), lrs, s, *betas, eps
    )
    assert offsets.tolist() == [0, len(weights)]
    assert len(nodes) == len(weights)
    return weights, nodes


@pytest.mark.parametrize("k", [1, 6, 7, 8, 30, 200, 2000])
@pytest.mark.parametrize("s", [1, 17, 400, 5000])
@pytest.mark.parametrize("betas", BETAS)
def test_rules(betas: tuple[float, float], s: int, k: int) -> None:
    """Positive weights, far fewer than steps, and the sum to 1e-9."""
    need(OP, "native", "cpu")
    random = torch.Generator().manual_seed(s + k)
    lrs = 1e-3 * (0.1 + torch.rand(k, generator=random, dtype=torch.float64))
    weights, nodes = rule_of(betas, s, k, lrs)
    if betas[0] > 0:
        assert (weights > 0).all()
        # The error of a rule, and none of rounding to speak of: all terms are positive.
        assert rule_errors(nodes, weights, s, k, lrs, betas).max() < 1e-9
    else:
        # Without momentum nothing moves.
        assert (weights == 0).all()
    assert (nodes > 0).all()
    assert len(weights) <= k
    # At most the steps that matter, where momentum decays faster than its scale; and a quadrature's
    # few with the betas that everybody uses.
    if k == 2000 and betas[0] ** 2 < betas[1]:
        assert len(weights) <= (24 if betas == (0.9, 0.999) else 250)


def test_rules_scale_with_eps_and_rates() -> None:
    """Nodes are multiples of eps, and weights of the rates."""
    need(OP, "native", "cpu")
    lrs = torch.full((100,), 1e-3, dtype=torch.float64)
    weights, nodes = rule_of((0.9, 0.999), 50, 100, lrs)
    others = rule_of((0.9, 0.999), 50, 100, lrs * 8, eps=2.0**-20)
    # Powers of two, so bit for bit.
    assert torch.equal(others[0], weights * 8)
    assert torch.equal(others[1], nodes * 2.0**-20)


def test_rules_end_to_end() -> None:
    """Several rules in one call are those of single calls, with rates found by their step."""
    need(OP, "native", "cpu")
    starts, counts = torch.tensor([3, 10, 12, 5]), torch.tensor([90, 0, 50, 4])
    lrs = torch.linspace(1e-4, 1e-3, 100, dtype=torch.float64)
    found = torch.ops.fastadv.deferred_rules(starts, counts, lrs, 3, 0.9, 0.999, 1e-8)
    offsets, weights, nodes = found
    assert offsets[0] == 0 and offsets[2] == offsets[1]
    for i, (s, k) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        at = slice(int(offsets[i]), int(offsets[i + 1]))
        if k == 0:
            continue
        errors = rule_errors(
            nodes[at] / 1e-8, weights[at], s, k, lrs[s - 3 : s - 3 + k], (0.9, 0.999)
        )
        assert errors.max() < 1e-9


def test_missed_steps_are_those_of_adam() -> None:
    """The sum that rules stand for, term by term, against one step of the replay each."""
    case = CatchUpCase((0.9, 0.999), 1e-8, 17, 1)
    starts = case.starts()
    a, b = missed_steps(17, 1, case.lrs().numpy()[17 - case.base :][:1], 0.9, 0.999)
    m, v = case.moments()
    exact = -m * a[0] / (v.sqrt() + 1e-8 * b[0])
    rows = torch.tensor(TABLE_ROWS)[starts == 17]
    assert len(rows) > 0
    # A dozen roundings of float64.
    torch.testing.assert_close(replayed(case)[0][rows], exact[rows], rtol=2e-15, atol=0)


RATES = torch.full((4,), 1e-3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([4], [1], RATES, 5), "found a row last in step 4 that missed 1, expected steps from 5"),
        (([5], [5], RATES, 5), "found a row last in step 5 that missed 5, expected steps from 5 t"),
        (([5], [-1], RATES, 5), "found a row last in step 5 that missed -1"),
        (([5, 6], [1], RATES, 5), r"counts has shape \[1\], expected \[2\]"),
        (([5], [1], RATES.float(), 5), "lrs has dtype Float, expected Double"),
    ],
)
def test_refused_rules(args: tuple[Any, ...], message: str) -> None:
    need(OP, "native", "cpu")
    starts, counts, lrs, base = args
    with pytest.raises(ValueError, match=message):
        torch.ops.fastadv.deferred_rules(
            torch.tensor(starts), torch.tensor(counts), lrs, base, 0.9, 0.999, 1e-8
        )


def called(function: Any, **other: Any) -> None:
    """`function` on rows 1 and 3 of a table (5, 3), with some arguments replaced."""
    zeros = torch.zeros(5, 3)
    given: dict[str, Any] = {
        "weight": zeros.clone(),
        "residual": zeros.bfloat16(),
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
        ({"residual": None}, "found no residual, expected one with a float32 table"),
        ({"residual": torch.zeros(5, 3)}, "residual has dtype torch.float32, expected torch.bflo"),
        ({"residual": torch.zeros(5, 2).bfloat16()}, r"residual has shape \(5, 2\)"),
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
@pytest.mark.parametrize("which", ["weight", "exp_avg", "exp_avg_sq", "residual"])
def test_strided_tables_are_refused(which: str, function: Any, backend: str) -> None:
    """Kernels that walk over memory in order would write to other elements than they mean."""
    need(OP, backend, "cpu")
    table = torch.zeros(3, 5, dtype=torch.bfloat16 if which == "residual" else torch.float32).t()
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


def test_float64_has_no_residual() -> None:
    """A residual that nobody reads would be a mistake of the caller's."""
    wide = {name: torch.zeros(5, 3).double() for name in ("weight", "exp_avg", "exp_avg_sq")}
    with pytest.raises(ValueError, match="found a residual, expected one with a float32 table"):
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
import sys
from functools import partial
import torch
from adam_checks import *
from fastadv.backends import extension
from fastadv.ops.adam import adam
from fastadv.ops.embedding_adam import embedding_adam, embedding_adam_catch_up
assert extension.build_info()["cpu_level"] in sys.argv[1:], extension.build_info()
for dtype in (torch.float32, torch.float64):
    for case in ADAM_CASES.values():
        check_adam(partial(adam, backend="native"), case, dtype)
    check_embedding_adam(partial(embedding_adam, backend="native"), 9, 77, [0, 3, 8], dtype)
    for name, case in CATCH_UP_CASES.items():
        if not name.endswith("2000"):
            check_catch_up(partial(embedding_adam_catch_up, backend="native"), case, dtype)
"""


@pytest.mark.parametrize(
    ("level", "allowed"), [("portable", ["portable"]), ("avx2", ["avx2", "portable"])]
)
def test_every_cpu_level(level: str, allowed: list[str]) -> None:
    need(OP, "native", "cpu")
    environment = {
        **os.environ,
        "FASTADV_CPU_LEVEL": level,
        "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-c", LEVEL_SCRIPT, *allowed],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
