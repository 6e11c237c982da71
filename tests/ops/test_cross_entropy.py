"""Softmax cross-entropy: by hand, against the reference in float64, and as an operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from op_checks import CPU_LEVELS, DEVICES, DTYPES, assert_close, need, run_at_cpu_level
from torch import Tensor
from torch.library import opcheck

from fastadv.backends import BACKENDS
from fastadv.ops.cross_entropy import cross_entropy, cross_entropy_ref
from fastadv.ops.dtypes import acc_dtype

OP = "cross_entropy"
KERNELS = [backend for backend in BACKENDS if backend != "torch"]
# More classes than a chunk of the CPU's kernel and a block of Triton's, odd numbers, and one.
SIZES = [(37, 1), (1, 17), (37, 17), (37, 1000), (3, 16387), (0, 17)]

Op = Callable[[Tensor, Tensor], Tensor]


def inputs(
    rows: int, classes: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits some units apart, targets, and a gradient of the losses with zeros in it."""
    random = torch.Generator().manual_seed(rows * 1009 + classes)
    logits = (3 * torch.randn(rows, classes, generator=random) + 5).to(device, dtype)
    targets = torch.randint(classes, (rows,), generator=random).to(device)
    grad = torch.randn(rows, generator=random) * (torch.arange(rows) % 3 > 0)
    return logits, targets, grad.to(device, acc_dtype(dtype))


