"""Mean losses between two records of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastadv.batches.packing import PackedBatch
from fastadv.training.trainer import StepLosses

# Keys of a training record, and the fields of `StepLosses` that they are the means of.
NAMES = {
    "loss_task": "task",
    "loss_discriminator": "discriminator",
    "loss_generator": "generator",
    "discriminator_accuracy": "discriminator_accuracy",
}


class LossMeter:
    """Means of the losses since the last record, kept on the device until they are asked for.

    Losses that are not finite make the means so, or, with `skip_nonfinite`, do not count.
    """

    def __init__(self, device: torch.device, skip_nonfinite: bool = False) -> None:
        self.skip_nonfinite = skip_nonfinite
        # Row 0: sums, row 1: counts. float64, so that a mean does not depend on the interval.
        self.sums = torch.zeros(2, len(NAMES), dtype=torch.float64, device=device)
        self._examples = self._tokens = 0
        self._seconds = 0.0
        self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        self._seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def add(
        self,
        losses: StepLosses,
        labeled: PackedBatch,
        draw_d: PackedBatch | None = None,
        draw_g: PackedBatch | None = None,
    ) -> None:
        for index, field in enumerate(NAMES.values()):
            value = getattr(losses, field)
            if value is not None:
                weight = 1
                if field == "discriminator_accuracy" and draw_d is not None:
                    # Batches by a budget of word pieces differ in size: a share needs its whole.
                    weight = len(draw_d)
                counts = torch.isfinite(value) if self.skip_nonfinite else value.new_ones(())
                self.sums[0, index] += torch.where(counts.bool(), value * weight, 0.0)
                self.sums[1, index] += counts * weight
        for batch in (labeled, draw_d, draw_g):
            if batch is not None:
                self._examples += int(batch.num_examples)
                self._tokens += batch.num_tokens

    def means(self) -> dict[str, float]:
        """Mean losses since the last `take`, and the number of texts behind the accuracy.

        Raises:
            FloatingPointError: A loss is not finite, so the weights no longer mean anything.
        """
        sums, counts = self.sums.tolist()
        means = {n: s / c for n, s, c in zip(NAMES, sums, counts, strict=True) if c}
        for name, mean in means.items():
            if mean != mean or abs(mean) == float("inf"):
                raise FloatingPointError(
                    f"{name} became {mean}, expected a finite number: "
                    "lower the learning rates or use precision fp32"
                )
        if "discriminator_accuracy" in means:
            means["discriminator_texts"] = int(counts[-1])
        return means

    def take(self) -> dict[str, float]:
        """`means` and the rates since the last call; starts anew."""
        means = self.means()
        seconds = max(self._seconds + time.perf_counter() - self._since, 1e-9)
        means["examples_per_second"] = self._examples / seconds
        means["tokens_per_second"] = self._tokens / seconds
        self.sums.zero_()
        self._examples = self._tokens = 0
        self._seconds = 0.0
        self._since = time.perf_counter()
        return means
