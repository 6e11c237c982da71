"""The three phases of Algorithm 1 and the updates that follow them.

A phase is a function from a batch to a loss and gradients; an update takes gradients. Nothing is
ever stored on a parameter's `.grad`, which is what keeps the phases apart.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadv.config import ResolvedConfig
from fastadv.deferred_embedding import DeferredEmbedding
from fastadv.encoder import Encoder, PackedBert
from fastadv.heads import AdversarialModel
from fastadv.ops import discriminator_loss, generator_loss
from fastadv.optim import GradientAdam, Residuals
from fastadv.packing import PackedBatch

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

    Attributes:
        step_count: Iterations done so far; with the seed it fixes every dropout mask.
        optimizers: The three, by phase: "task", "discriminator" and "generator".
        residuals: The low bits of the weights, which T and G share.
        deferred: The word table under T and G; None where it is updated densely.
    """

    def __init__(self, model: AdversarialModel, config: ResolvedConfig) -> None:
        self.model = model
        self.config = config
        self.step_count = 0
        self.residuals = Residuals()
        self.deferred = self._defer()
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        theta = [(n, p) for n, p in named if n.startswith("encoder.")]
        task_head = [(n, p) for n, p in named if n.startswith("task_head.")]
        head = [(n, p) for n, p in named if n.startswith("discriminator.")]
        # θ_T = {θ, W_T, b_T}, θ_D = {w_D, b_D}, θ_G = {θ} (paper, section 3.1). T and G each keep
        # moments of their own over the same θ.
        self.optimizers = {
            "task": self._adam(theta + task_head, config.lr_task),
            "discriminator": self._adam(head, config.lr_discriminator),
            "generator": self._adam(theta, config.lr_generator),
        }

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
        # A function a phase: gradients are gone from memory when the next phase's pass begins.
        loss_task = self._task_phase(labeled)
        losses = StepLosses(loss_task)
        if self.config.adversarial and discriminator_draw is not None:
            assert generator_draw is not None
            pooled_d, pooled_g = self.pooled_draws(discriminator_draw, generator_draw)  # 8, 14
            loss_d, accuracy = self._discriminator_phase(discriminator_draw, pooled_d)
            loss_g = self._generator_phase(generator_draw, pooled_g)
            losses = StepLosses(loss_task, loss_d, loss_g, accuracy)
        self.step_count += 1
        return losses

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

    def _task_phase(self, labeled: PackedBatch) -> Tensor:
        loss, gradients = self.task_gradients(labeled)  # lines 2-5
        self.optimizers["task"].step(gradients, self.squares())  # line 6
        return loss

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
        with self._dropout_of("task"):
            loss = self.model.task_loss(batch)
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
        with self._dropout_of("languages"):
            pooled = self.model.pooled(generator_draw, leading=discriminator_draw)
        count = len(discriminator_draw)
        return pooled[:count].detach(), pooled[count:]

    def discriminator_gradients(
        self, draw: PackedBatch, pooled: Tensor
    ) -> tuple[Tensor, Tensor, Gradients]:
        """L_D, the discriminator's accuracy, and the gradient for {w_D, b_D}.

        Args:
            draw: Says which texts are English.
            pooled: (B, H), the h̄ of its texts.
        """
        english = _sides(draw)
        head = self.model.discriminator
        loss, logits = discriminator_loss(
            pooled, english, head.weight, head.bias, backend=self.config.backend
        )
        accuracy = ((logits > 0) == english).float().mean()
        return loss.detach(), accuracy, self._gradients(loss, "discriminator")

    def generator_gradients(self, draw: PackedBatch, pooled: Tensor) -> tuple[Tensor, Gradients]:
        """L_G and its gradient for {θ}; arguments as of `discriminator_gradients`."""
        head = self.model.discriminator
        loss, _ = generator_loss(
            pooled, _sides(draw), head.weight, head.bias, backend=self.config.backend
        )
        return loss.detach(), self._gradients(loss, "generator")

    def squares(self) -> dict[str, Tensor]:
        """Sums of squares of those of the last gradients that the encoder's pass knows, by name."""
        squares = getattr(self.model.encoder, "squares", {})
        return {f"encoder.{name}": x for name, x in squares.items()}

    def _gradients(self, loss: Tensor, phase: str) -> Gradients:
        if isinstance(self.model.encoder, PackedBert):
            self.model.encoder.squares.clear()
        # Unused parameters (a token-type row never read is used; a whole unused table is not) get
        # None, and Adam passes over them as it does over a missing `.grad`.
        return torch.autograd.grad(loss, self.optimizers[phase].parameters, allow_unused=True)

    def _defer(self) -> DeferredEmbedding | None:
        reason = why_dense(self.model.encoder, self.config)
        encoder = self.model.encoder
        if reason is not None or not isinstance(encoder, PackedBert):
            _say_dense(reason or "")
            return None
        encoder.embeddings.word.sparse = True
        table: Any = encoder.embeddings.word.weight
        encoder.deferred = DeferredEmbedding(table, self.residuals.of(table), self.config.backend)
        return encoder.deferred

    def _adam(self, named: list, lr: float) -> GradientAdam:
        config, encoder = self.config, self.model.encoder
        return GradientAdam(
            named,
            lr=lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            nonfinite=config.nonfinite_gradients,
            residuals=self.residuals,
            layouts=encoder.layouts if isinstance(encoder, PackedBert) else None,
            deferred=self.deferred,
            backend=config.backend,
        )

    @contextmanager
    def _dropout_of(self, encoder_pass: str) -> Iterator[None]:
        """Dropout drawn from (seed, step, pass) alone; the caller's random state is untouched.

        The random state of a run is thereby its step count, and a baseline run drops the same
        units in its task phase as the adversarial run beside it.
        """
        device = next(self.model.parameters()).device
        key = (self.config.seed, self.step_count, PASSES.index(encoder_pass))
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield


def why_dense(encoder: Encoder, config: ResolvedConfig) -> str | None:
    """Why the word table's untouched rows cannot wait for their updates; None if they can."""
    if not isinstance(encoder, PackedBert):
        return "the encoder runs padded"
    if not encoder.embeddings.word.weight.requires_grad:
        return "it is frozen"
    if config.weight_decay:
        return "weight decay moves every row by what it is"
    if config.beta1**2 >= config.beta2:
        return f"beta1 {config.beta1} and beta2 {config.beta2} let momentum outlive its scale"
    return None


@functools.cache
def _say_dense(reason: str) -> None:
    """Says it once a process, as with the encoder."""
    if reason != "it is frozen":
        logging.getLogger("fastadv").warning(
            "the word table is updated row by row in every step, which is slower: %s", reason
        )


def _sides(batch: PackedBatch) -> Tensor:
    if batch.english is None:
        raise ValueError(
            "the batch does not say which texts are English, expected one made by "
            "collate(other_texts, english_texts)"
        )
    return batch.english
