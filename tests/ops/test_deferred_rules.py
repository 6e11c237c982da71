"""Rules of missed steps: sums of few terms against every step's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adam_checks import BETAS, TABLE_ROWS, CatchUpCase, replayed, rule_errors
from op_checks import need
from torch import Tensor

from fastadv.ops.embedding_adam import missed_steps

OP = "embedding_adam"


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