def run(op: Op, logits: Tensor, targets: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of the logits."""
    logits = logits.detach().requires_grad_()
    losses = op(logits, targets)
    (grad_logits,) = torch.autograd.grad(losses, logits, grad.to(losses.dtype))
    return losses.detach(), grad_logits


def check(op: Op, logits: Tensor, targets: Tensor, grad: Tensor) -> None:
    exact, exact_grad = run(cross_entropy_ref, logits.double(), targets, grad)
    plain, plain_grad = run(cross_entropy_ref, logits, targets, grad)
    got, got_grad = run(op, logits, targets, grad)
    assert got.dtype == acc_dtype(logits.dtype)
    assert got_grad.dtype == logits.dtype
    # A loss is a difference of these two. exp in 16 bits may be off by 3e-6 (csrc/cpu/exp.h), which
    # is 13 units at 1 of the type of the sums, and as much for the logarithm of a sum.
    normalizers = logits.double().logsumexp(1)
    size = normalizers.abs() + exact.abs() + (13 if logits.dtype.itemsize == 2 else 1)
    assert_close(got, plain, exact, size)
    # What a normalizer is off by goes into each probability as a factor, and so does the error of
    # exp: that in 16 bits is in `size`, that of float32 is 2 units.
    softmax = (logits.double() - normalizers[:, None]).exp()
    shares = grad.double().abs()[:, None] * softmax * (size[:, None] + 2)
    assert_close(got_grad, plain_grad, exact_grad, shares)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str, device: str) -> None:
    need(OP, backend, device)
    rows = [[0.0, math.log(2), 0.0], [1.0, 1.0, 1.0 + math.log(6)]]
    logits = torch.tensor(rows, device=device, requires_grad=True)
    losses = cross_entropy(logits, torch.tensor([1, 0], device=device), backend=backend)
    # Probabilities 1/4, 1/2, 1/4 and 1/8, 1/8, 6/8.
    # Six digits: single precision, and functions within a few units of the last place.
    assert losses.tolist() == pytest.approx([math.log(2), math.log(8)], rel=1e-6)
    losses.backward(torch.tensor([4.0, 8.0], device=device))
    assert logits.grad is not None
    wanted = [1.0, -2.0, 1.0, -7.0, 1.0, 6.0]
    assert logits.grad.flatten().tolist() == pytest.approx(wanted, rel=1e-6)


def test_reference_is_the_library_s() -> None:
    logits, targets, grad = inputs(37, 1000, torch.float64)
    library = partial(F.cross_entropy, reduction="none")
    ours, theirs = (run(op, logits, targets, grad) for op in (cross_entropy_ref, library))
    for got, wanted in zip(ours, theirs, strict=True):
        # The same in another order, in float64: some units in the last place of numbers to 20.
        torch.testing.assert_close(got, wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.usefixtures("poisoned_memory", "two_threads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_against_reference(
    rows: int, classes: int, backend: str, dtype: torch.dtype, device: str
) -> None:
    need(OP, backend, device)
    check(partial(cross_entropy, backend=backend), *inputs(rows, classes, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broken_ones_are_found(dtype: torch.dtype) -> None:
    """What `check` says of operations that are nearly right."""
    logits, targets, grad = inputs(37, 1000, dtype)

    def other_target(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_ref(logits, targets // 2)

    def one_class_less(logits: Tensor, targets: Tensor) -> Tensor:
        z = logits.to(acc_dtype(logits.dtype))
        return z[:, :-1].logsumexp(1) - z.gather(1, targets[:, None])[:, 0]

    def no_gradient_of_target(logits: Tensor, targets: Tensor) -> Tensor:
        z = logits.to(acc_dtype(logits.dtype))
        return z.logsumexp(1) - z.detach().gather(1, targets[:, None])[:, 0]

    check(cross_entropy_ref, logits, targets, grad)
    for broken in (other_target, one_class_less, no_gradient_of_target):
        with pytest.raises(AssertionError, match="worst error"):
            check(broken, logits, targets, grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits(backend: str, dtype: torch.dtype, device: str) -> None:
    need(OP, backend, device)
    rows = [[1e4, -1e4, 0.0, 1e4], [-1e4, -1e4, -1e4, -1e4], [1e4, -1e4, 0.0, 0.0]]
    logits = torch.tensor(rows, device=device).to(dtype)
    # 1e4 is not a bfloat16.
    big = logits[0, 0].item()
    targets = torch.tensor([0, 3, 1], device=device)
    op = partial(cross_entropy, backend=backend)
    losses, grad = run(op, logits, targets, torch.ones(3, device=device))
    # Half a unit of float32 at 1e4 is 5e-4: what a normalizer may be off by.
    wanted = [math.log(2), math.log(4), 2 * big]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-7, abs=5e-4)
    assert grad.flatten().tolist() == pytest.approx(
        [-0.5, 0, 0, 0.5, 0.25, 0.25, 0.25, -0.75, 1, -1, 0, 0], abs=5e-4
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("classes", [17, 9001])
def test_excluded_classes(classes: int, backend: str, dtype: torch.dtype, device: str) -> None:
    """-inf, also for a whole chunk and for the first: probability and gradient are 0 exactly."""
    need(OP, backend, device)
    logits, targets, grad = inputs(4, classes, dtype, device)
    targets[:] = classes - 1
    grad[:] = 1
    logits[0, ::2], logits[1, : classes - 3], logits[2, 2:] = -torch.inf, -torch.inf, -torch.inf
    logits[0, -1] = 1
    op = partial(cross_entropy, backend=backend)
    losses, grad_logits = run(op, logits, targets, grad)
    excluded = logits.isneginf()
    excluded[2, -1] = False
    assert losses[2] == torch.inf, "the target of row 2 is excluded"
    assert (grad_logits[excluded] == 0).all()
    assert grad_logits[2, -1] == -1
    kept = torch.tensor([0, 1, 3], device=device)
    # Excluded classes far below the others are as good, and finite.
    check(op, logits[kept].nan_to_num(neginf=-6e4), targets[kept], grad[kept])
    same = run(op, logits[kept].nan_to_num(neginf=-6e4), targets[kept], grad[kept])
    assert torch.equal(same[0], losses[kept])
    assert torch.equal(same[1], grad_logits[kept])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("classes", [1, 17, 9001])
def test_nan_stays(classes: int, backend: str, dtype: torch.dtype, device: str) -> None:
    need(OP, backend, device)
    logits, targets, grad = inputs(5, classes, dtype, device)
    grad[:] = 1
    # First, in the middle, last, and everywhere; row 4 is sound.
    logits[0, 0] = logits[1, classes // 2] = logits[2, -1] = torch.nan
    logits[3] = torch.nan
    losses, grad_logits = run(partial(cross_entropy, backend=backend), logits, targets, grad)
    assert losses.isnan().tolist() == [True] * 4 + [False]
    assert grad_logits[:4].isnan().all()
    assert grad_logits[4].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_classes_left_has_no_loss(backend: str) -> None:
    need(OP, backend, "cpu")
    logits = torch.full((2, 5000), -torch.inf)
    logits[1, 4999] = 3
    losses = cross_entropy(logits, torch.tensor([1, 4999]), backend=backend)
    assert losses[0].isnan()
    assert losses[1] == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str, device: str) -> None:
    need(OP, backend, device)
    logits, targets, _ = inputs(5, 7, torch.float64, device)
    op = partial(cross_entropy, targets=targets, backend=backend)
    assert torch.autograd.gradcheck(op, logits.requires_grad_())


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    need(OP, "native", device)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    logits, targets, grad = inputs(5, 7, torch.bfloat16, device)
    ops, normalizers = torch.ops.fastadv, logits.float().logsumexp(1)
    args = (logits, targets, normalizers.clone(), torch.empty_like(normalizers))
    opcheck(ops.cross_entropy.default, args, test_utils=checks)
    for source in (logits, None):
        backward = (grad, source, targets, normalizers, logits.clone())
        opcheck(ops.cross_entropy_backward.default, backward, test_utils=checks)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_compiles_in_one_graph(backend: str, inplace: bool) -> None:
    need(OP, backend, "cpu")
    logits, targets, _ = inputs(5, 7, torch.float32)

    def gradient(logits: Tensor) -> Tensor:
        # A copy: what is overwritten must not be the next call's input.
        return cross_entropy(logits * 1, targets, inplace_backward=inplace, backend=backend).sum()

    logits.requires_grad_()
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(logits), logits)
    (wanted,) = torch.autograd.grad(gradient(logits), logits)
    # The same kernels, so the same bits; the reference's sum may be taken in another order.
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0 if backend == "native" else 1e-7)


def test_same_bits_on_any_number_of_threads() -> None:
    need(OP, "native", "cpu")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(
            [
                result
                for dtype in (torch.float32, torch.bfloat16)
                for result in run(partial(cross_entropy, backend="native"),
                                  *inputs(131, 5003, dtype))
            ]
        )  # fmt: skip
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend: str, device: str) -> None:
    """Every other column, a transpose, strided targets, and one gradient for all losses."""
    need(OP, backend, device)
    for inplace in (False, True):
        op = partial(cross_entropy, inplace_backward=inplace, backend=backend)
        wide = torch.randn(9, 40, device=device)
        targets = torch.randint(9, (18,), device=device)[::2]
        for logits in (wide[:, ::2], wide[:, :9].t()):
            before = wide.clone()
            got = run(op, logits, targets, torch.ones((), device=device).expand(9))
            wanted = run(op, logits.clone().contiguous(), targets.clone(),
                         torch.ones(9, device=device))  # fmt: skip
            for a, b in zip(got, wanted, strict=True):
                # PyTorch adds up strided rows in another order: units in the last place of 4.
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6 if backend == "torch" else 0)
            assert torch.equal(wide, before), "overwritten is the contiguous copy"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("rows", "classes"), [(37, 1), (5, 5003), (0, 17)])
def test_inplace_backward(
    rows: int, classes: int, backend: str, dtype: torch.dtype, device: str
) -> None:
    need(OP, backend, device)
    logits, targets, grad = inputs(rows, classes, dtype, device)
    op = partial(cross_entropy, backend=backend)
    before = logits.clone()
    losses, grad_logits = run(op, logits, targets, grad)
    assert torch.equal(logits, before), "the default leaves the logits alone"
    again, grad_again = run(partial(op, inplace_backward=True), logits, targets, grad)
    assert torch.equal(losses, again)
    assert torch.equal(grad_logits, grad_again)
    assert grad_again.data_ptr() == logits.data_ptr()
    assert not grad_again.requires_grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", KERNELS)
def test_inplace_backward_runs_once(backend: str, device: str) -> None:
    need(OP, backend, device)
    logits, targets, grad = inputs(5, 17, torch.float32, device)
    logits.requires_grad_()
    losses = cross_entropy(logits, targets, inplace_backward=True, backend=backend)
    losses.backward(grad, retain_graph=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="has run backward before with inplace_backward=Tru"):
            losses.backward(grad, retain_graph=True)
    # Without it, as often as one likes.
    logits, targets, grad = inputs(5, 17, torch.float32, device)
    losses = cross_entropy(logits.requires_grad_(), targets, backend=backend)
    first, second = (
        torch.autograd.grad(losses, logits, grad, retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("backend", KERNELS)
def test_others_who_keep_the_overwritten_logits_are_told(backend: str) -> None:
    need(OP, backend, "cpu")
    logits, targets, _ = inputs(5, 17, torch.float32)
    logits = logits.requires_grad_() * 1
    squares = logits.square().sum()
    cross_entropy(logits, targets, inplace_backward=True, backend=backend).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradient_nothing_is_kept(backend: str) -> None:
    need(OP, backend, "cpu")
    logits, targets, _ = inputs(5, 17, torch.float32)
    assert cross_entropy(logits, targets, backend=backend).grad_fn is None
    with torch.no_grad():
        losses = cross_entropy(logits.requires_grad_(), targets, backend=backend)
    assert losses.grad_fn is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("target", [-1, -100, 17, 1 << 40])
def test_bad_targets(target: int, backend: str) -> None:
    need(OP, backend, "cpu")
    logits, targets, _ = inputs(5, 17, torch.float32)
    targets[3] = target
    wanted = rf"targets.3. is {target}, expected at least 0 and less than 17"
    with pytest.raises(ValueError, match=wanted):
        cross_entropy(logits, targets, backend=backend)


def test_triton_reads_nothing_for_bad_targets() -> None:
    """What a GPU does with them, whose targets nobody looks at before."""
    need(OP, "triton", DEVICES[-1])
    from fastadv.kernels.cross_entropy import cross_entropy as raw

    logits, targets, _ = inputs(5, 17, torch.float32, DEVICES[-1])
    targets[1], targets[3] = -(1 << 40), 1 << 40
    normalizers, losses = torch.empty_like(logits[:, 0]), torch.empty_like(logits[:, 0])
    raw(logits, targets, normalizers, losses)
    assert losses.isnan().tolist() == [False, True, False, True, False]
    assert normalizers.isfinite().all()


LOGITS, TARGETS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (LOGITS.int(), TARGETS, "logits has dtype torch.int32, expected float32"),
        (LOGITS[0], TARGETS, r"logits has shape \(3,\), expected \(M, V\)"),
        (LOGITS[:, :0], TARGETS, r"logits has shape \(4, 0\), expected \(M, V\) with V at least 1"),
        (LOGITS, TARGETS.int(), "targets has dtype torch.int32, expected torch.int64"),
        (LOGITS, LOGITS, "targets has dtype torch.float32, expected torch.int64"),
        (LOGITS, TARGETS[:2], r"targets has shape \(2,\), expected \(4,\)"),
        (LOGITS, TARGETS[:, None], r"targets has shape \(4, 1\), expected \(4,\)"),
        (LOGITS, TARGETS.to("meta"), "targets is on meta, expected cpu"),
    ],
)
def test_bad_input(logits: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, targets)


def test_bad_raw_input() -> None:
    need(OP, "native", "cpu")
    op, backward = torch.ops.fastadv.cross_entropy, torch.ops.fastadv.cross_entropy_backward
    rows = LOGITS[:, 0].contiguous()
    with pytest.raises(ValueError, match="logits has 1 dimensions, expected 2"):
        op(rows, TARGETS, rows.clone(), rows.clone())
    with pytest.raises(ValueError, match=r"losses has shape .3., expected .4."):
        op(LOGITS, TARGETS, rows.clone(), rows[:3].clone())
    with pytest.raises(ValueError, match="normalizers has dtype Double, expected Float"):
        op(LOGITS, TARGETS, rows.double(), rows.clone())
    with pytest.raises(ValueError, match=r"logits has strides .1, 4., expected a contiguous tens"):
        op(torch.zeros(3, 4).t(), TARGETS, rows.clone(), rows.clone())
    with pytest.raises(ValueError, match=r"grad_logits has shape .3, 3., expected .4, 3."):
        backward(rows, LOGITS, TARGETS, rows, LOGITS[:3].clone())
    with pytest.raises(ValueError, match=r"targets.0. is 3, expected at least 0 and less than 3"):
        backward(rows, None, TARGETS + 3, rows, LOGITS.clone())


LEVEL_SCRIPT = """
from functools import partial
import torch
from fastadv.ops import cross_entropy
from op_checks import DTYPES
from test_cross_entropy import SIZES, check, inputs, test_excluded_classes, test_nan_stays
for dtype in DTYPES:
    for size in SIZES:
        check(partial(cross_entropy, backend="native"), *inputs(*size, dtype))
    for classes in (17, 9001):
        test_excluded_classes(classes, "native", dtype, "cpu")
        test_nan_stays(classes, "native", dtype, "cpu")
"""


@pytest.mark.parametrize(("level", "allowed"), CPU_LEVELS)
def test_every_cpu_level(level: str, allowed: list[str]) -> None:
    need(OP, "native", "cpu")
    run_at_cpu_level(LEVEL_SCRIPT, level, allowed)
