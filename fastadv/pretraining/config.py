"""Every setting of a pretraining run, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from fastadv.config import FinetuneConfig, NonFinite, Precision, rate_factor

Adversary = Literal["none", "source", "all"]


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run.

    The model is BERT's (Devlin et al. 2019), small enough by default for two cores. "measured"
    below refers to docs/results/pretraining.md.

    Args:
        vocabulary_size: Word pieces, special ones included.
        hidden_size: Units of a token's vector.
        num_layers: Layers of the encoder.
        num_heads: Attention heads of a layer.
        intermediate_size: Units between the two products of a feed-forward.
        max_positions: Rows of the position table, the longest text that the model will ever read.
        initializer_range: Standard deviation of weights at the start.
        positional_heads: Begin with heads of the first two layers that look at neighbours, instead
            of at random; measured: without, a run stays on the plateau of word frequencies.
        steps: Updates.
        tokens_per_batch: Word pieces in a batch, special tokens counted.
        max_length: Longest sequence in word pieces with special tokens.
        short_steps: For so many steps at the start sequences are of at most short_length pieces.
        short_length: See short_steps.
        exponent: Languages are drawn in proportion to their share of the text to this power; 0.7
            as for multilingual BERT.
        mask_rate: Share of the tokens that are to be predicted (Devlin et al. 2019, 3.1).
        lr: Adam's learning rate of masked-language modelling at its highest.
        warmup_steps: Steps in which the learning rates rise from 0, linearly.
        decay_steps: Last steps, in which they fall to final_lr, linearly; between, they are
            constant, so that a run can be made longer later.
        final_lr: What they end at, as a share of the highest.
        beta1: Adam's first-moment decay.
        beta2: Adam's second-moment decay.
        eps: Adam's epsilon.
        weight_decay: Decoupled weight decay in all optimisers.
        max_grad_norm: Clip each phase's gradient to this global norm; None for no clipping.
        nonfinite_gradients: As in training: "stop" the run, or "skip" the update.
        dropout: While pretraining, hidden and attention.
        saved_dropout: What the saved model's configuration says, for finetuning.
        saved_precision: The type of the saved weights: "fp32", or "bf16", half the size.
        adversary: "none" is masked-language modelling alone. "source" adds Algorithm 1's phases D
            and G (paper, section 3.1), the source language against the rest; "all" does with a
            softmax over all languages, where G's loss is -log(1 - p) of the true one, which for
            two languages is the paper's with flipped labels.
        adversary_tokens: Word pieces in a D and in a G batch.
        lr_discriminator: The discriminator's learning rate at its highest.
        lr_generator: The generator's learning rate at its highest.
        source_language: The language that "source" tells from the others.
        precision: The type that matrix products read: "bf16", "fp16", "fp32" or "auto", as in
            training.
        backend: Backend of our operations; None leaves the choice to `fastadv.backends`.
        seed: Seeds the first weights, the batches, their masks and dropout; nothing else is random.
        log_every: Steps between training records in metrics.jsonl.
        eval_every: Steps between held-out losses; 0 for none but the last.
        checkpoint_every: Steps between checkpoints; 0 for none but the last.
    """

    vocabulary_size: int = 16384
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 1024
    max_positions: int = 512
    initializer_range: float = 0.02
    positional_heads: bool = True
    steps: int = 20000
    tokens_per_batch: int = 4096
    max_length: int = 128
    short_steps: int = 0
    short_length: int = 64
    exponent: float = 0.7
    mask_rate: float = 0.15
    lr: float = 1e-3
    warmup_steps: int = 200
    decay_steps: int = 5000
    final_lr: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    nonfinite_gradients: NonFinite = "stop"
    dropout: float = 0.0
    saved_dropout: float = 0.1
    saved_precision: Literal["fp32", "bf16"] = "fp32"
    adversary: Adversary = "none"
    adversary_tokens: int = 2048
    lr_discriminator: float = 1e-3
    lr_generator: float = 1e-5
    source_language: str = "en"
    precision: Precision = "auto"
    backend: str | None = None
    seed: int = 0
    log_every: int = 100
    eval_every: int = 1000
    checkpoint_every: int = 500

    # What a resumed run may change: none of these alters what a step computes.
    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset(
        (
            "steps",
            "eval_every",
            "checkpoint_every",
            "log_every",
            "saved_dropout",
            "saved_precision",
        )
    )

    def __post_init__(self) -> None:
        _check(self)

    @property
    def free_on_resume(self) -> frozenset[str]:
        """Fields that a resumed run may change."""
        return self.FREE_ON_RESUME

    @property
    def adversarial(self) -> bool:
        """Whether there are phases D and G."""
        return self.adversary != "none"

    @property
    def lr_task(self) -> float:
        """The rate of phase T before `rate` scales it."""
        return self.lr

    @property
    def head_dropout(self) -> float:
        """The head's input has no dropout."""
        return 0.0

    @property
    def cuda_graphs(self) -> bool:
        """Steps are not captured: masked batches have no fixed sizes yet."""
        return False

    def rate(self, step: int) -> float:
        """The factor of the learning rates in step `step`, counted from 0."""
        return rate_factor(step, self.steps, self.warmup_steps, self.decay_steps, self.final_lr)

    def rates(self, step: int) -> dict[str, float]:
        """The learning rates of all phases in step `step`, counted from 0."""
        rate = self.rate(step)
        return {
            "task": rate * self.lr,
            "discriminator": rate * self.lr_discriminator,
            "generator": rate * self.lr_generator,
        }

    def length(self, step: int) -> int:
        """The longest sequence of step `step`."""
        return (
            min(self.short_length, self.max_length) if step < self.short_steps else self.max_length
        )


