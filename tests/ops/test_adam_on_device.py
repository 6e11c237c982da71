"""Adam's decisions and numbers on the device, and its steps by them."""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import pytest
import torch
from adam_checks import ADAM_CASES, CATCH_UP_CASES, AdamCase, check_adam, check_catch_up
from op_checks import DEVICES, need
from torch import Tensor

from fastadv.ops.adam import StepScalar, adam_apply, adam_begin, rates_of
from fastadv.ops.embedding_adam import (
    NEGLIGIBLE,
    embedding_adam_apply,
    embedding_adam_catch_up_on_device,
    powers_of,
)

DTYPES = (torch.float32, torch.float64)
WAYS = ("torch", "triton")


def begin(norm: float, device: str, backend: str, **options: Any) -> dict[str, Tensor]:
    """The tensors after `adam_begin` over two clocks at steps 3 and 7."""
    given: dict[str, Any] = {
        "rates": rates_of(0.1, 0.5, 0.75, 2.0, 0.01, options.pop("clip", None)),
        "counters": torch.tensor([3, 7]),
        "flags": torch.tensor(options.pop("flags", [0, 0, 0])),
        "scaler": options.pop("scaler", None),
        "step_scalars": torch.full((2, 10), math.nan, dtype=torch.float64),
        "log": torch.zeros(2, 4, dtype=torch.float64),
        "base": torch.tensor([1]),
    }
    given = {k: None if x is None else x.to(device) for k, x in given.items()}
    adam_begin(torch.tensor(norm, device=device), **given, skips=options.pop("skips", False),
               backend=backend)  # fmt: skip
    return {k: x.cpu() for k, x in given.items() if x is not None}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", WAYS)
