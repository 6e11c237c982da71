"""The systems that step_time.py compares.

Another baseline is one more class with the methods of `System`, and a place in `SYSTEMS`.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from step_batches import StepDraws
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastadv import AdversarialFinetuner
from fastadv.config import ResolvedConfig, Task
from fastadv.encoder import set_dropout
from fastadv.packing import IGNORE_INDEX, PackedBatch
from fastadv.precision import autocast_dtype
from fastadv.reference import PaddedBatch, ReferenceFinetuner

# Loss and gradients of a phase, by parameter name.
Phase = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Setup:
    """What every system starts from.

    Attributes:
        encoder: Copied by each system.
        task_head, discriminator: Linear layers, copied too.
        config: Rates, precision ("bf16" or "fp32") and dropout (None for the encoder's own).
    """

    encoder: PreTrainedModel
    task_head: nn.Linear
    discriminator: nn.Linear
    tokenizer: Any
    task: Task
    labels: tuple[str, ...]
    config: ResolvedConfig
    device: torch.device

    def with_config(self, **changes: Any) -> Setup:
        """The same with other settings."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))


class System(Protocol):
    """A way to run Algorithm 1."""

    name: ClassVar[str]
    what: ClassVar[str]

    def __init__(self, setup: Setup) -> None: ...

    def prepare(self, draws: StepDraws) -> Any:
        """The draws as this system reads them, on the device; not timed."""

    def step(self, batches: Any) -> object:
        """T, D and G with their updates; what is timed."""

    def gradients(self, batches: Any) -> dict[str, Phase]:
        """The phases without the updates, every gradient under its name in `weights`."""

    def weights(self) -> dict[str, Tensor]:
        """encoder.<Hugging Face's name>, task_head.* and discriminator.*."""


class Library:
    """AdversarialFinetuner."""

    name: ClassVar[str] = "library"
    what: ClassVar[str] = "AdversarialFinetuner"

    def __init__(self, setup: Setup) -> None:
        self._tuner = AdversarialFinetuner(
            copy.deepcopy(setup.encoder),
            setup.task,
            setup.labels,
            setup.config,
            tokenizer=setup.tokenizer,
            device=setup.device,
        )
        self._model = self._tuner.model.train()
        self._model.task_head.load_state_dict(setup.task_head.state_dict())
        self._model.discriminator.load_state_dict(setup.discriminator.state_dict())

    def prepare(self, draws: StepDraws) -> tuple[PackedBatch, ...]:
        return tuple(batch.to(self._tuner.device) for batch in draws.packed())

    def step(self, batches: tuple[PackedBatch, ...]) -> object:
        # As `fit` does it: losses stay on the device.
        return self._tuner.trainer.step(*batches)

    def gradients(self, batches: tuple[PackedBatch, ...]) -> dict[str, Phase]:
        trainer = self._tuner.trainer
        loss_task, task = trainer.task_gradients(batches[0])
        loss_d, _, discriminator = trainer.discriminator_gradients(batches[1])
        loss_g, generator = trainer.generator_gradients(batches[2])
        return {
            "task": (loss_task, self._named("task", task)),
            "discriminator": (loss_d, self._named("discriminator", discriminator)),
            "generator": (loss_g, self._named("generator", generator)),
        }

    def weights(self) -> dict[str, Tensor]:
        return {_plain(n): p.detach() for n, p in self._model.named_parameters()}

    def _named(self, phase: str, gradients: Any) -> dict[str, Tensor]:
        names = map(_plain, self._tuner.trainer.optimizers[phase].names)
        return {n: g for n, g in zip(names, gradients, strict=True) if g is not None}


def _plain(name: str) -> str:
    return name.replace("encoder.model.", "encoder.", 1)


class Padded:
    """B0: transformers, padded to the longest, autocast, plain Adam, every phase in full."""

    name: ClassVar[str] = "B0"
    what: ClassVar[str] = "transformers, padded, autocast, plain Adam"

    def __init__(self, setup: Setup) -> None:
        encoder, config = copy.deepcopy(setup.encoder), setup.config
        # As in the library: the pooler is not run, and not trained.
        encoder.pooler = None  # type: ignore[assignment]
        if config.dropout is not None:
            set_dropout(encoder, encoder.config, config.dropout)
        self._device = setup.device
        self._reference = ReferenceFinetuner(
            encoder.train().to(device=setup.device),
            copy.deepcopy(setup.task_head).to(setup.device),
            copy.deepcopy(setup.discriminator).to(setup.device),
            task=setup.task,
            lr_task=config.lr_task,
            lr_discriminator=config.lr_discriminator,
            lr_generator=config.lr_generator,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            autocast=autocast_dtype(config.precision),
        )

    def prepare(self, draws: StepDraws) -> tuple[Any, ...]:
        labeled, *sides = (_padded(part.to(self._device)) for part in draws.parts())
        return labeled, tuple(sides[:2]), tuple(sides[2:])

    def step(self, batches: tuple[Any, ...]) -> object:
        return self._reference.step(*batches)

    def gradients(self, batches: tuple[Any, ...]) -> dict[str, Phase]:
        labeled, draw_d, draw_g = batches
        reference = self._reference
        return {
            "task": self._phase(reference.task_loss(labeled), ("encoder.", "task_head.")),
            "discriminator": self._phase(
                reference.discriminator_loss(*draw_d), ("discriminator.",)
            ),
            "generator": self._phase(reference.generator_loss(*draw_g), ("encoder.",)),
        }

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self._parameters().items()}

    def _parameters(self) -> dict[str, nn.Parameter]:
        reference = self._reference
        modules = {
            "encoder": reference.encoder,
            "task_head": reference.task_head,
            "discriminator": reference.discriminator,
        }
        return {
            f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()
        }

    def _phase(self, loss: Tensor, owned: tuple[str, ...]) -> Phase:
        named = {n: p for n, p in self._parameters().items() if n.startswith(owned)}
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return loss.detach(), {n: g for n, g in zip(named, found, strict=True) if g is not None}


SYSTEMS: tuple[type[System], ...] = (Library, Padded)


def _padded(batch: PackedBatch) -> PaddedBatch:
    ids, mask = batch.pad(0)
    labels = batch.labels
    if labels is not None and len(labels) == batch.num_tokens:
        words = torch.full_like(ids, IGNORE_INDEX)
        words.view(-1)[batch.padded_indices()] = labels
        labels = words
    return PaddedBatch(ids, mask, labels, batch.num_examples)
