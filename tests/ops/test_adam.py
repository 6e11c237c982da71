"""Adam: by hand, against the formula in float64, what the compensations hold, and layouts."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from adam_checks import ADAM_CASES, HALF, AdamCase, check_adam
from op_checks import DEVICES, need
from torch import Tensor
from torch.library import opcheck

from fastadv.backends import BACKENDS
from fastadv.ops.adam import adam, gradient_norm

OP = "adam"
DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str, dtype: torch.dtype, device: str) -> None:
    """One weight, two steps, with beta1 1/2, beta2 3/4, eps 2 and rate 1/2.

    Step 1, g = 2: m = 1 and v = 1, corrected 1 / (1/2) = 2 and 1 / (1/4) = 4; the weight moves by
    -1/2 * 2 / (2 + 2) = -1/4, from 1 to 3/4.
    Step 2, g = 4 * 1/4 = 1: m = 1/2 + 1/2 = 1 and v = 3/4 + 1/4 = 1, corrected 1 / (3/4) = 4/3 and
    1 / (7/16) = 16/7; the weight moves by -1/2 * 4/3 / (sqrt(16/7) + 2) = -0.18983304 and, with a
    decay of 1/10, by -1/2 * 1/10 * 3/4 = -0.0375, to 0.52266696.
    """
    need(OP, backend, device)
    new = partial(torch.tensor, dtype=dtype, device=device)
    weight, m, v = new([1.0]), new([0.0]), new([0.0])
    compensations = [weight.new_zeros(1, dtype=torch.bfloat16)] if dtype == torch.float32 else []
    step = partial(adam, lr=0.5, beta1=0.5, beta2=0.75, eps=2.0, backend=backend)
    step([weight], compensations, [new([2.0])], [m], [v], [1])
    assert (weight.item(), m.item(), v.item()) == (0.75, 1, 1)
    step([weight], compensations, [new([4.0])], [m], [v], [2], weight_decay=0.1, grad_scale=0.25)
    assert (m.item(), v.item()) == (1, 1)
    wanted = 0.75 - 0.5 * (4 / 3) / (math.sqrt(16 / 7) + 2) - 0.0375
    assert wanted == pytest.approx(0.52266696, abs=1e-8)
    # Half a unit of the weight, which is what reading it without its compensation costs, and as
    # much for what the step rounds, which is a third of the weight.
    assert weight.item() == pytest.approx(wanted, rel=2 * HALF[dtype], abs=0)


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ADAM_CASES)
def test_against_formula(case: str, backend: str, dtype: torch.dtype, device: str) -> None:
    need(OP, backend, device)
    check_adam(partial(adam, backend=backend), ADAM_CASES[case], dtype, device)


def test_no_tensors() -> None:
    """A group without parameters is no error."""
    adam([], [], [], [], [], [], lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_gradient(backend: str, device: str) -> None:
    """Autograd gives transposed gradients; the step is that of the same numbers in order."""
    need(OP, backend, device)
    grad = torch.randn(7, 5, device=device).t()
    results = []
    for g in (grad, grad.contiguous()):
        lists = AdamCase(((5, 7),)).inputs(torch.float32, device)
        lists[2] = [g]
        adam(*lists, [1], lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8, backend=backend)
        results.append([lists[j][0] for j in (0, 1, 3, 4)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_too_small_for_float32(backend: str, device: str) -> None:
    """What compensations are for: moves of a third of a unit of the weight add up.

    The unit of a float32 near 0.9 is 6e-8, and a step is at most about the rate, 2e-8: the sum is
    rounded back to the weight, every time.
    """
    need(OP, backend, device)
    random = torch.Generator().manual_seed(5)
    start = (0.9 + 0.05 * torch.rand(64, generator=random)).to(device)
    # Of one sign for each weight, so that all of them move 200 steps far.
    sign = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    grads = [(sign * (1 + 0.5 * torch.rand(64, generator=random))).to(device) for _ in range(200)]
    numbers: dict[str, Any] = {"lr": 2e-8, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    weight, wide = start.clone(), start.double()
    compensation = torch.zeros_like(start, dtype=torch.bfloat16)
    m, v = torch.zeros_like(start), torch.zeros_like(start)
    wide_m, wide_v = torch.zeros_like(wide), torch.zeros_like(wide)
    plain = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([plain], lr=2e-8)
    for t, grad in enumerate(grads, 1):
        adam([weight], [compensation], [grad], [m], [v], [t], **numbers, backend=backend)
        g = grad.double()
        wide_m, wide_v = 0.9 * wide_m + 0.1 * g, 0.999 * wide_v + 0.001 * g * g
        root = (wide_v / (1 - 0.999**t)).sqrt() + 1e-8
        wide = wide - 2e-8 * wide_m / (1 - 0.9**t) / root
        plain.grad = grad.clone()
        optimizer.step()
        unit = torch.nextafter(weight, torch.full_like(weight, 2)) - weight
        assert (compensation.double().abs() <= unit.double() / 2).all()
    displacement = wide - start.double()
    assert (displacement.abs() > 3e-6).all()
    # A step leaves at most half a unit of bfloat16 of the compensation, 6e-11 or 0.3% of the step,
    # to either side, so that most of it cancels over 200.
    limit = 0.01 * displacement.abs()
    assert ((weight.double() + compensation.double() - wide).abs() <= limit).all()
    assert ((plain.detach().double() - wide).abs() > limit).all(), "the test cannot fail"


def test_same_bits_on_any_number_of_threads() -> None:
    """Elements are independent, and pieces of the norm's sum do not depend on threads."""
    need(OP, "native", "cpu")
    # More than one piece, with an end that is no whole vector.
    case = AdamCase(((131, 1027), (70001,), (3,)), (1, 2, 3), weight_decay=0.1)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        lists = case.inputs(torch.float32, "cpu")
        adam(*lists, case.steps, **case.numbers(), backend="native")
        norm = gradient_norm(lists[2], backend="native")
        results.append([norm, *(x for xs in lists for x in xs)])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Sizes around the blocks of layouts (16 rows, 32 columns, panels of 128 and 256) and the pieces of