def test_numbers_by_hand(backend: str, device: str) -> None:
    """Steps 4 and 8 of betas 1/2 and 3/4: 1 - beta^t is 15/16 and 175/256, then 255/256 and
    58975/65536.
    """
    need("adam", backend, device)
    found = begin(5.0, device, backend, clip=1.0)
    assert found["counters"].tolist() == [4, 8] and found["flags"].tolist() == [0, 0, 0]
    clip = 1 / (5 + 1e-6)
    for row, corrections in zip(
        found["step_scalars"].tolist(),
        ((15 / 16, 175 / 256), (255 / 256, 58975 / 65536)),
        strict=True,
    ):
        rate, root = 0.1 / corrections[0], 1 / math.sqrt(corrections[1])
        wanted = [0.5, 0.5, 0.75, 0.25, rate, root, 2.0, 0.001, clip, 1.0]
        # exp(t log(beta)) in float64.
        assert row == pytest.approx(wanted, rel=1e-14)
    # The table's clock did step 4, the third after base 1.
    assert found["log"][:, 2].tolist() == pytest.approx(
        found["step_scalars"][0, 4:6].tolist(), rel=0
    )
    assert found["log"][:, [0, 1, 3]].eq(0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", WAYS)
@pytest.mark.parametrize(
    ("norm", "options", "go", "flags"),
    [
        (1.0, {}, True, [0, 0, 0]),
        (math.nan, {}, False, [1, 1, 0]),
        (math.inf, {}, False, [1, 1, 0]),
        # After a bad step nothing is done, unless steps are skipped one by one.
        (1.0, {"flags": [1, 1, 0]}, False, [1, 1, 0]),
        (1.0, {"flags": [1, 1, 0], "skips": True}, True, [1, 1, 0]),
        (math.nan, {"flags": [4, 1, 0], "skips": True}, False, [5, 1, 0]),
        # While paused nothing is done, and nothing counted.
        (1.0, {"flags": [0, 0, 1]}, False, [0, 0, 1]),
        (math.nan, {"flags": [2, 0, 1], "skips": True}, False, [2, 0, 1]),
    ],
)
def test_decisions(
    norm: float, options: dict[str, Any], go: bool, flags: list[int], backend: str, device: str
) -> None:
    need("adam", backend, device)
    found = begin(norm, device, backend, **options)
    assert found["step_scalars"][:, StepScalar.IS_STEP].tolist() == [float(go)] * 2
    assert found["counters"].tolist() == ([4, 8] if go else [3, 7])
    assert found["flags"].tolist() == flags
    assert bool(found["log"].any()) == go


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", WAYS)
@pytest.mark.parametrize(
    ("norm", "flags", "before", "after"),
    [
        (8.0, [0, 0, 0], [8.0, 0.0], [8.0, 1.0]),
        (8.0, [0, 0, 0], [8.0, 1.0], [16.0, 0.0]),
        (math.inf, [0, 0, 0], [8.0, 1.0], [4.0, 0.0]),
        (math.inf, [0, 0, 1], [8.0, 1.0], [8.0, 1.0]),
    ],
)
def test_scaler(
    norm: float, flags: list[int], before: list[float], after: list[float], backend: str,
    device: str,
) -> None:  # fmt: skip
    """Of an interval of two; the step has the scale that its loss had."""
    need("adam", backend, device)
    scaler = torch.tensor([*before, 2.0], dtype=torch.float64)
    found = begin(norm, device, backend, scaler=scaler, flags=flags, skips=True)
    assert found["scaler"].tolist() == [*after, 2.0]
    if math.isfinite(norm):
        assert found["step_scalars"][:, StepScalar.GRAD_SCALE].tolist() == [1 / 8, 1 / 8]


def numbers_of(step: int, case: dict[str, float], device: str) -> Tensor:
    """numbers (10,) as of `adam_begin`, in the formula's own words."""
    beta1, beta2, lr = case["beta1"], case["beta2"], case["lr"]
    numbers = [
        beta1, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step),
        case["eps"], lr * case["weight_decay"], case["grad_scale"], 1.0,
    ]  # fmt: skip
    return torch.tensor(numbers, dtype=torch.float64, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", WAYS)
@pytest.mark.parametrize("case", ADAM_CASES)
def test_steps_against_the_formula(
    case: str, backend: str, dtype: torch.dtype, device: str
) -> None:
    """As `adam`, tensor by tensor."""
    need("adam", backend, device)

    def steps(
        weights: list[Tensor],
        compensations: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        numbers: list[int],
        **rates: float,
    ) -> None:
        for i, step in enumerate(numbers):
            low = weights[i].bfloat16().fill_(math.nan)
            adam_apply(
                weights[i], compensations[i] if compensations else None, grads[i], exp_avgs[i],
                exp_avg_sqs[i], low, numbers_of(step, rates, device), backend=backend,
            )  # fmt: skip
            assert torch.equal(low, weights[i].bfloat16())

    check_adam(steps, ADAM_CASES[case], dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", WAYS)
def test_no_step_changes_nothing(backend: str, device: str) -> None:
    need("adam", backend, device)
    lists = AdamCase(((6, 37),)).inputs(torch.float32, device)
    (weight,), (compensation,), (grad,), (m,), (v,) = lists
    before = [x.clone() for x in (weight, compensation, m, v)]
    numbers = torch.full((10,), math.nan, dtype=torch.float64, device=device)
    numbers[9] = 0
    low = weight.half()
    adam_apply(weight, compensation, grad, m, v, low, numbers, backend=backend)
    rows = torch.tensor([1, 4], device=device)
    steps, counter = torch.full((6,), 3, dtype=torch.int32, device=device), rows[:1]
    embedding_adam_apply(weight, compensation, m, v, rows, grad[rows].contiguous(), numbers, steps,
                         counter, backend=backend)  # fmt: skip
    after = (weight, compensation, m, v)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(low, weight.half()) and steps.eq(3).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", WAYS)
def test_rows_that_are_none(backend: str, device: str) -> None:
    """-1 fills a list up: no row is read or written for it."""
    need("adam", backend, device)
    case = AdamCase(((6, 37),)).numbers()
    results = []
    for rows in ([1, 4], [1, 4, -1, -1]):
        (weight,), (compensation,), (grad,), (m,), (v,) = AdamCase(((6, 37),)).inputs(
            torch.float32, device
        )
        at = torch.tensor(rows, device=device)
        grads = torch.full((len(rows), 37), math.nan, device=device)
        grads[:2] = grad[[1, 4]]
        steps = torch.full((6,), -1, dtype=torch.int32, device=device)
        counter = torch.tensor([5], device=device)
        embedding_adam_apply(
            weight,
            compensation,
            m,
            v,
            at,
            grads,
            numbers_of(5, case, device),
            steps,
            counter,
            backend=backend,
        )
        assert steps.tolist() == [-1, 5, -1, -1, 5, -1]
        results.append((weight, compensation, m, v))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", WAYS)
@pytest.mark.parametrize(
    "case", [n for n, c in CATCH_UP_CASES.items() if c.betas[0] ** 2 < c.betas[1]]
)
def test_missed_steps(case: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """Against the replay in float64, rows and steps on the device; rows that were never touched,
    and -1, stay as they are.
    """
    need("adam", backend, device)

    def make_up(
        weight: Tensor,
        compensation: Tensor | None,
        m: Tensor,
        v: Tensor,
        rows: Tensor,
        starts: Tensor,
        *,
        step: int,
        lrs: Tensor,
        base: int,
        beta1: float,
        beta2: float,
        eps: float,
    ) -> None:
        t = base + 1 + torch.arange(len(lrs), dtype=torch.float64)
        log = torch.stack([lrs / (1 - beta1**t), (1 - beta2**t).rsqrt()])
        row_steps = torch.full((len(weight),), -1, dtype=torch.int32, device=weight.device)
        row_steps[rows] = starts.to(device=weight.device, dtype=torch.int32)
        everything = torch.arange(len(weight), device=weight.device)
        asked = torch.cat([everything, everything.new_full((3,), -1)])
        embedding_adam_catch_up_on_device(
            weight, compensation, m, v, asked, row_steps,
            *(x.to(weight.device) for x in (
                torch.tensor([step]), torch.tensor([base]), log, powers_of(beta1, beta2),
                rates_of(0.0, beta1, beta2, eps))),
            backend=backend,
        )  # fmt: skip
        assert row_steps[rows].eq(step).all() and row_steps.eq(-1).sum() == len(weight) - len(rows)

    check_catch_up(make_up, CATCH_UP_CASES[case], dtype, device, one_by_one=backend == "torch")


def test_how_many_terms_count() -> None:
    """(0.9 / sqrt(0.999))^i falls below 2^-40 after 265; a sum of three steps has three."""
    powers = powers_of(0.9, 0.999)
    assert powers.shape == (2, 265)
    ratio = 0.9 / math.sqrt(0.999)
    assert ratio**265 <= NEGLIGIBLE < ratio**264
    assert powers[:, 1].tolist() == pytest.approx([0.81, 0.999], rel=1e-15)
    assert powers_of(0.9, 0.999, 3).shape == (2, 3) and powers_of(0.95, 0.9, 7).shape == (2, 7)
    assert powers_of(0.0, 0.9).tolist() == [[0.0], [math.sqrt(0.9)]]
    with pytest.raises(ValueError, match=r"expected beta1\^2 < beta2"):
        powers_of(0.95, 0.9)


def test_the_extension_has_none_of_it() -> None:
    need("adam", "native", "cpu")
    with pytest.raises(RuntimeError, match="backend 'native' has no Adam for CUDA graphs"):
        begin(1.0, "cpu", "native")
    assert partial(begin, 1.0, "cpu", "torch")()["counters"].tolist() == [4, 8]


def test_scalars_have_one_place_in_every_backend() -> None:
    pytest.importorskip("triton")
    kernels = importlib.import_module("fastadv.kernels.adam")
    assert kernels.STEP_SCALARS.value == len(StepScalar)
    assert {s.name: getattr(kernels, s.name).value for s in StepScalar} == {
        s.name: s.value for s in StepScalar
    }
    given = {"lr": 0.5, "beta1": 0.75, "beta2": 0.875, "eps": 0.25, "weight_decay": 0.125}
    made = kernels.make_step_scalars(torch.zeros(1), step=2, grad_scale=3.0, **given)
    wanted = {
        StepScalar.BETA1: 0.75,
        StepScalar.ONE_MINUS_BETA1: 0.25,
        StepScalar.BETA2: 0.875,
        StepScalar.ONE_MINUS_BETA2: 0.125,
        StepScalar.CORRECTED_LR: 0.5 / (1 - 0.75**2),
        StepScalar.ROOT_CORRECTION: 1 / math.sqrt(1 - 0.875**2),
        StepScalar.EPS: 0.25,
        StepScalar.DECAY: 0.0625,
        StepScalar.GRAD_SCALE: 3.0,
        StepScalar.IS_STEP: 1.0,
    }
    assert made.tolist() == [wanted[place] for place in StepScalar]
