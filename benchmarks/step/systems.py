"""The systems that step_time.py compares, except for the compiled one (step/compiled.py).

Another baseline is one more class with the methods of `System`, and an entry in `SYSTEMS` there.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastadv import AdversarialFinetuner
from fastadv.batches.packing import IGNORE_INDEX, PackedBatch
from fastadv.config import ResolvedConfig, TaskName
from fastadv.device import autocast_dtype
from fastadv.model_io.loading import set_dropout
from fastadv.reference import PaddedBatch, ReferenceFinetuner
from fastadv.training.step_graphs import HostStep, StepGraphs, why_no_graphs
from step.batches import StepDraws

# Loss and gradients of a phase, by parameter name.
Phase = tuple[Tensor, dict[str, Tensor]]
# A part of a step: its name in PIECES, and the work.
Piece = tuple[str, Callable[[], object]]

# For each phase the loss and its gradients, then the optimiser's update, in Algorithm 1's order.
PIECES = (
    "task",
    "task_update",
    "discriminator",
    "discriminator_update",
    "generator",
    "generator_update",
)


@dataclass(frozen=True)
class Setup:
    """What every system starts from.

    Attributes:
        encoder: The encoder, which each system copies.
        task_head, discriminator: Linear layers, also copied.
        config: Rates, backend, precision ("bf16" or "fp32") and dropout (None for the encoder's
            own).
    """

    encoder: PreTrainedModel
    task_head: nn.Linear
    discriminator: nn.Linear
    tokenizer: Any
    task: TaskName
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

    def warm_up(self, batches: Any) -> None:
        """Does what is done once for all steps, such as compiling. Its time and its memory are not
        counted for a step. Weights stay as they are.
        """

    def step(self, batches: Any) -> object:
        """T, D and G with their updates; this is timed."""

    def pieces(self, batches: Any) -> list[Piece]:
        """The same step as the parts in `PIECES`, to be run in this order."""

    def clear(self) -> None:
        """Drops the gradients of the last step; not timed, since the next step would do it."""

    def gradients(self, batches: Any) -> dict[str, Phase]:
        """The phases without the updates; every gradient has its name in `weights`."""

    def weights(self) -> dict[str, Tensor]:
        """The weights: encoder.<Hugging Face's name>, task_head.* and discriminator.*."""


@dataclass(frozen=True)
class Prepared:
    """T's, D's and G's batches on the device and, where steps are graphs, in host memory."""

    packed: tuple[PackedBatch, ...]
    host_step: HostStep | None


