"""The discriminator's two losses and its accuracy, with the bounded p and without, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastadv.backends import BACKENDS
from fastadv.batches.packing import PackedBatch
from fastadv.nn.adversary import LanguageDiscriminator

# Logits of two English texts and of three others, the last of which does not count.
LOGITS = (1.5, -0.5, -2.0, 0.25, 9.0)
ENGLISH = (True, True, False, False, False)
COUNTED = (True, True, True, True, False)


def draw(counted: bool) -> PackedBatch:
    ids = torch.zeros(5, dtype=torch.int64)
    return PackedBatch(
        ids, ids, torch.arange(6, dtype=torch.int32), max_seqlen=1, labels=None, num_examples=5,
        english=torch.tensor(ENGLISH), counted=torch.tensor(COUNTED) if counted else None,
    )  # fmt: skip


def discriminator(relaxation: float, backend: str | None = None) -> LanguageDiscriminator:
    """z is the only feature."""
    found = LanguageDiscriminator(1, 0.02, 0, backend, relaxation)
    with torch.no_grad():
        found.weight.fill_(1.0)
        found.bias.zero_()
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relaxation", [0.0, 0.5])
def test_both_losses(relaxation: float, backend: str) -> None:
    model = discriminator(relaxation, backend)
    p = [1 / (1 + math.exp(-z)) / (2 + relaxation if relaxation else 1) for z in LOGITS]
    features = torch.tensor(LOGITS)[:, None].requires_grad_()
    loss, accuracy = model.loss(features, draw(counted=True))
    loss_d = -(math.log(p[0]) + math.log(p[1])) / 2 - (math.log(1 - p[2]) + math.log(1 - p[3])) / 2
    # Six digits: single precision, and functions within a few units of the last place.
    assert loss.item() == pytest.approx(loss_d, rel=1e-6)
    # The sign of z, whatever p's bound is: 1.5 and -2 are right, and 9 does not count.
    assert accuracy.item() == 0.5
    assert model.loss(features, draw(counted=False)).accuracy.item() == pytest.approx(0.4)
    loss = model.generator_loss(features, draw(counted=True))
    loss_g = -(math.log(1 - p[0]) + math.log(1 - p[1])) / 2 - (math.log(p[2]) + math.log(p[3])) / 2
    assert loss.item() == pytest.approx(loss_g, rel=1e-6)
    loss.backward()
    assert features.grad is not None and model.weight.grad is None
    scores = model.scores(np.array(LOGITS, np.float32)[:, None])
    assert scores.tolist() == list(LOGITS)


def test_relaxed_generator_leaves_what_is_at_the_bound() -> None:
    """Where the unbounded one still pushes English texts: up to 1 in slope."""
    slopes = {}
    for relaxation in (0.0, 0.5):
        features = torch.full((5, 1), 20.0, requires_grad=True)
        discriminator(relaxation).generator_loss(features, draw(counted=False)).backward()
        assert features.grad is not None
        slopes[relaxation] = features.grad.abs().sum().item()
    assert slopes[0.0] == pytest.approx(1) and 0 < slopes[0.5] < 1e-8


def test_relaxation_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"relaxation is -1.0, expected a finite number"):
        discriminator(-1.0).loss(torch.zeros(5, 1), draw(counted=False))
