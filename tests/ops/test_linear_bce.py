"""Linear score and binary cross-entropy: by hand, against the reference, and as an operator."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from op_checks import DEVICES, DTYPES, bce_inputs, check_bce, need
from torch.library import opcheck

from fastadv.backends import BACKENDS
from fastadv.ops import discriminator_loss, generator_loss, linear_bce
from fastadv.ops.linear_bce import linear_bce_ref

OP = "linear_bce"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str, device: str) -> None:
    need(OP, backend, device)
    h = torch.tensor([[1.0, 2.0], [3.0, -1.0]], device=device, requires_grad=True)
    weight = torch.tensor([2.0, -1.0], device=device, requires_grad=True)
    bias = torch.tensor(0.0, device=device, requires_grad=True)
    loss, logits = linear_bce(
        h, weight, bias, torch.tensor([1.0, 0.0], device=device), backend=backend
    )
    # z = (0, 7): the mean of log 2 and log(1 + e^7); sigmoid(z) - y = (-1/2, sigmoid(7)).
    assert logits.tolist() == [0.0, 7.0]
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(7))) / 2, rel=1e-6)
    loss.backward()
    d0, d1 = -0.25, 0.5 / (1 + math.exp(-7))
    for got, wanted in (
        (h.grad, [2 * d0, -d0, 2 * d1, -d1]),
        (weight.grad, [d0 + 3 * d1, 2 * d0 - d1]),
        (bias.grad, [d0 + d1]),
    ):
        assert got is not None
        # Six digits: single precision, and functions within a few units of the last place.
        assert got.flatten().tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_relaxed_by_hand(backend: str, device: str) -> None:
    need(OP, backend, device)
    h = torch.tensor([[1.0, 2.0], [3.0, -1.0]], device=device, requires_grad=True)
    weight = torch.tensor([2.0, -1.0], device=device, requires_grad=True)
    bias = torch.tensor(0.0, device=device, requires_grad=True)
    targets = torch.tensor([1.0, 0.0], device=device)
    loss, logits = linear_bce(h, weight, bias, targets, relaxation=1.0, backend=backend)
    # z = (0, 7), p = (1/2, sigmoid(7)) / 3: the mean of log 6 and -log(1 - p).
    assert logits.tolist() == [0.0, 7.0]
    p = 1 / (1 + math.exp(-7)) / 3
    assert loss.item() == pytest.approx((math.log(6) - math.log(1 - p)) / 2, rel=1e-6)
    loss.backward()
    # -log p falls by 1 - sigmoid(z), and -log(1 - p) rises by p' / (1 - p).
    d0, d1 = -0.25, p * (1 - 3 * p) / (1 - p) / 2
    for got, wanted in (
        (h.grad, [2 * d0, -d0, 2 * d1, -d1]),
        (weight.grad, [d0 + 3 * d1, 2 * d0 - d1]),
        (bias.grad, [d0 + d1]),
    ):
        assert got is not None
        # Six digits: single precision, and functions within a few units of the last place.
        assert got.flatten().tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relaxation", [1e-9, 0.5, 3.0])
def test_relaxed_loss_is_the_papers(relaxation: float, backend: str) -> None:
    """p = sigmoid(z) / (2 + relaxation), written down as it stands; 1e-9 bounds it by a half."""
    need(OP, backend, "cpu")
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for z in (-9.0, -2.0, 0.0, 0.5, 3.0, 15.0):
        p = 1 / (1 + math.exp(-z)) / (2 + relaxation)
        for y, wanted in ((1.0, -math.log(p)), (0.0, -math.log(1 - p))):
            loss, _ = linear_bce(
                one[None] * z, one, none, one * y, None, relaxation, backend=backend
            )
            # Near p = 0 the line above loses digits of 1 - p: 1e-16 of 1e-5.
            assert loss.item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relaxed_discriminator_ignores_what_is_not_much_denser(backend: str) -> None:
    """In one place with these shares of English and of others, over all z."""
    need(OP, backend, "cpu")

    def slope(z: float, english: float, others: float) -> float:
        bias = torch.tensor([z], dtype=torch.float64, requires_grad=True)
        h, weight = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        shares = torch.tensor([english, others], dtype=torch.float64)
        targets = torch.tensor([1.0, 0.0], dtype=torch.float64)
        loss, _ = linear_bce(h, weight, bias, targets, shares, 0.5, backend=backend)
        return torch.autograd.grad(loss, bias)[0].item()

    # Others are 7/3 as dense, more than 1.5: p is best at 0.3, where sigmoid(z) = 0.3 * 2.5 = 3/4.
    assert slope(math.log(3), 0.3, 0.7) == pytest.approx(0, abs=1e-15)
    assert slope(math.log(3) - 0.1, 0.3, 0.7) < -1e-3
    assert slope(math.log(3) + 0.1, 0.3, 0.7) > 1e-3
    # At less than 1.5 p goes to its bound, and so do the losses' slopes to nothing.
    slopes = [slope(z, 0.42, 0.58) for z in (-20.0, 0.0, 5.0, 10.0, 20.0)]
    assert all(x < 0 for x in slopes) and slopes == sorted(slopes) and slopes[-1] > -1e-8


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("rows", "hidden", "weighted", "soft", "relaxation"),
    [
        (1, 1, True, False, 0.0),
        (7, 77, True, True, 0.0),
        (7, 77, False, False, 0.0),
        (32, 768, True, False, 0.0),
        (131, 130, False, True, 0.0),
        (3, 0, True, False, 0.0),
        (0, 5, True, False, 0.0),
        (0, 5, False, False, 0.0),
        (7, 77, True, True, 0.5),
        (32, 768, False, False, 1e-6),
        (131, 130, False, True, 4.0),
        (3, 0, True, False, 0.5),
        (0, 5, False, False, 0.5),
    ],
)
def test_against_reference(
    rows: int, hidden: int, weighted: bool, soft: bool, relaxation: float, backend: str,
    dtype: torch.dtype, device: str,
) -> None:  # fmt: skip
    need(OP, backend, device)
    op = partial(linear_bce, relaxation=relaxation, backend=backend)
    reference = partial(linear_bce_ref, relaxation=relaxation)
    check_bce(op, rows, hidden, dtype, device, weighted, soft, reference=reference)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_relaxation_is_the_unbounded_loss_to_the_bit(backend: str, device: str) -> None:
    need(OP, backend, device)
    h, weight, bias, targets, c = bce_inputs(33, 40, torch.float32, device, soft=True)
    leaves = [x.requires_grad_() for x in (h, weight, bias)]
    results = []
    for given in ((c,), (c, 0.0), (c, 1e-30)):
        loss, logits = linear_bce(*leaves, targets, *given, backend=backend)
        results.append((loss, logits, *torch.autograd.grad(loss, leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))
    # A switch: the least relaxation bounds p by a half.
    assert torch.equal(results[2][1], results[0][1]) and results[2][0] > results[0][0] + 1


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_rows(backend: str, device: str) -> None:
    """More rows than one chunk of the CUDA reduction, more work than one task of the CPU's."""
    need(OP, backend, device)
    check_bce(partial(linear_bce, backend=backend), 1100, 200, torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_big_logits_stay_finite_and_small_losses_are_kept(backend: str, device: str) -> None:
    need(OP, backend, device)
    h = torch.tensor([[1e4], [-1e4], [1e4], [-1e4], [20.0], [-20.0]], device=device)
    h.requires_grad_()
    targets = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0], device=device)
    one = torch.ones(1, device=device, requires_grad=True)
    zero = torch.zeros(1, device=device)
    ones = torch.ones(6, device=device)
    loss, _ = linear_bce(h, one, zero, targets, ones, backend=backend)
    # Right by far, twice; wrong by 1e4, twice; the last two are below the last place.
    assert loss.item() == 2e4
    grad_h, grad_w = torch.autograd.grad(loss, (h, one))
    assert torch.isfinite(grad_h).all()
    assert grad_w.item() == pytest.approx(2e4, rel=1e-6)
    assert grad_h.flatten()[:4].tolist() == [0.0, 0.0, 1.0, -1.0]
    alone, _ = linear_bce(h[4:5], one, zero, targets[4:5], ones[4:5], backend=backend)
    # log(1 + e^-20), of which an unstable formula keeps nothing; six digits of float32.
    assert alone.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_relaxed_big_logits_stay_finite_and_small_losses_are_kept(
    backend: str, device: str
) -> None:
    need(OP, backend, device)
    one = torch.ones(1, device=device)

    def row(z: float, y: float) -> tuple[float, float]:
        h = torch.tensor([[z]], device=device, requires_grad=True)
        loss, _ = linear_bce(h, one, one * 0, one * y, one, 0.5, backend=backend)
        return loss.item(), torch.autograd.grad(loss, h)[0].item()

    # At the bound, p = 0.4; far below it, -log p = -z + log 2.5, of which float32 has 1e4 + 0.916.
    for z, y, loss, slope in (
        (1e4, 1.0, math.log(2.5), 0.0),
        (1e4, 0.0, -math.log(0.6), 0.0),
        (-1e4, 0.0, 0.0, 0.0),
        (-1e4, 1.0, 1e4 + math.log(2.5), -1.0),
        (1e38, 1.0, math.log(2.5), 0.0),
        (-1e38, 1.0, 1e38, -1.0),
    ):
        got = row(z, y)
        assert got[0] == pytest.approx(loss, rel=1e-6)
        assert got[1] == slope
    # Of these an unstable formula keeps nothing. The reference's logarithms are near 20, of which
    # float32 rounds 1e-6 away: five digits.
    small = 1 / (1 + math.exp(20))
    loss, slope = row(-20.0, 0.0)
    assert loss == pytest.approx(0.4 * small, rel=1e-5)
    assert slope == pytest.approx(0.4 * small, rel=1e-5)
    assert row(20.0, 1.0)[1] == pytest.approx(-small, rel=1e-5)
    assert row(20.0, 0.0)[1] == pytest.approx(0.4 / 0.6 * small, rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relaxation", [0.0, 0.5])
def test_gradcheck(relaxation: float, backend: str, device: str) -> None:
    need(OP, backend, device)
    inputs = bce_inputs(5, 6, torch.float64, soft=True)
    h, weight, bias, targets, sample_weights = (x.to(device) for x in inputs)
    leaves = [x.requires_grad_() for x in (h, weight, bias)]

    def loss(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return linear_bce(h, weight, bias, targets, sample_weights, relaxation, backend=backend)[0]

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    need(OP, "native", device)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    h, weight, bias, targets, sample_weights = bce_inputs(5, 6, torch.bfloat16, device)
    weight = weight.reshape(-1)
    ops, grad = torch.ops.fastadv, torch.ones((), device=device)
    for c in (sample_weights, None):
        args = (h, weight, bias, targets, c)
        opcheck(ops.linear_bce.default, args, test_utils=checks)
        opcheck(ops.linear_bce.default, (*args, 0.5), test_utils=checks)
    inputs = (grad, targets, weight, torch.float16)
    opcheck(ops.linear_bce_grad_input.default, inputs, test_utils=checks)
    opcheck(ops.linear_bce_grad_params.default, (grad, targets, h), test_utils=checks)


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("relaxation", [0.0, 0.5])
def test_compiles_in_one_graph(relaxation: float, backend: str) -> None:
    need(OP, backend, "cpu")
    h, weight, bias, _, _ = bce_inputs(5, 6, torch.float32)
    leaves = [x.requires_grad_() for x in (h, weight, bias)]
    english = torch.tensor([True, False, True, True, False])

    def loss(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        settings = {"relaxation": relaxation, "backend": backend}
        first, _ = discriminator_loss(h, english, weight, bias, **settings)
        return first + generator_loss(h, english, weight, bias, **settings)[0]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*leaves), leaves)
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    for a, b in zip(got, wanted, strict=True):
        # The same operations; a compiler may add the terms of a sum in another order.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("relaxation", [0.0, 0.5])
def test_same_bits_on_any_number_of_threads(relaxation: float) -> None:
    need(OP, "native", "cpu")
    h, weight, bias, targets, _ = bce_inputs(501, 771, torch.float32)
    leaves = [x.requires_grad_() for x in (h, weight, bias)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        loss, logits = linear_bce(*leaves, targets, None, relaxation, backend="native")
        results.append((loss, logits, *torch.autograd.grad(loss, leaves)))
    torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relaxation", [0.0, 0.5])
def test_losses_of_the_two_phases(relaxation: float, backend: str, device: str) -> None:
    need(OP, backend, device)
    h = torch.tensor([[0.5], [-1.0], [2.0]], device=device, requires_grad=True)
    weight = torch.tensor([[1.0]], device=device, requires_grad=True)
    bias = torch.tensor([0.0], device=device, requires_grad=True)
    english = torch.tensor([True, True, False], device=device)
    sigmoid = [1 / (1 + math.exp(-z)) for z in (0.5, -1.0, 2.0)]
    p = [s / (2 + relaxation) if relaxation else s for s in sigmoid]
    # Slopes of -log p and of -log(1 - p).
    down = [s - 1 for s in sigmoid]
    up = [q * (1 - s) / (1 - q) for s, q in zip(sigmoid, p, strict=True)]

    loss, logits = discriminator_loss(
        h, english, weight, bias, relaxation=relaxation, backend=backend
    )
    assert logits.tolist() == [0.5, -1.0, 2.0]
    wanted = (-math.log(p[0]) - math.log(p[1])) / 2 - math.log(1 - p[2])
    # Six digits: single precision, and functions within a few units of the last place.
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    loss.backward()
    assert h.grad is None
    assert weight.grad is not None
    assert bias.grad is not None
    slope = [down[0] / 2, down[1] / 2, up[2]]
    assert bias.grad.item() == pytest.approx(sum(slope), rel=1e-6)
    assert weight.grad.item() == pytest.approx(0.5 * slope[0] - slope[1] + 2 * slope[2], rel=1e-6)

    weight.grad = bias.grad = None
    loss, _ = generator_loss(h, english, weight, bias, relaxation=relaxation, backend=backend)
    wanted = (-math.log(1 - p[0]) - math.log(1 - p[1])) / 2 - math.log(p[2])
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    loss.backward()
    assert weight.grad is None
    assert bias.grad is None
    assert h.grad is not None
    assert h.grad.flatten().tolist() == pytest.approx([up[0] / 2, up[1] / 2, down[2]], rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", [True, False])
def test_a_side_without_rows_adds_nothing(backend: str, side: bool) -> None:
    need(OP, backend, "cpu")
    h = torch.zeros(4, 3, requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    english = torch.full((4,), side)
    for function in (discriminator_loss, generator_loss):
        loss, _ = function(h, english, weight, torch.zeros(1), backend=backend)
        # log 2 to the last places of float32.
        assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
        loss.backward()
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sixteen_bit_weights_get_sixteen_bit_gradients(backend: str) -> None:
    need(OP, backend, "cpu")
    h, weight, bias, targets, _ = bce_inputs(4, 5, torch.bfloat16)
    leaves = [x.to(torch.bfloat16).requires_grad_() for x in (h, weight, bias)]
    loss, logits = linear_bce(*leaves, targets, backend=backend)
    assert loss.dtype == logits.dtype == torch.float32
    grads = torch.autograd.grad(loss, leaves)
    assert [g.dtype for g in grads] == [torch.bfloat16] * 3
    assert [g.shape for g in grads] == [x.shape for x in leaves]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.zeros(3, 2).int()}, "h has dtype torch.int32"),
        ({"h": torch.zeros(3)}, "h has shape .3,., expected .N, H."),
        ({"weight": torch.zeros(3)}, "weight has shape .3,., expected .2,."),
        ({"weight": torch.zeros(2, 2)}, "weight has shape .2, 2., expected .1, 2."),
        ({"bias": torch.zeros(2)}, "bias has shape .2,., expected .1,."),
        ({"targets": torch.zeros(2)}, "targets has shape .2,., expected .3,."),
        ({"sample_weights": torch.zeros(2)}, "sample_weights has shape .2,., expected .3,."),
        ({"targets": torch.zeros(3, requires_grad=True)}, "require a gradient"),
    ],
)
def test_bad_input(change: dict[str, torch.Tensor], message: str) -> None:
    good = {
        "h": torch.zeros(3, 2),
        "weight": torch.zeros(2),
        "bias": torch.zeros(1),
        "targets": torch.zeros(3),
    }
    with pytest.raises(ValueError, match=message):
        linear_bce(**{**good, **change})


@pytest.mark.parametrize("relaxation", [-0.1, math.nan, math.inf])
def test_bad_relaxation(relaxation: float) -> None:
    h, vector, one = torch.zeros(2, 2), torch.zeros(2), torch.zeros(1)
    message = f"relaxation is {relaxation}, expected a finite number of at least 0"
    with pytest.raises(ValueError, match=message):
        linear_bce(h, vector, one, vector, None, relaxation)
    for function in (discriminator_loss, generator_loss):
        with pytest.raises(ValueError, match=message):
            function(h, vector.bool(), vector, one, None, relaxation)
    need(OP, "native", "cpu")
    with pytest.raises(ValueError, match=message):
        torch.ops.fastadv.linear_bce(h, vector, one, vector, None, relaxation)


def test_bad_languages() -> None:
    h, weight, bias = torch.zeros(3, 2), torch.zeros(2), torch.zeros(1)
    with pytest.raises(ValueError, match=r"english has dtype torch.float32, expected bool"):
        discriminator_loss(h, torch.zeros(3), weight, bias)
    with pytest.raises(ValueError, match=r"english has shape .2,., expected .3,."):
        generator_loss(h, torch.zeros(2).bool(), weight, bias)
