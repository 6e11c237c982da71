"""`HostAdam` against `torch.optim.Adam` in float64, and its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn.parameter import Parameter

from fastadv.optim.host_adam import HostAdam
from fastadv.optim.host_embedding import HostEmbedding
from fastadv.weights.compensations import Compensations


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
    ours = HostAdam(named, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, **options)
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
    adam = HostAdam(named, lr=1e-2)
    adam.step(gradients(0, torch.float32))
    assert all(p.grad is None for _, p in named)
    assert {n.rpartition(".")[0] for n in adam.state_tensors()} == {"a", "b"}


def test_state_moves_to_another_optimiser() -> None:
    one, two = parameters(torch.float32), parameters(torch.float32)
    low_one, low_two = Compensations(), Compensations()
    first = HostAdam(one, lr=1e-2, compensations=low_one)
    second = HostAdam(two, lr=1e-2, compensations=low_two)
    for step in range(3):
        first.step(gradients(step, torch.float32))
    with torch.no_grad():
        for (_, p), (_, q) in zip(one, two, strict=True):
            q.copy_(p)
            low_q, low_p = low_two.of(q), low_one.of(p)
            assert low_q is not None and low_p is not None
            low_q.copy_(low_p)
    second.load_state_tensors({n: t.clone() for n, t in first.state_tensors().items()})
    for step in range(3, 6):
        first.step(gradients(step, torch.float32))
        second.step(gradients(step, torch.float32))
    assert all(torch.equal(p, q) for (_, p), (_, q) in zip(one, two, strict=True))


def test_wrong_states_and_gradients_are_refused() -> None:
    adam = HostAdam(parameters(torch.float32), lr=1e-2)
    with pytest.raises(ValueError, match="found 1 gradients, expected one for each of 3"):
        adam.step([None])
    with pytest.raises(ValueError, match=r"z\.exp_avg belongs to no parameter"):
        adam.load_state_tensors({"z.exp_avg": torch.ones(1)})
    with pytest.raises(ValueError, match="a holds exp_avg, expected step, exp_avg, exp_avg_sq"):
        adam.load_state_tensors({"a.exp_avg": torch.ones(7, 5)})


def adam_over(
    dtype: torch.dtype, deferred: bool = False, **options: Any
) -> tuple[HostAdam, list[Parameter], Compensations]:
    """Ours over `parameters`; with `deferred`, "a" is a table whose rows wait."""
    named, compensations = parameters(dtype), Compensations()
    table = named[0][1]
    deferral = HostEmbedding(table, compensations.of(table), None) if deferred else None
    adam = HostAdam(named, lr=1e-2, compensations=compensations, deferred=deferral, **options)
    return adam, [p for _, p in named], compensations


def sparse_gradients(step: int, dtype: torch.dtype) -> list[torch.Tensor | None]:
    """As `gradients`, with rows of "a" that differ from step to step."""
    first, *rest = gradients(step, dtype)
    assert first is not None
    rows = torch.tensor([step % 7, (step + 2) % 7]).sort().values
    return [torch.sparse_coo_tensor(rows[None], first[rows], (7, 5), check_invariants=True), *rest]


def feed(theirs: Sequence[Parameter], found: Sequence[torch.Tensor | None]) -> None:
    for p, g in zip(theirs, found, strict=True):
        p.grad = g.to_dense() if g is not None else None


@pytest.mark.parametrize("deferred", [False, True])
def test_state_goes_to_torch_and_back(deferred: bool) -> None:
    """Three steps here, three by PyTorch, three here again: nine of PyTorch's."""
    draw = sparse_gradients if deferred else gradients
    oracle = [p for _, p in parameters(torch.float64)]
    start = [p.detach().clone() for p in oracle]
    adam = torch.optim.Adam(oracle, lr=1e-2)
    for step in range(9):
        feed(oracle, draw(step, torch.float64))
        adam.step()
    ours, weights, _ = adam_over(torch.float64, deferred)
    for step in range(3):
        ours.step(draw(step, torch.float64))
    theirs = torch.optim.Adam(weights, lr=5.0)
    theirs.load_state_dict(ours.state_dict())
    for step in range(3, 6):
        feed(weights, draw(step, torch.float64))
        theirs.step()
    again = HostAdam(
        zip(ours.names, weights, strict=True),
        lr=7.0,
        deferred=HostEmbedding(weights[0], None, None) if deferred else None,
    )
    again.load_state_dict(theirs.state_dict())
    assert again.lr == 1e-2
    for step in range(6, 9):
        again.step(draw(step, torch.float64))
    again.state_dict()  # brings the table's rows up to date
    for p, q, begin in zip(weights, oracle, start, strict=True):
        # Orders of the same operations in float64, and 1e-9 for what rows missed.
        assert ((p - q).abs() <= 1e-9 * (q - begin).abs().max() + 1e-14).all()
    assert not torch.equal(weights[0], start[0])


