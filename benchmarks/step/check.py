"""Whether a system computes what the reference computes: otherwise nothing of it is timed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from step.batches import SHAPES, DrawnTexts, StepDraws
from step.systems import Padded, Phase, Setup, System

# The check runs several times, in float32; its texts are short because a CPU may run it.
CHECK_BATCH, CHECK_LENGTH = 3, 24
# Another order of summation changes float32 results by 1e-5 or less through 12 layers and back; a
# wrong mean, mask or sign changes them by 1e-2 or more.
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3
# Adam's first step is lr * sign(g). Entries whose gradient is only rounding go either way. Key
# biases, whose true gradient is zero, are such entries: 0.4% of the tiny model, 9% in this norm. A
# missing phase or a rate that is wrong by half gives 30% or more.
WEIGHT_TOLERANCE = 0.15
# In bfloat16 a system's error against float32 may be at most twice the error of the reference in
# the same precision: sums of equally many roundings may differ by that factor.
LOW_PRECISION_FACTOR = 2.0


@dataclass(frozen=True)
class Check:
    """How far a system was from the reference, dropout off, on a small batch.

    Attributes:
        losses: Largest relative difference of the three losses, float32.
        gradients: Largest difference of a gradient in float32, relative to its norm plus a
            hundredth of the phase's.
        weights: Largest relative difference in what one float32 step moved, for the encoder and
            either head.
        low_precision: In the timed precision, the error of the gradients against the float32
            reference, divided by the reference's own error in that precision; None in float32.
    """

    system: str
    losses: float
    gradients: float
    weights: float
    low_precision: float | None

    @property
    def passed(self) -> bool:
        """Whether all are within their tolerances (NaN is not)."""
        return (
            self.losses <= LOSS_TOLERANCE
            and self.gradients <= GRADIENT_TOLERANCE
            and self.weights <= WEIGHT_TOLERANCE
            and (self.low_precision is None or self.low_precision <= LOW_PRECISION_FACTOR)
        )


def check_draws(setup: Setup) -> StepDraws:
    """A small batch of the setup's shape."""
    (shape,) = (s for s in SHAPES.values() if s.task == setup.task)
    if setup.device.type == "cpu":
        shape = dataclasses.replace(shape, max_length=CHECK_LENGTH, median=CHECK_LENGTH / 2)
    return DrawnTexts(shape, setup.encoder.config.vocab_size, seed=1).step(CHECK_BATCH)


def check(system: type[System], setup: Setup, draws: StepDraws) -> Check:
    """Runs `system` and the reference over the same draws with the same weights."""
    # One rate for all phases: otherwise T's part would hide a missing G.
    rate = 1e-5
    exact = setup.with_config(
        dropout=0.0, precision="fp32", lr_task=rate, lr_discriminator=rate, lr_generator=rate
    )
    # One after the other, and freed: the optimiser states of large models fill the memory.
    oracle = Padded(exact)
    expected = oracle.gradients(oracle.prepare(draws))
    start = {n: w.clone() for n, w in oracle.weights().items()}
    moved = _movement(oracle, draws, start)
    del oracle
    ours = system(exact)
    found = ours.gradients(ours.prepare(draws))
    losses = max(
        abs(float(found[phase][0]) / float(loss) - 1) for phase, (loss, _) in expected.items()
    )
    gradients = _worst(found, expected)
    del found
    weights = _moved_apart(moved, _movement(ours, draws, start))
    del ours, moved, start
    low_precision = None
    if setup.config.precision != "fp32":
        low = exact.with_config(precision=setup.config.precision)
        error, own = (_low_error(kind(low), draws, expected) for kind in (system, Padded))
        low_precision = error / own
    return Check(system.name, losses, gradients, weights, low_precision)


def _low_error(system: System, draws: StepDraws, expected: Mapping[str, Phase]) -> float:
    return _worst(system.gradients(system.prepare(draws)), expected)


def _worst(found: Mapping[str, Phase], expected: Mapping[str, Phase]) -> float:
    worst = 0.0
    for phase, (_, gradients) in expected.items():
        whole = _norm(gradients)
        for name, gradient in gradients.items():
            other = found[phase][1].get(name)
            difference = gradient if other is None else other.float() - gradient
            error = float(difference.norm()) / (float(gradient.norm()) + 0.01 * whole)
            worst = error if math.isnan(error) else max(worst, error)
    return worst


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.hypot(*(float(t.norm()) for t in tensors.values()))


def _movement(system: System, draws: StepDraws, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What one step adds to the weights."""
    system.step(system.prepare(draws))
    return {n: w - start[n] for n, w in system.weights().items()}


def _moved_apart(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    worst = 0.0
    for part in ("encoder.", "task_head.", "discriminator."):
        names = [n for n in expected if n.startswith(part)]
        apart = _norm({n: found[n] - expected[n] for n in names})
        worst = max(worst, apart / _norm({n: expected[n] for n in names}))
    return worst