_POSITIVE = (
    "hidden_size", "num_layers", "num_heads", "intermediate_size", "steps", "tokens_per_batch",
    "adversary_tokens", "log_every",
)  # fmt: skip
_NOT_NEGATIVE = (
    "warmup_steps", "decay_steps", "short_steps", "seed", "eval_every", "checkpoint_every",
)  # fmt: skip


def _check(config: PretrainConfig) -> None:
    def refuse(name: str, expected: str) -> None:
        raise ValueError(f"{name} is {getattr(config, name)!r}, expected {expected}")

    for name in _POSITIVE:
        if getattr(config, name) < 1:
            refuse(name, "a whole number of at least 1")
    for name in _NOT_NEGATIVE:
        if getattr(config, name) < 0:
            refuse(name, "a whole number of at least 0")
    if config.vocabulary_size < 100:
        refuse("vocabulary_size", "at least 100 word pieces")
    if config.hidden_size % config.num_heads:
        refuse("hidden_size", f"a multiple of num_heads, {config.num_heads}")
    for name in ("max_length", "short_length"):
        if not 10 <= getattr(config, name) <= config.max_positions:
            refuse(name, f"10 to max_positions, {config.max_positions}")
    if config.tokens_per_batch < config.max_length:
        refuse("tokens_per_batch", f"at least max_length, {config.max_length}")
    if not 0 < config.mask_rate < 1:
        refuse("mask_rate", "a number between 0 and 1")
    if not 0 <= config.exponent <= 1:
        refuse("exponent", "a number from 0 (languages alike) to 1 (as they are)")
    for name in ("lr", "initializer_range", "lr_discriminator", "lr_generator"):
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            refuse(name, "a finite number of at least 0")
    if not 0 <= config.final_lr <= 1:
        refuse("final_lr", "a share of lr, 0 to 1")
    if config.saved_dropout < 0 or config.saved_dropout >= 1:
        refuse("saved_dropout", "a number in [0, 1)")
    if not 0 <= config.dropout < 1:
        refuse("dropout", "a number in [0, 1)")
    if config.adversary not in ("none", "source", "all"):
        refuse("adversary", "'none', 'source' or 'all'")
    if config.saved_precision not in ("fp32", "bf16"):
        refuse("saved_precision", "'fp32' or 'bf16'")
    # The settings that a finetuning run has too must satisfy the same rules.
    FinetuneConfig(
        steps=config.steps,
        max_length=config.max_length,
        lr_task=config.lr,
        lr_discriminator=config.lr_discriminator,
        lr_generator=config.lr_generator,
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        nonfinite_gradients=config.nonfinite_gradients,
        precision=config.precision,
        seed=config.seed,
    )


FIELDS = tuple(field.name for field in dataclasses.fields(PretrainConfig))