# work; the last has a depth above 1024, where panels are narrower.
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(2, 2), (16, 32), (34, 50), (48, 64), (258, 770), (300, 256), (770, 258), (130, 1026)],
)
def test_layouts(rows: int, columns: int) -> None:
    """Both layouts are bit for bit those of the weight that the step leaves."""
    need(OP, "native", "cpu")
    pack = torch.ops.fastadv.linear_pack
    # Another weight in front, so that a layout has to be found by its place.
    case = AdamCase(((32, 64), (rows, columns)), (3, 5))
    lists = case.inputs(torch.float32, "cpu")
    alone = [[x.clone() for x in xs] for xs in lists]
    layouts = [pack(weight, torch.bfloat16) for weight in lists[0]]
    if layouts[0][0].dim() == 2:
        pytest.skip("no bfloat16 products on this processor")
    for layout in (x for pair in layouts for x in pair):
        # So that an element nobody writes shows.
        layout.fill_(torch.nan)
    adam(*lists, case.steps, **case.numbers(), layouts=layouts, backend="native")
    for weight, got in zip(lists[0], layouts, strict=True):
        for one, other in zip(got, pack(weight, torch.bfloat16), strict=True):
            assert torch.equal(one.view(torch.int16), other.view(torch.int16))
    # Tensors of the same step without layouts get the same bits: they are a by-product.
    adam(*alone, case.steps, **case.numbers(), backend="native")
    for some, others in zip(lists, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shapes", [((1,),), ((0,),), ((3, 0), (5,)), ((77, 301), (9,), (1, 1))])
def test_gradient_norm(
    shapes: tuple[tuple[int, ...], ...], backend: str, dtype: torch.dtype, device: str
) -> None:
    need(OP, backend, device)
    random = torch.Generator().manual_seed(2)
    grads = [torch.randn(shape, generator=random, dtype=dtype).to(device) for shape in shapes]
    # Strided too, as autograd may give them.
    grads.append(torch.randn(6, 7, generator=random, dtype=dtype).to(device).t())
    exact = torch.cat([g.double().flatten() for g in grads]).norm()
    got = gradient_norm(grads, backend=backend)
    assert got.shape == ()
    assert got.device.type == device
    # Sums by vectors and blocks: no element is added to more than some hundred others in a row.
    assert got.item() == pytest.approx(exact.item(), rel=200 * HALF[dtype], abs=0)


def test_gradient_norm_by_hand() -> None:
    """3, 4 and 12 make 13, exactly in any type."""
    for backend in BACKENDS:
        if backend != "triton":
            need(OP, backend, "cpu")
            assert gradient_norm([torch.tensor([3.0, -4.0]), torch.tensor([[12.0]])],
                                 backend=backend).item() == 13  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradient_norm_finds_what_is_not_finite(bad: float, backend: str, device: str) -> None:
    """One element of one tensor, at an end that is no whole vector, is enough."""
    need(OP, backend, device)
    grads = [torch.ones(33, device=device), torch.ones(8195, device=device)]
    grads[1][-1] = bad
    norm = gradient_norm(grads, backend=backend).item()
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf


def called(**other: Any) -> None:
    """`adam` on two weights of shape (2, 3) and (3,), with some arguments replaced."""
    lists = AdamCase(((2, 3), (3,))).inputs(torch.float32, "cpu")
    names = ("weights", "compensations", "grads", "exp_avgs", "exp_avg_sqs")
    given: dict[str, Any] = dict(zip(names, lists, strict=True))
    given |= {"steps": [1, 1], "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    adam(**(given | other))


TWO: list[Tensor] = [torch.zeros(2, 3), torch.zeros(3)]


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"weights": [x.half() for x in TWO]}, "weights has dtype torch.float16, expected float32"),
        (
            {"weights": [TWO[0], TWO[1].double()]},
            "^weight has dtype torch.float64, expected torch.float32",
        ),
        ({"grads": [x.double() for x in TWO]}, "grad has dtype torch.float64, expected torch.flo"),
        ({"grads": TWO[::-1]}, r"grad has shape \(3,\), expected \(2, 3\)"),
        ({"grads": TWO[:1]}, "found 1 in grads, expected 2, one a weight"),
        ({"exp_avgs": [TWO[0], TWO[0]]}, r"exp_avg has shape \(2, 3\), expected \(3,\)"),
        ({"exp_avgs": [x.bfloat16() for x in TWO]}, "exp_avg has dtype torch.bfloat16"),
        ({"exp_avgs": []}, "found 0 in exp_avgs, expected 2, one a weight"),
        ({"exp_avg_sqs": [TWO[0].t(), TWO[1]]}, r"exp_avg_sq has shape \(3, 2\)"),
        ({"exp_avg_sqs": [x.double() for x in TWO]}, "exp_avg_sq has dtype torch.float64"),
        ({"exp_avg_sqs": TWO * 2}, "found 4 in exp_avg_sqs, expected 2, one a weight"),
        ({"compensations": []}, "found 0 in compensations, expected 2, one a weight"),
        ({"compensations": TWO}, "compensation has dtype torch.float32, expected torch.bfloat16"),
        (
            {"compensations": [x.bfloat16() for x in TWO[::-1]]},
            r"compensation has shape \(3,\), expected \(2, 3\)",
        ),
        ({"steps": [1]}, "found 1 in steps, expected 2, one a weight"),
        ({"steps": [1, 0]}, "steps holds 0, expected at least 1"),
        ({"beta1": 1.0}, r"beta1 is 1.0, expected a number in \[0, 1\)"),
        ({"beta1": -0.1}, r"beta1 is -0.1, expected a number in \[0, 1\)"),
        ({"beta2": 1.0}, r"beta2 is 1.0, expected a number in \[0, 1\)"),
        ({"beta2": math.nan}, r"beta2 is nan, expected a number in \[0, 1\)"),
        ({"eps": 0.0}, "eps is 0.0, expected a number above 0"),
        ({"eps": math.nan}, "eps is nan, expected a number above 0"),
        ({"lr": math.nan}, "lr is nan, expected a finite number of at least 0"),
        ({"lr": math.inf}, "lr is inf, expected a finite number of at least 0"),
        ({"lr": -1.0}, "lr is -1.0, expected a finite number of at least 0"),
    ],
)
def test_refused(other: dict[str, Any], message: str, backend: str) -> None:
    need(OP, backend, "cpu")
    with pytest.raises(ValueError, match=message):
        called(**other, backend=backend)


