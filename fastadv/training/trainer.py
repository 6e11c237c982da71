"""The three phases of Algorithm 1 and the updates that follow them.

A phase is a function from a batch to a loss and gradients; an update takes gradients. Nothing is
ever stored on a parameter's `.grad`, which is what keeps the phases apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastadv.batches.packing import PackedBatch
from fastadv.device import random_devices
from fastadv.training.phase_optimizers import build_optimizers, why_not_capturable
from fastadv.training.settings import TrainerSettings
from fastadv.training.trainable import Trainable

Gradients = tuple[Tensor | None, ...]
# The encoder's passes: T's, and the one that D and G share. Each has a dropout key of its own.
PASSES = ("task", "languages")


@dataclass(frozen=True)
class StepLosses:
    """Scalars of one iteration, each taken before its phase's update, still on the device.

    `discriminator_accuracy` is the share of the D batch that the discriminator had right. The
    last three are None without the adversary.
    """

    task: Tensor
    discriminator: Tensor | None = None
    generator: Tensor | None = None
    discriminator_accuracy: Tensor | None = None


class Trainer:
    """Model, three optimisers, and the order in which they act.

    Args:
        model: θ and the two heads.
        config: Learning rates and the rest.
        capturable: Updates that a CUDA graph may hold and that the host does not wait for; None
            for that on a GPU wherever it can be (`why_not_capturable`).

    Attributes:
        step_count: Iterations done so far; with the seed it fixes every dropout mask.
        optimizers: The three, by phase: "task", "discriminator" and "generator".
        compensations: The low bits of the weights, which T and G share.
        deferred: The word table under T and G; None where it is updated densely.
    """

    def __init__(
        self, model: Trainable, config: TrainerSettings, capturable: bool | None = None
    ) -> None:
        self.model = model
        self.config = config
        self.step_count = 0
        if capturable is None:
            capturable = why_not_capturable(model, config) is None
        self.capturable = capturable
        built = build_optimizers(model, config, capturable)
        self.optimizers, self.compensations, self.deferred = built
        # A padded encoder's dropout, and that before the task's head.
        self._draws_from_pytorch = not model.encoder.seeded_dropout or config.head_dropout > 0

    def step(
        self,
        labeled: PackedBatch,
        discriminator_draw: PackedBatch | None = None,
        generator_draw: PackedBatch | None = None,
    ) -> StepLosses:
        """One iteration of Algorithm 1; without draws, or with the adversary off, lines 2-6 alone.

        Args:
            labeled: The English batch with its labels (line 2).
            discriminator_draw: Other-language and English texts (line 7), told apart by
                `PackedBatch.english`.
            generator_draw: The same, drawn afresh (line 13).
        """
        self.model.train()
        self.reserve()
        losses = StepLosses(self.task_step(labeled))
        if self.config.adversarial and discriminator_draw is not None:
            assert generator_draw is not None
            losses = replace(losses, **self.language_step(discriminator_draw, generator_draw))
        self.step_count += 1
        return losses

    def task_step(self, labeled: PackedBatch) -> Tensor:
        """Lines 2 to 6: L_T, (), before the update."""
        loss, gradients = self.task_gradients(labeled)  # lines 2-5
        self.optimizers["task"].step(gradients, self.squares())  # line 6
        return loss

    def language_step(
        self, discriminator_draw: PackedBatch, generator_draw: PackedBatch
    ) -> dict[str, Tensor]:
        """Lines 7 to 18: fields of `StepLosses`, each before its update."""
        pooled_d, pooled_g = self.pooled_draws(discriminator_draw, generator_draw)  # 8, 14
        # A function a phase: gradients are gone from memory when the next one's are made.
        loss_d, accuracy = self._discriminator_phase(discriminator_draw, pooled_d)
        loss_g = self._generator_phase(generator_draw, pooled_g)
        return {"discriminator": loss_d, "generator": loss_g, "discriminator_accuracy": accuracy}

    def reserve(self) -> None:
        """Before every step, whether it runs or a graph of it is replayed: graphs read the rates
        anew, from the device.
        """
        for phase, lr in self.config.rates(self.step_count).items():
            self.optimizers[phase].lr = lr
        for optimizer in self.optimizers.values():
            optimizer.reserve()

    def check(self) -> None:
        """Raises FloatingPointError where an update of an earlier step could not be done, which a
        GPU tells only who asks; the host waits for it.
        """
        for optimizer in self.optimizers.values():
            optimizer.check()

    @property
    def skipped(self) -> int:
        """Updates left out so far since their gradients were not finite."""
        return sum(optimizer.skipped for optimizer in self.optimizers.values())

    def flush(self) -> None:
        """Does the updates that rows of the word table still wait for, so that every parameter is
        what it is; forward passes and `state_dict()` see to it themselves.
        """
        if self.deferred is not None:
            self.deferred.flush()

    def _discriminator_phase(self, draw: PackedBatch, pooled: Tensor) -> tuple[Tensor, Tensor]:
        loss, accuracy, gradients = self.discriminator_gradients(draw, pooled)  # lines 9-11
        self.optimizers["discriminator"].step(gradients)  # line 12
        return loss, accuracy

    def _generator_phase(self, draw: PackedBatch, pooled: Tensor) -> Tensor:
        loss, gradients = self.generator_gradients(draw, pooled)  # lines 15-17
        self.optimizers["generator"].step(gradients, self.squares())  # line 18
        return loss

    def task_gradients(self, batch: PackedBatch) -> tuple[Tensor, Gradients]:
        """L_T and its gradient for {θ, W_T, b_T}."""
        with self._dropout_of("task", batch) as seeded:
            loss = self.model.task_loss(seeded)
        return loss.detach(), self._gradients(loss, "task")

    def pooled_draws(
        self, discriminator_draw: PackedBatch, generator_draw: PackedBatch
    ) -> tuple[Tensor, Tensor]:
        """h̄_θ(x) of the texts of both draws, from one pass of the encoder.

        h does not depend on w_D, and θ stays as it is from line 7 to line 18, so that L_G reads
        what it would after line 12; and line 12 needs no backward pass through the encoder.

        Returns:
            (B_D, H) without a gradient, and (B_G, H) with one.
        """
        with self._dropout_of("languages", generator_draw) as seeded:
            pooled = self.model.pooled(seeded, leading=discriminator_draw)
        count = len(discriminator_draw)
        return pooled[:count].detach(), pooled[count:]

    def discriminator_gradients(
        self, draw: PackedBatch, pooled: Tensor
    ) -> tuple[Tensor, Tensor, Gradients]:
        """L_D, the discriminator's accuracy, and the gradient for {w_D, b_D}.

        Args:
            draw: Says which texts are English, or in which language.
            pooled: (B, H), the h̄ of its texts.
        """
        loss, accuracy = self.model.discriminator.loss(pooled, draw)
        return loss.detach(), accuracy, self._gradients(loss, "discriminator")

    def generator_gradients(self, draw: PackedBatch, pooled: Tensor) -> tuple[Tensor, Gradients]:
        """L_G and its gradient for {θ}; arguments as of `discriminator_gradients`."""
        loss = self.model.discriminator.generator_loss(pooled, draw)
        return loss.detach(), self._gradients(loss, "generator")

    def squares(self) -> dict[str, Tensor]:
        """Sums of squares of those of the last gradients that the encoder's pass knows, by name;
        they can be had once.
        """
        return {f"encoder.{name}": x for name, x in self.model.encoder.take_squares().items()}

    def _gradients(self, loss: Tensor, phase: str) -> Gradients:
        # Those of a phase that nobody asked for.
        self.model.encoder.take_squares()
        optimizer = self.optimizers[phase]
        # Unused parameters (a token-type row never read is used; a whole unused table is not) get
        # None, and Adam passes over them as it does over a missing `.grad`.
        scaled = optimizer.scaler.scaled(loss)
        return torch.autograd.grad(scaled, optimizer.parameters, allow_unused=True)

    def seed_of(self, encoder_pass: str, step: int) -> int:
        """What a pass of a step draws dropout from, in [0, 2^63): (seed, step, pass) alone."""
        key = (self.config.seed, step, PASSES.index(encoder_pass))
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))

    @contextmanager
    def _dropout_of(self, encoder_pass: str, batch: PackedBatch) -> Iterator[PackedBatch]:
        """The batch with what its dropout is drawn from: (seed, step, pass) alone.

        The random state of a run is thereby its step count, and a baseline run drops the same
        units in its task phase as the adversarial run beside it. Where dropout is drawn from
        PyTorch's generator, that begins at the same seed inside, and is as it was afterwards.
        """
        seed = self.seed_of(encoder_pass, self.step_count)
        device = batch.input_ids.device
        if batch.seed is None:
            own = torch.full((1,), seed, dtype=torch.int64, device=device)
            batch = replace(batch, seed=own)
        if not self._draws_from_pytorch:
            yield batch
            return
        with torch.random.fork_rng(devices=random_devices(device)):
            torch.manual_seed(seed)
            yield batch
