"""Whether a system computes what the reference does: nothing is timed that does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from step.batches import SHAPES, DrawnTexts, StepDraws
from step.systems import Padded, Phase, Setup, System

# The check runs in float32 and several times over; on a CPU its texts are short.
CHECK_BATCH, CHECK_LENGTH = 3, 24
# Float32 rounding through 12 layers and back gives 1e-5 or less against another order of
# summation; a wrong mean, mask or sign gives 1e-2 and more.
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3
# Adam's first step is lr * sign(g). Entries whose gradient is nothing but rounding go either way:
# those of key biases, exactly zero, are 0.4% of the tiny model, 9% in this norm. A phase left out
# or a rate wrong by half gives 30% and more.
WEIGHT_TOLERANCE = 0.15
# In bfloat16 no system may be further from float32 than twice what the reference is in the same
# precision: two roundings of the same size are as likely to differ by that in their sums.
LOW_PRECISION_FACTOR = 2.0


@dataclass(frozen=True)
class Check:
    """How far a system was from the reference, dropout off, on a small batch.

    Attributes:
        losses: Largest relative difference of the three losses, float32.
        gradients: Largest difference of a gradient in float32, relative to its norm plus a
            hundredth of the phase's.
        weights: Largest relative difference of what one step in float32 moved, of the encoder and
            either head.
        low_precision: In the precision that is timed, the error of the gradients against the
            float32 reference over the reference's own in that precision; None in float32.
    """

    system: str
    losses: float
    gradients: float
    weights: float
    low_precision: float | None

    @property
    def passed(self) -> bool:
        """All within their tolerances (NaN is not)."""
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
    # One rate for all phases, or T's part would hide that G's is missing.
    rate = 1e-5
    exact = setup.with_config(
        dropout=0.0, precision="fp32", lr_task=rate, lr_discriminator=rate, lr_generator=rate
    )
    # One after the other, and freed: optimisers' states of large models fill the memory.
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