def test_refused_layouts() -> None:
    """Layouts are the native kernel's alone, of matrices, one pair a weight, and of their size."""
    pairs = [(x.flatten().bfloat16(), x.flatten().bfloat16()) for x in TWO]
    with pytest.raises(ValueError, match="found layouts with backend torch, expected native"):
        called(layouts=pairs, backend="torch")
    need(OP, "native", "cpu")
    with pytest.raises(ValueError, match=r"found 1 tensors in forward_layouts, expected 2"):
        called(layouts=pairs[:1], backend="native")
    # The second weight is a vector, and the first has a row of 3.
    with pytest.raises(ValueError, match=r"a weight of shape \[2, 3\] has no packed layouts here"):
        called(layouts=pairs, backend="native")


@pytest.mark.parametrize("shape", [(4, 6), (3, 6), (4, 3)])
def test_refused_layouts_of_a_matrix(shape: tuple[int, int]) -> None:
    """A size that is not the weight's, and an odd number of rows or columns: no pairs."""
    need(OP, "native", "cpu")
    lists = AdamCase((shape,)).inputs(torch.float32, "cpu")
    if torch.ops.fastadv.linear_pack(torch.zeros(4, 6), torch.bfloat16)[0].dim() == 2:
        pytest.skip("no bfloat16 products on this processor")
    odd = shape[0] % 2 or shape[1] % 2
    # Room enough behind the layouts that a kernel that takes them does no harm here.
    room = torch.zeros(2, 4096, dtype=torch.bfloat16)
    size = lists[0][0].numel() + (0 if odd else 1)
    message = "has no packed layouts here" if odd else "forward_layout has shape"
    with pytest.raises(ValueError, match=message):
        adam(*lists, [1], lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8,
             layouts=[(room[0, :size], room[1, :size])], backend="native")  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("which", ["weight", "exp_avg", "exp_avg_sq", "compensation"])
