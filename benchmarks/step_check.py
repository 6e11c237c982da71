"""Whether a system computes what the reference does: nothing is timed that does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from step_batches import StepDraws
from step_systems import Padded, Phase, Setup, System
from torch import Tensor

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


def check(system: type[System], setup: Setup, draws: StepDraws) -> Check:
    """Runs `system` and the reference over the same draws with the same weights."""
    # One rate for all phases, or T's part would hide that G's is missing.
    rate = 1e-5
    exact = setup.with_config(
        dropout=0.0, precision="fp32", lr_task=rate, lr_discriminator=rate, lr_generator=rate
    )
    oracle = Padded(exact)
    expected = oracle.gradients(oracle.prepare(draws))
    ours = system(exact)
    found = ours.gradients(ours.prepare(draws))
    losses = max(
        abs(float(found[phase][0]) / float(loss) - 1) for phase, (loss, _) in expected.items()
    )
    gradients = _worst(found, expected)
    weights = _moved_apart(oracle, ours, draws)
    low_precision = None
    if setup.config.precision != "fp32":
        low = exact.with_config(precision=setup.config.precision)
        errors = []
        for kind in (system, Padded):
            timed = kind(low)
            errors.append(_worst(timed.gradients(timed.prepare(draws)), expected))
        low_precision = errors[0] / errors[1]
    return Check(system.name, losses, gradients, weights, low_precision)


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


def _moved_apart(oracle: System, ours: System, draws: StepDraws) -> float:
    start = {n: w.clone() for n, w in oracle.weights().items()}
    for system in (oracle, ours):
        system.step(system.prepare(draws))
    expected, found = oracle.weights(), ours.weights()
    worst = 0.0
    for part in ("encoder.", "task_head.", "discriminator."):
        names = [n for n in expected if n.startswith(part)]
        apart = _norm({n: found[n] - expected[n] for n in names})
        moved = _norm({n: expected[n] - start[n] for n in names})
        worst = max(worst, apart / moved)
    return worst
