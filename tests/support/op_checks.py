"""Checks of an operation against its reference in float64, for tests of every backend.

They take the operation as a function, so that test_mutants.py can hand them broken ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastadv import backends
from fastadv.ops.linear_bce import linear_bce_ref
from fastadv.ops.masked_mean_pool import masked_mean_pool_ref

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

Pool = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
Bce = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def need(op: str, backend: str, device: str) -> None:
    """Skips the test, with the reason, where the backend cannot run."""
    reason = backends.why_not(op, backend, device)
    if reason is not None:
        pytest.skip(f"{backend} on {device}: {reason}")


def assert_close(
    got: Tensor, plain: Tensor, exact: Tensor, scale: Tensor | None = None, ulps: int = 2
) -> None:
    """Holds `got` to twice the worst error of plain PyTorch in the same precision, plus a floor.

    Twice, because another order of the same sum is as good but not equal.  The floor is for inputs
    on which the plain version happens to be exact: `ulps` units in the last place of the output's
    type at |exact|, and of the sum's type at the size of its terms, `scale`.  Two of the output's,
    because Triton's interpreter cuts float32 to bfloat16 where hardware rounds, an error of up to
    one unit instead of a half.
    """
    assert got.shape == exact.shape
    assert got.dtype == plain.dtype
    exact = exact.double()
    assert torch.isfinite(got).all(), "an element is not finite, or was not written"
    if got.numel() == 0:
        return
    kind = torch.finfo(got.dtype)
    worst_plain = (plain.double() - exact).abs().max()
    floor = kind.eps * (exact.abs() + kind.smallest_normal)
    if scale is not None:
        acc = torch.float64 if got.dtype == torch.float64 else torch.float32
        floor = floor + torch.finfo(acc).eps * scale.double()
    limit = 2 * worst_plain + ulps * floor
    error = (got.double() - exact).abs()
    excess = (error - limit).max().item()
    assert excess <= 0, f"worst error {error.max().item():.3g}, {excess:.3g} over the limit"


@dataclass(frozen=True)
class PoolCase:
    """Sequence lengths, hidden size, rows after the last sequence, and which mask."""

    lengths: tuple[int, ...]
    hidden: int
    tail: int = 0
    mask: str = "none"  # none, random, or all: also sequence 0 masked wholly
    padded: bool = False
    strided: bool = False

    def inputs(
        self, dtype: torch.dtype, device: str
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x, cu_seqlens and mask."""
        random = torch.Generator().manual_seed(sum(self.lengths) * 31 + self.hidden)
        tokens = sum(self.lengths) + self.tail
        step = 2 if self.strided else 1
        # Away from mean zero, so that a wrong divisor is far off.
        x = torch.randn(tokens, self.hidden * step, generator=random) + 1
        x = x.to(dtype)[:, ::step]
        mask = None if self.mask == "none" else torch.rand(tokens, generator=random) < 0.7
        if self.mask == "all" and mask is not None:
            mask[: self.lengths[0]] = False
        offsets = torch.tensor([0, *self.lengths]).cumsum(0).int()
        if not self.padded:
            return x.to(device), offsets.to(device), None if mask is None else mask.to(device)
        batch, length = len(self.lengths), self.lengths[0] if self.lengths else 3
        counted = torch.ones(batch, length, dtype=torch.int64)
        if mask is not None:
            counted = mask.view(batch, length).long()
        return x.reshape(batch, length, self.hidden).to(device), None, counted.to(device)


POOL_CASES = {
    "odd": PoolCase((3, 0, 1, 17, 33), 77),
    "random mask": PoolCase((3, 0, 1, 17, 33), 77, mask="random"),
    "wholly masked": PoolCase((5, 9, 2), 40, mask="all"),
    "tail": PoolCase((4, 6), 24, tail=5, mask="random"),
    "no tokens": PoolCase((0, 0), 8),
    "no sequences": PoolCase((), 8),
    "no sequences, tail": PoolCase((), 8, tail=3),
    "one number": PoolCase((1,), 1),
    "many short": PoolCase(tuple(1 + i * 7 % 5 for i in range(40)), 130, mask="random"),
    "one long": PoolCase((301,), 768),
    "strided": PoolCase((3, 8), 33, mask="random", strided=True),
    "padded": PoolCase((9, 9, 9, 9), 33, padded=True, mask="all"),
    "padded full": PoolCase((6, 6), 16, padded=True),
    "padded, length 0": PoolCase((0, 0, 0), 8, padded=True),
    "padded, batch 0": PoolCase((), 8, padded=True),
}


