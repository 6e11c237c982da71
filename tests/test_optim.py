"""`GradientAdam` against `torch.optim.Adam` in float64, and its state."""

from __future__ import annotations

import pytest
import torch
from torch.nn.parameter import Parameter

from fastadv.optim import GradientAdam


def parameters(dtype: torch.dtype) -> list[tuple[str, Parameter]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (7, 5), "b": (3,), "unused": (2, 2)}
    return [
        (n, Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)))
        for n, s in shapes.items()
    ]


def gradients(step: int, dtype: torch.dtype) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(step + 1)
    draw = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((7, 5), (3,))]
    return [*(g.to(dtype) for g in draw), None]


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"max_grad_norm": 0.5}])
def test_equals_torch_adam(options: dict[str, float]) -> None:
    named, theirs = parameters(torch.float32), parameters(torch.float64)
    start = [p.detach().clone() for _, p in theirs]
    ours = GradientAdam(named, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, **options)
    decay = options.get("weight_decay", 0.0)
    oracle = torch.optim.AdamW(
        [p for _, p in theirs], lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=decay
    )
    for step in range(20):
        ours.step(gradients(step, torch.float32))
        for (_, p), g in zip(theirs, gradients(step, torch.float64), strict=True):
            p.grad = g
        if "max_grad_norm" in options:
            torch.nn.utils.clip_grad_norm_([p for _, p in theirs], options["max_grad_norm"])
        oracle.step()
    for (name, p), (_, q), begin in zip(named, theirs, start, strict=True):
        # Weights near 1 round by 6e-8 a step, 20 steps, against displacements near 0.2.
        assert (p.double() - q).abs().max() <= 20 * 1.2e-7, name
        assert (name == "unused") == torch.equal(q.detach(), begin)


def test_leaves_no_gradient_and_no_state_for_unused() -> None:
    named = parameters(torch.float32)
    adam = GradientAdam(named, lr=1e-2)
    adam.step(gradients(0, torch.float32))
    assert all(p.grad is None for _, p in named)
    assert {n.rpartition(".")[0] for n in adam.state_tensors()} == {"a", "b"}


def test_state_moves_to_another_optimiser() -> None:
    one, two = parameters(torch.float32), parameters(torch.float32)
    first, second = GradientAdam(one, lr=1e-2), GradientAdam(two, lr=1e-2)
    for step in range(3):
        first.step(gradients(step, torch.float32))
    with torch.no_grad():
        for (_, p), (_, q) in zip(one, two, strict=True):
            q.copy_(p)
    second.load_state_tensors({n: t.clone() for n, t in first.state_tensors().items()})
    for step in range(3, 6):
        first.step(gradients(step, torch.float32))
        second.step(gradients(step, torch.float32))
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(one, two, strict=True))


def test_wrong_states_and_gradients_are_refused() -> None:
    adam = GradientAdam(parameters(torch.float32), lr=1e-2)
    with pytest.raises(ValueError, match="found 1 gradients, expected one for each of 3"):
        adam.step([None])
    with pytest.raises(ValueError, match=r"z\.exp_avg belongs to no parameter"):
        adam.load_state_tensors({"z.exp_avg": torch.ones(1)})
    with pytest.raises(ValueError, match="a holds exp_avg, expected step, exp_avg, exp_avg_sq"):
        adam.load_state_tensors({"a.exp_avg": torch.ones(7, 5)})
