"""The checks bite: each deliberately broken operation fails the very check that ours passes."""

from __future__ import annotations

import pytest
import torch
from op_checks import POOL_CASES, check_bce, check_pool
from torch import Tensor

from fastadv.ops.linear_bce import linear_bce_ref
from fastadv.ops.masked_mean_pool import masked_mean_pool_ref


def shorter_by_one(x: Tensor, cu: Tensor | None, mask: Tensor | None) -> Tensor:
    """Leaves the last token of each sequence out."""
    assert cu is not None
    keep = torch.ones(x.shape[0], dtype=torch.bool) if mask is None else mask.clone()
    keep[(cu[1:] - 1)[cu[1:] > cu[:-1]].long()] = False
    return masked_mean_pool_ref(x, cu, keep)


def mask_ignored(x: Tensor, cu: Tensor | None, mask: Tensor | None) -> Tensor:
    """Counts the masked tokens."""
    return masked_mean_pool_ref(x, cu, None)


def sum_for_mean(x: Tensor, cu: Tensor | None, mask: Tensor | None) -> Tensor:
    """Does not divide."""
    assert cu is not None
    lengths = (cu[1:] - cu[:-1]).clamp(min=1)[:, None]
    return masked_mean_pool_ref(x, cu, mask) * lengths


def gradient_not_divided(x: Tensor, cu: Tensor | None, mask: Tensor | None) -> Tensor:
    """The right mean with the gradient of the sum."""
    mean = masked_mean_pool_ref(x, cu, mask)
    total = sum_for_mean(x, cu, mask)
    return mean.detach() + total - total.detach()


def sixteen_bit_sum(x: Tensor, cu: Tensor | None, mask: Tensor | None) -> Tensor:
    """Keeps the sum in bfloat16."""
    mean = masked_mean_pool_ref(x, cu, mask)
    return mean.to(torch.bfloat16).to(mean.dtype)


def row_not_written(x: Tensor, cu: Tensor | None, mask: Tensor | None) -> Tensor:
    """Leaves one element of the result as it found it."""
    mean = masked_mean_pool_ref(x, cu, mask).clone()
    with torch.no_grad():
        mean[0, -1:] = torch.nan
    return mean


@pytest.mark.parametrize(
    "mutant",
    [
        shorter_by_one,
        mask_ignored,
        sum_for_mean,
        gradient_not_divided,
        sixteen_bit_sum,
        row_not_written,
    ],
)
def test_pool_checks_bite(mutant) -> None:  # type: ignore[no-untyped-def]
    case = POOL_CASES["random mask"]
    check_pool(masked_mean_pool_ref, case, torch.float32)
    with pytest.raises(AssertionError):
        check_pool(mutant, case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pool_checks_bite_in_sixteen_bits(dtype: torch.dtype) -> None:
    for mutant in (shorter_by_one, mask_ignored, gradient_not_divided):
        with pytest.raises(AssertionError):
            check_pool(mutant, POOL_CASES["random mask"], dtype)


def flipped(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """Targets exchanged."""
    return linear_bce_ref(h, w, b, 1 - y, c)


def not_averaged(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """The default weight is 1, not 1/n."""
    return linear_bce_ref(h, w, b, y, torch.ones_like(y) if c is None else c)


def weights_ignored(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """All rows count alike."""
    return linear_bce_ref(h, w, b, y, None if c is None else torch.full_like(c, c.mean().item()))


def bias_forgotten(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """z = h.w, with the bias in its gradient alone."""
    return linear_bce_ref(h, w, b - b.detach(), y, c)


class _NotScaled(torch.autograd.Function):
    """Passes on a gradient of one whatever the gradient of the loss is."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.ones_like(grad)


def gradient_not_scaled(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """Ignores the gradient of the loss."""
    loss, logits = linear_bce_ref(h, w, b, y, c)
    return _NotScaled.apply(loss), logits


def no_gradient_of_bias(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """The bias gets half its gradient."""
    return linear_bce_ref(h, w, b / 2 + b.detach() / 2, y, c)


@pytest.mark.parametrize(
    ("mutant", "weighted"),
    [
        (flipped, True),
        (not_averaged, False),
        (weights_ignored, True),
        (bias_forgotten, True),
        (gradient_not_scaled, True),
        (no_gradient_of_bias, True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bce_checks_bite(mutant, weighted: bool, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    check_bce(linear_bce_ref, 7, 33, dtype, weighted=weighted)
    with pytest.raises(AssertionError):
        check_bce(mutant, 7, 33, dtype, weighted=weighted)