class Library:
    """AdversarialFinetuner; on a GPU its steps are CUDA graphs."""

    name: ClassVar[str] = "library"
    what: ClassVar[str] = "AdversarialFinetuner"
    # The most memory that making a graph used at once: a replay allocates none of it.
    graph_bytes: ClassVar[int] = 0

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
        trainer = self._tuner.trainer
        gpu = setup.device.type == "cuda" and why_no_graphs(trainer) is None
        self._graphs = StepGraphs(trainer, after=0) if gpu else None

    def prepare(self, draws: StepDraws) -> Prepared:
        """The batches on the device; for graphs also in host memory, as they read them.

        In `fit` a thread does it. A new size is recorded now, as in B2; nothing is trained.
        """
        packed = draws.packed()
        host_step = None
        if self._graphs is not None:
            trainer = self._tuner.trainer
            host_step = self._graphs.host_step(trainer.step_count, *packed)
            device = self._tuner.device
            held = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._graphs.record(host_step)
            used = torch.cuda.max_memory_allocated(device) - held
            Library.graph_bytes = max(Library.graph_bytes, used)
        return Prepared(tuple(b.to(self._tuner.device) for b in packed), host_step)

    def warm_up(self, batches: Prepared) -> None:
        pass

    def step(self, batches: Prepared) -> object:
        # As in `fit`: losses stay on the device.
        if self._graphs is not None and batches.host_step is not None:
            return self._graphs.step(batches.host_step)
        return self._tuner.trainer.step(*batches.packed)

    def pieces(self, batches: Prepared) -> list[Piece]:
        trainer, packed = self._tuner.trainer, batches.packed
        trainer.reserve()
        found: dict[str, Any] = {}

        def gradients(phase: str, batch: PackedBatch) -> None:
            if phase == "discriminator":
                # One encoder pass for D and G; its time counts as D's.
                found["pooled"] = trainer.pooled_draws(batch, packed[2])
                found[phase] = trainer.discriminator_gradients(batch, found["pooled"][0])[-1]
            elif phase == "generator":
                found[phase] = trainer.generator_gradients(batch, found.pop("pooled")[1])[-1]
            else:
                found[phase] = trainer.task_gradients(batch)[-1]

        def update(phase: str) -> None:
            known = {} if phase == "discriminator" else trainer.squares()
            trainer.optimizers[phase].step(found.pop(phase), known)
            # The count picks the dropout masks of the next step.
            trainer.step_count += phase == "generator"

        return pieces_of(gradients, update, packed)

    def clear(self) -> None:
        pass

    def gradients(self, batches: Prepared) -> dict[str, Phase]:
        trainer, (labeled, draw_d, draw_g) = self._tuner.trainer, batches.packed
        loss_task, task = trainer.task_gradients(labeled)
        pooled_d, pooled_g = trainer.pooled_draws(draw_d, draw_g)
        loss_d, _, discriminator = trainer.discriminator_gradients(draw_d, pooled_d)
        loss_g, generator = trainer.generator_gradients(draw_g, pooled_g)
        return {
            "task": (loss_task, self._named("task", task)),
            "discriminator": (loss_d, self._named("discriminator", discriminator)),
            "generator": (loss_g, self._named("generator", generator)),
        }

    def weights(self) -> dict[str, Tensor]:
        self._tuner.trainer.flush()
        return self._plain({n: p.detach() for n, p in self._model.named_parameters()})

    def _named(self, phase: str, gradients: Any) -> dict[str, Tensor]:
        names = self._tuner.trainer.optimizers[phase].names
        # The word table's gradient is sparse.
        found = zip(names, gradients, strict=True)
        return self._plain({n: g.to_dense() for n, g in found if g is not None})

    def _plain(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's tensors under transformers' names."""
        start = "encoder."
        ours = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        theirs = self._model.encoder.to_huggingface(ours)
        others = {n: t for n, t in tensors.items() if not n.startswith(start)}
        return {f"{start}{n}": t for n, t in theirs.items()} | others


def pieces_of(
    gradients: Callable[[str, Any], None], update: Callable[[str], None], batches: tuple[Any, ...]
) -> list[Piece]:
    """`gradients(phase, batch)` and `update(phase)` under the names in `PIECES`."""
    found: list[Piece] = []
    for phase, batch in zip(PIECES[::2], batches, strict=True):
        found.append((phase, lambda phase=phase, batch=batch: gradients(phase, batch)))  # type: ignore[misc]
        found.append((f"{phase}_update", lambda phase=phase: update(phase)))  # type: ignore[misc]
    return found


class Padded:
    """B0: transformers, padded to the longest, autocast, plain Adam, every phase in full."""

    name: ClassVar[str] = "b0"
    what: ClassVar[str] = "transformers, padded, autocast, plain Adam"

    def __init__(self, setup: Setup) -> None:
        encoder, config = copy.deepcopy(setup.encoder), setup.config
        # As in the library, the pooler is neither run nor trained.
        encoder.pooler = None  # type: ignore[assignment]
        if config.dropout is not None:
            set_dropout(encoder, encoder.config, config.dropout)
        self._device, self._task = setup.device, setup.task
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

    def prepare(self, draws: StepDraws) -> Any:
        """(T batch, (D's other, D's English), (G's other, G's English)), as the reference reads."""
        labeled, *sides = (padded(part.to(self._device)) for part in draws.parts())
        return labeled, tuple(sides[:2]), tuple(sides[2:])

    def warm_up(self, batches: Any) -> None:
        pass

    def step(self, batches: Any) -> object:
        return self._reference.step(*batches)

    def pieces(self, batches: Any) -> list[Piece]:
        optimizers = self.optimizers()
        return pieces_of(self.backward, lambda phase: optimizers[phase].step(), batches)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The three optimisers, by phase."""
        reference = self._reference
        adams = (reference.adam_task, reference.adam_discriminator, reference.adam_generator)
        return dict(zip(PIECES[::2], adams, strict=True))

    def clear(self) -> None:
        for parameter in self._parameters().values():
            parameter.grad = None

    def backward(self, phase: str, batch: Any) -> Tensor:
        """The loss of a phase; its gradients, and no others, are in `.grad`."""
        reference = self._reference
        if phase == "task":
            loss = reference.task_loss(batch)
        elif phase == "discriminator":
            loss = reference.discriminator_loss(*batch)
        else:
            loss = reference.generator_loss(*batch)
        self.clear()
        loss.backward()
        return loss.detach()

    def gradients(self, batches: Any) -> dict[str, Phase]:
        owned = {
            "task": ("encoder.", "task_head."),
            "discriminator": ("discriminator.",),
            "generator": ("encoder.",),
        }
        found: dict[str, Phase] = {}
        for (phase, starts), batch in zip(owned.items(), batches, strict=True):
            loss = self.backward(phase, batch)
            named = {n: p.grad for n, p in self._parameters().items() if n.startswith(starts)}
            found[phase] = loss, {n: g for n, g in named.items() if g is not None}
        self.clear()
        return found

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


def padded(batch: PackedBatch) -> PaddedBatch:
    """The batch padded to its longest sequence, NER labels too."""
    ids, mask = batch.pad(0)
    labels = batch.labels
    if labels is not None and len(labels) == batch.num_tokens:
        words = torch.full_like(ids, IGNORE_INDEX)
        words.view(-1)[batch.padded_indices()] = labels
        labels = words
    return PaddedBatch(ids, mask, labels, batch.num_examples)
