"""The checks bite: each deliberately broken operation fails the very check that ours passes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from adam_checks import ADAM_CASES, CATCH_UP_CASES, check_adam, check_catch_up
from adam_checks import check_embedding_adam as check_rows
from op_checks import POOL_CASES, check_bce, check_pool
from torch import Tensor

from fastadv.ops.adam import adam_ref
from fastadv.ops.embedding_adam import embedding_adam_catch_up_ref, embedding_adam_ref
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


RELAXATION = 0.5
relaxed = partial(linear_bce_ref, relaxation=RELAXATION)


def relaxation_ignored(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """p is not bounded."""
    return linear_bce_ref(h, w, b, y, c)


def relaxed_by_one_more(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """The bound is that of another relaxation."""
    return linear_bce_ref(h, w, b, y, c, 1 + RELAXATION)


def other_side_bounded(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """1 - p is bounded instead of p."""
    loss, logits = relaxed(-h, w, -b, 1 - y, c)
    return loss, -logits


def bound_without_its_logarithm(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """-log sigmoid(z) for -log p: the right gradients of another loss."""
    loss, logits = relaxed(h, w, b, y, c)
    scale = torch.full_like(y, 1 / max(len(y), 1)) if c is None else c
    return loss - (scale * y).sum() * math.log(2 + RELAXATION), logits


def unbounded_gradient(h, w, b, y, c):  # type: ignore[no-untyped-def]
    """The right loss with the gradient of the unbounded one."""
    loss, logits = relaxed(h, w, b, y, c)
    other, _ = linear_bce_ref(h, w, b, y, c)
    return loss.detach() + other - other.detach(), logits


@pytest.mark.parametrize(
    "mutant",
    [
        relaxation_ignored,
        relaxed_by_one_more,
        other_side_bounded,
        bound_without_its_logarithm,
        unbounded_gradient,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_relaxed_bce_checks_bite(mutant, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    check_bce(relaxed, 7, 33, dtype, reference=relaxed)
    with pytest.raises(AssertionError):
        check_bce(mutant, 7, 33, dtype, reference=relaxed)


def adam_mutants() -> dict[str, tuple[str, Any]]:
    """Name -> the case that must find it, and a broken `adam`."""

    def changed(place: int = -1, how: Any = None, **rules: Any) -> Any:
        """`adam_ref` with the list at `place`, or numbers by name, made into another."""

        def op(*lists: Any, **numbers: Any) -> None:
            given = [how(x) if i == place else x for i, x in enumerate(lists)]
            adam_ref(*given, **{k: rules[k](x) if k in rules else x for k, x in numbers.items()})

        return op

    def without(number: str) -> Any:
        return lambda *lists, **numbers: adam_ref(
            *lists, **{k: x for k, x in numbers.items() if k != number}
        )

    def compensations_lost(*lists: Any, **numbers: Any) -> None:
        adam_ref(*lists, **numbers)
        for compensation in lists[1]:
            compensation.zero_()

    def decay_in_the_gradient(*lists: Any, weight_decay: float, **numbers: Any) -> None:
        grads = [g + weight_decay * w for g, w in zip(lists[2], lists[0], strict=True)]
        adam_ref(*lists[:2], grads, *lists[3:], **numbers)

    def moments_not_written(*lists: Any, **numbers: Any) -> None:
        copies = [[x.clone() for x in lists[j]] for j in (3, 4)]
        adam_ref(*lists[:3], *copies, lists[5], **numbers)

    return {
        "no step is counted": ("odd", changed(5, lambda steps: [10**9] * len(steps))),
        "one step for all": ("several", changed(5, lambda steps: [steps[0]] * len(steps))),
        "a step late": ("odd", changed(5, lambda steps: [t + 1 for t in steps])),
        "eps under the root": ("eps", changed(eps=lambda eps: eps**0.5)),
        "no eps": ("eps", changed(eps=lambda eps: 1e-300)),
        "betas exchanged": ("odd", changed(beta1=lambda _: 0.999, beta2=lambda _: 0.9)),
        "no scale": ("scaled", without("grad_scale")),
        "no decay": ("decay", without("weight_decay")),
        "decay in the gradient": ("decay", decay_in_the_gradient),
        "compensations lost": ("odd", compensations_lost),
        "moments not written": ("odd", moments_not_written),
        "gradient not read": ("odd", changed(2, lambda grads: [g * 0 for g in grads])),
    }


ADAM_MUTANTS = adam_mutants()


@pytest.mark.parametrize("name", ADAM_MUTANTS)
def test_adam_checks_bite(name: str) -> None:
    case, mutant = ADAM_MUTANTS[name]
    check_adam(adam_ref, ADAM_CASES[case], torch.float32)
    with pytest.raises(AssertionError):
        check_adam(mutant, ADAM_CASES[case], torch.float32)


def all_rows(*args: Any, **numbers: Any) -> None:
    """Steps on every row, those without a gradient too."""
    tables, rows, grads = args[:4], args[4], args[5]
    every = torch.arange(len(tables[0]))
    embedding_adam_ref(
        *tables, every, torch.zeros_like(tables[0]).index_copy(0, rows, grads), **numbers
    )


def rows_shifted(*args: Any, **numbers: Any) -> None:
    """The gradient of one row goes to the next."""
    embedding_adam_ref(*args[:5], args[5].roll(1, 0), **numbers)


@pytest.mark.parametrize("mutant", [all_rows, rows_shifted])
def test_embedding_adam_checks_bite(mutant: Any) -> None:
    check_rows(embedding_adam_ref, 9, 7, [0, 3, 4], torch.float32)
    with pytest.raises(AssertionError):
        check_rows(mutant, 9, 7, [0, 3, 4], torch.float32)


def a_step_short(*args: Any, step: int, **numbers: Any) -> None:
    """Leaves the last missed step out."""
    embedding_adam_catch_up_ref(*args[:5], args[5].clamp(max=step - 1), step=step - 1, **numbers)


def rates_of_other_steps(*args: Any, base: int, lrs: Tensor, **numbers: Any) -> None:
    """The rate of the step before."""
    embedding_adam_catch_up_ref(*args, base=base, lrs=lrs.roll(1), **numbers)


def one_rate(*args: Any, lrs: Tensor, **numbers: Any) -> None:
    """As if the rate had not changed."""
    embedding_adam_catch_up_ref(*args, lrs=torch.full_like(lrs, lrs.mean().item()), **numbers)


def moments_stay(*args: Any, **numbers: Any) -> None:
    """The weight moves, and moments do not decay."""
    moments = [x.clone() for x in args[2:4]]
    embedding_adam_catch_up_ref(*args[:2], *moments, *args[4:], **numbers)


def steps_from_zero(*args: Any, step: int, base: int, lrs: Tensor, **numbers: Any) -> None:
    """Bias corrections of the steps' distance from the first, not of the steps."""
    embedding_adam_catch_up_ref(
        *args[:5], args[5] - base, step=step - base, base=0, lrs=lrs, **numbers
    )


def others_too(*args: Any, **numbers: Any) -> None:
    """A row beside those that were asked for decays."""
    embedding_adam_catch_up_ref(*args, **numbers)
    args[2][-1] *= 0.9


def eps_a_little_off(*args: Any, eps: float, **numbers: Any) -> None:
    """Only two in a million too much in the scale: more than rules may be off."""
    embedding_adam_catch_up_ref(*args, eps=eps * (1 + 2e-6), **numbers)


@pytest.mark.parametrize(
    "mutant",
    [
        a_step_short,
        rates_of_other_steps,
        one_rate,
        moments_stay,
        steps_from_zero,
        others_too,
        eps_a_little_off,
    ],
)
def test_catch_up_checks_bite(mutant: Any) -> None:
    check = partial(check_catch_up, case=CATCH_UP_CASES["(0.9, 0.999) 17+200"])
    check(embedding_adam_catch_up_ref, dtype=torch.float64)
    with pytest.raises(AssertionError):
        check(mutant, dtype=torch.float64)