def check_pool(op: Pool, case: PoolCase, dtype: torch.dtype, device: str = "cpu") -> None:
    """Result and gradient of `op` for one case."""
    x, cu_seqlens, mask = case.inputs(dtype, device)
    batch = len(case.lengths)
    random = torch.Generator().manual_seed(7)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    grad = torch.randn(batch, case.hidden, generator=random).to(device, acc)

    def run(function: Pool, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        mean = function(x, cu_seqlens, mask)
        (grad_x,) = torch.autograd.grad(mean, x, grad.to(mean.dtype))
        return mean.detach(), grad_x

    exact, exact_grad = run(masked_mean_pool_ref, x.double())
    size = masked_mean_pool_ref(x.double().abs(), cu_seqlens, mask)
    plain, plain_grad = run(masked_mean_pool_ref, x)
    got, got_grad = run(op, x)
    assert got.dtype == acc
    assert got_grad.dtype == dtype
    assert_close(got, plain, exact, size)
    assert_close(got_grad, plain_grad, exact_grad)


def bce_inputs(
    rows: int, hidden: int, dtype: torch.dtype, device: str = "cpu", soft: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, weight (1, hidden), bias (1,), targets and sample weights."""
    random = torch.Generator().manual_seed(rows * 1009 + hidden)
    h = torch.randn(rows, hidden, generator=random).to(dtype)
    weight = torch.randn(1, hidden, generator=random) / max(hidden, 1) ** 0.5
    bias = torch.randn(1, generator=random)
    targets = torch.rand(rows, generator=random)
    if not soft:
        targets = (targets < 0.5).float()
    sample_weights = torch.rand(rows, generator=random) + 0.5
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    rest = (weight.to(acc), bias.to(acc), targets.to(acc), sample_weights.to(acc))
    return (h.to(device), *(x.to(device) for x in rest))  # type: ignore[return-value]


def check_bce(
    op: Bce,
    rows: int,
    hidden: int,
    dtype: torch.dtype,
    device: str = "cpu",
    weighted: bool = True,
    soft: bool = False,
    grad: float = 1.75,
    reference: Bce = linear_bce_ref,
) -> None:
    """Loss, logits and gradients of `op`; `grad` is the gradient of the loss."""
    h, weight, bias, targets, sample_weights = bce_inputs(rows, hidden, dtype, device, soft)
    coefficients = sample_weights if weighted else None

    def run(function: Bce, *inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        rest = [None if x is None else x.to(leaves[1].dtype) for x in (targets, coefficients)]
        loss, logits = function(*leaves, *rest)  # type: ignore[arg-type]
        assert not logits.requires_grad
        grads = torch.autograd.grad(loss, leaves, loss.new_tensor(grad))
        return (loss.detach(), logits, *grads)

    exact = run(reference, h.double(), weight.double(), bias.double())
    plain = run(reference, h, weight, bias)
    got = run(op, h, weight, bias)
    absolute = h.double().abs()
    c = sample_weights.double() if weighted else torch.full_like(targets, 1 / max(rows, 1)).double()
    # The sizes of the terms that each result adds up.
    scales = (
        exact[0].abs() + (c * exact[1].abs()).sum(),
        (absolute * weight.double().abs()).sum(1) + bias.double().abs(),
        grad * c[:, None] * weight.double().abs(),
        (grad * c[:, None] * absolute).sum(0, keepdim=True),
        (grad * c).sum().reshape(1),
    )
    for name, *values in zip(("loss", "logits", "h", "w", "b"), got, plain, exact, scales,
                             strict=True):  # fmt: skip
        try:
            assert_close(*values)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


# Each instruction set below the widest, and what a processor may make of asking for it.
CPU_LEVELS = [("portable", ["portable"]), ("avx2", ["avx2", "portable"])]

_CHECK_LEVEL = """
import sys
from fastadv.backends import extension
assert extension.build_info()["cpu_level"] in sys.argv[1:], extension.build_info()
"""


def run_at_cpu_level(script: str, level: str, allowed: list[str]) -> None:
    """Runs Python code in a process of its own whose kernels use one instruction set; the level is
    read once, when the extension is loaded. Modules of tests/ops, tests/training
    and tests/support can be imported.
    """
    run_with_environment(_CHECK_LEVEL + script, {"FASTADV_CPU_LEVEL": level}, *allowed)


def run_with_environment(script: str, variables: dict[str, str], *arguments: str) -> None:
    """Runs Python code in a process of its own, for variables that libraries read once. Modules of
    tests/ops, tests/training and tests/support can be imported.
    """
    tests = Path(__file__).parents[1]
    folders = [str(tests / name) for name in ("support", "ops", "training")]
    places = [*folders, os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | variables | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