def test_states_of_other_adams_are_refused() -> None:
    ours, weights, _ = adam_over(torch.float32)
    for options, what in (
        ({"amsgrad": True}, "amsgrad"),
        ({"maximize": True}, "maximize"),
        ({"weight_decay": 0.1}, "coupled weight decay"),
    ):
        with pytest.raises(ValueError, match=f"an Adam with {what}, expected plain Adam"):
            ours.load_state_dict(torch.optim.Adam(weights, **options).state_dict())
    decoupled = torch.optim.AdamW(weights, weight_decay=0.1).state_dict()
    ours.load_state_dict(decoupled)
    assert ours.weight_decay == 0.1
    table, _, _ = adam_over(torch.float32, deferred=True)
    with pytest.raises(ValueError, match="weight decay, expected none with a deferred table"):
        table.load_state_dict(decoupled)


def everything(adam: HostAdam, weights: Sequence[Parameter], low: Compensations) -> list[Any]:
    """All that a step may change."""
    found = [p.detach().clone() for p in weights]
    found += [r.clone() for p in weights if (r := low.of(p)) is not None]
    return found + [t.clone() for t in adam.state_tensors().values()]


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(value: float, deferred: bool) -> None:
    for nonfinite in ("stop", "skip"):
        draw = sparse_gradients if deferred else gradients
        adam, weights, low = adam_over(torch.float32, deferred, nonfinite=nonfinite)
        for step in range(2):
            assert adam.step(draw(step, torch.float32))
        table = adam._deferred
        before = everything(adam, weights, low)
        waiting = {} if table is None else {n: t.clone() for n, t in table.state_tensors().items()}
        for place in (0, 1):
            wrong = draw(2, torch.float32)
            bad = wrong[place]
            assert bad is not None
            (bad._values() if bad.is_sparse else bad).view(-1)[1] = value
            if nonfinite == "stop":
                name = "ab"[place]
                with pytest.raises(
                    FloatingPointError, match=f"of {name} holds a value that is not"
                ):
                    adam.step(wrong)
            else:
                assert not adam.step(wrong)
        assert adam.skipped == (0 if nonfinite == "stop" else 2)
        after = everything(adam, weights, low)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        if table is not None:
            assert all(torch.equal(t, table.state_tensors()[n]) for n, t in waiting.items())
        # The next step is the third.
        adam.step(draw(2, torch.float32))
        assert float(adam.state_tensors()["b.step"]) == 3


def test_too_large_for_a_norm_is_refused_too() -> None:
    adam, *_ = adam_over(torch.float32)
    huge = [torch.full((7, 5), 1e30), torch.ones(3), None]
    with pytest.raises(FloatingPointError, match="has a norm that is not finite"):
        adam.step(huge)


def test_parameters_without_a_gradient_keep_their_step_count() -> None:
    """As PyTorch: a parameter's steps are those it had a gradient in."""
    adam, weights, _ = adam_over(torch.float64)
    theirs = [p for _, p in parameters(torch.float64)]
    oracle = torch.optim.Adam(theirs, lr=1e-2)
    for step in range(6):
        found = gradients(step, torch.float64)
        if step % 2:
            found[0] = None
        feed(theirs, found)
        oracle.step()
        adam.step(found)
    for p, q in zip(weights, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-14)
    steps = {n: float(t) for n, t in adam.state_tensors().items() if n.endswith(".step")}
    assert steps == {"a.step": 3, "b.step": 6}


@pytest.mark.parametrize("deferred", [False, True])
def test_a_changed_rate_holds_from_the_next_step_on(deferred: bool) -> None:
    draw = sparse_gradients if deferred else gradients
    adam, weights, _ = adam_over(torch.float64, deferred)
    theirs = [p for _, p in parameters(torch.float64)]
    oracle = torch.optim.Adam(theirs, lr=1e-2)
    for step in range(8):
        adam.lr = oracle.param_groups[0]["lr"] = 1e-2 / (1 + step)
        feed(theirs, draw(step, torch.float64))
        oracle.step()
        adam.step(draw(step, torch.float64))
    adam.state_dict()  # brings the table's rows up to date
    for p, q in zip(weights, theirs, strict=True):
        # 1e-9 of displacements of some hundredths.
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-10)


def test_clipping_is_by_the_norm_of_all_rows_and_weights() -> None:
    """A sparse gradient counts as the dense one that it stands for."""
    one, first, _ = adam_over(torch.float64, True, max_grad_norm=0.1)
    two, second, _ = adam_over(torch.float64, False, max_grad_norm=0.1)
    for step in range(4):
        found = sparse_gradients(step, torch.float64)
        one.step(found)
        two.step([None if g is None else g.to_dense() for g in found])
    one.state_dict()
    for p, q in zip(first, second, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-10)


def test_norms_that_are_given_clip_and_are_checked() -> None:
    one, first, _ = adam_over(torch.float64, max_grad_norm=0.1)
    two, second, _ = adam_over(torch.float64, max_grad_norm=0.1)
    for step in range(3):
        found = gradients(step, torch.float64)
        assert found[0] is not None
        one.step(found)
        two.step(found, {"a": found[0].square().sum()})
    for p, q in zip(first, second, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-14)
    with pytest.raises(FloatingPointError, match="has a norm that is not finite"):
        two.step(gradients(3, torch.float64), {"a": torch.tensor(float("nan"))})