def test_strided_state_is_refused(which: str, backend: str, device: str) -> None:
    """Kernels that walk over memory in order would write to other elements than they mean."""
    need(OP, backend, device)
    lists = AdamCase(((5, 7),)).inputs(torch.float32, device)
    place = {"weight": 0, "compensation": 1, "exp_avg": 3, "exp_avg_sq": 4}[which]
    lists[place] = [lists[place][0].t().contiguous().t()]
    with pytest.raises(ValueError, match=f"{which} has strides .*, expected a contiguous tensor"):
        adam(*lists, [1], lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, backend=backend)


def test_opcheck() -> None:
    """The schemas say what is written to."""
    need(OP, "native", "cpu")
    lists = AdamCase(((2, 3), (3,))).inputs(torch.float32, "cpu")
    numbers = ([1, 2], 1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0)
    args = (*lists, [], [], *numbers)
    opcheck(torch.ops.fastadv.adam.default, args, test_utils="test_schema")
    opcheck(torch.ops.fastadv.gradient_norm.default, (lists[2],), test_utils="test_schema")


@pytest.mark.parametrize("backend", BACKENDS)
def test_refused_norms(backend: str) -> None:
    need(OP, backend, "cpu")
    with pytest.raises(ValueError, match="found no gradient, expected at least one"):
        gradient_norm([], backend=backend)
    with pytest.raises(ValueError, match=r"grads has dtype torch\.float64"):
        gradient_norm([torch.zeros(2), torch.zeros(2).double()], backend=backend)
