"""Steps as CUDA graphs: one for the task's part and one for the languages', for each size of batch.

A graph is a recorded sequence of kernels with fixed addresses and fixed arguments. Batches are
copied to where it reads them; step counts, rates, seeds and scales are tensors that it reads anew.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fastadv.batches.buckets import Bucket, bucket_of, fill
from fastadv.batches.packing import PackedBatch
from fastadv.device import is_gpu, pins_memory
from fastadv.training.trainer import StepLosses, Trainer

# A size is captured when it comes up for the third time: before, its kernels are compiled, and
# sizes that hardly ever come are not worth a graph.
CAPTURE_AFTER = 2
# Graphs kept; the one that was not used for longest goes first.
LIMIT = 64

Part = Callable[[], Tensor]
BatchPart = Callable[[list[PackedBatch]], Tensor]


class Graph(Protocol):
    """Recorded work."""

    def replay(self) -> None:
        """Does it again, over the memory that it was recorded over."""


class Capture(Protocol):
    """How work is recorded."""

    def __call__(self, part: Part) -> tuple[Graph, Tensor]:
        """A graph of the part, not yet run, and where its result will be."""


class CudaCapture:
    """CUDA graphs that share one pool of memory: they run one after the other."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, part: Part) -> tuple[Graph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, which prepare batches, may allocate page-locked memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = part()
        return graph, result


@dataclass(frozen=True)
class HostBatches:
    """Batches of one part of a step, filled up, in host memory.

    Attributes:
        buckets: The sizes of the batches.
        buffer: All of them, one after the other, uint8; page-locked for a GPU.
    """

    buckets: tuple[Bucket, ...]
    buffer: Tensor

    def on(self, buffer: Tensor) -> list[PackedBatch]:
        """The batches in a copy of the buffer, on any device."""
        found, offset = [], 0
        for bucket in self.buckets:
            found.append(bucket.batch(buffer[offset : offset + bucket.size]))
            offset += bucket.size
        return found


@dataclass(frozen=True)
class HostStep:
    """What one step reads: T's batch, and D's and G's, or None without the adversary."""

    task: HostBatches
    languages: HostBatches | None


@dataclass
class _Slot:
    """Where batches of one size are read, and the graph that reads them."""

    buffer: Tensor
    seen: int = 0
    graph: Graph | None = None
    result: Tensor | None = None
    batches: list[PackedBatch] = field(default_factory=list)


class StepGraphs:
    """Runs a trainer's steps over filled-up batches, from graphs where there are any.

    Args:
        trainer: With updates that can be captured.
        capture: How parts are recorded; None for CUDA graphs, or, where there is no GPU, for none.
        after: Steps of a size before it is recorded.

    Attributes:
        captured: Graphs made so far.
    """

    def __init__(
        self, trainer: Trainer, capture: Capture | None = None, after: int = CAPTURE_AFTER
    ) -> None:
        encoder = trainer.model.encoder
        assert trainer.capturable
        assert encoder.architecture is not None and encoder.layouts is not None
        self._kind, self._layouts = encoder.architecture, encoder.layouts
        self.trainer, self._after = trainer, after
        self._device = next(trainer.model.parameters()).device
        if capture is None and is_gpu(self._device):
            capture = CudaCapture()
        self._capture = capture
        self._slots: OrderedDict[Any, _Slot] = OrderedDict()
        self._addresses: tuple[int, ...] = ()
        self.captured = 0

    def host_step(
        self,
        step: int,
        labeled: PackedBatch,
        discriminator_draw: PackedBatch | None = None,
        generator_draw: PackedBatch | None = None,
    ) -> HostStep:
        """What step number `step` (from 0) over batches on the CPU reads; on any thread."""
        languages = None
        if self.trainer.config.adversarial and discriminator_draw is not None:
            assert generator_draw is not None
            languages = self._host("languages", step, discriminator_draw, generator_draw)
        return HostStep(self._host("task", step, labeled), languages)

    def _host(self, encoder_pass: str, step: int, *batches: PackedBatch) -> HostBatches:
        kind = self._kind
        buckets = [bucket_of(batch, kind.max_length) for batch in batches]
        if len(buckets) == 2:
            # One size for both: as many graphs as sizes, and not as pairs of sizes.
            largest = {
                name: max(getattr(bucket, name) for bucket in buckets)
                for name in ("tokens", "sequences", "max_seqlen")
            }
            buckets = [replace(bucket, **largest) for bucket in buckets]
        size = sum(bucket.size for bucket in buckets)
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pins_memory(self._device))
        seed, offset = self.trainer.seed_of(encoder_pass, step), 0
        for bucket, batch in zip(buckets, batches, strict=True):
            fill(bucket, batch, seed, buffer[offset : offset + bucket.size], kind.padding_idx,
                 kind.position_padding_idx is not None)  # fmt: skip
            offset += bucket.size
        return HostBatches(tuple(buckets), buffer)

    def step(self, prepared: HostStep) -> StepLosses:
        """One iteration of Algorithm 1; `prepared` is of the trainer's next step. The losses are
        on the device, and stay what they are.
        """
        trainer = self.trainer
        trainer.model.train()
        trainer.reserve()
        self._check_addresses()
        # Weights that somebody else changed since: graphs read copies of them.
        self._layouts.refresh()
        task = self._run(prepared.task, self._task_part)
        losses = StepLosses(task[0])
        if prepared.languages is not None:
            found = self._run(prepared.languages, self._language_part)
            losses = StepLosses(task[0], *found.unbind())
        trainer.step_count += 1
        return losses

    def record(self, prepared: HostStep) -> None:
        """Makes the graphs that a step of this size needs, if they are not there. Nothing is
        trained; only rows of the word table that wait for updates may get them earlier.
        """
        self.trainer.model.train()
        self._check_addresses()
        self._layouts.refresh()
        parts = ((prepared.task, self._task_part), (prepared.languages, self._language_part))
        with ExitStack() as stack:
            for optimizer in self.trainer.optimizers.values():
                stack.enter_context(optimizer.paused())
            for batches, part in parts:
                if batches is not None and self._capture is not None:
                    slot = self._slot(batches)
                    if slot.graph is None:
                        slot.buffer.copy_(batches.buffer, non_blocking=True)
                        # Kernels are compiled and loaded before, since a capture allows neither.
                        part(slot.batches)
                        self._record(slot, part)

    def _record(self, slot: _Slot, part: BatchPart) -> None:
        assert self._capture is not None
        slot.graph, slot.result = self._capture(lambda: part(slot.batches))
        self.captured += 1

    def _task_part(self, batches: list[PackedBatch]) -> Tensor:
        return self.trainer.task_step(batches[0]).float().reshape(1)

    def _language_part(self, batches: list[PackedBatch]) -> Tensor:
        found = self.trainer.language_step(*batches)
        names = ("discriminator", "generator", "discriminator_accuracy")
        return torch.stack([found[name].float() for name in names])

    def _run(self, prepared: HostBatches, part: BatchPart) -> Tensor:
        slot = self._slot(prepared)
        slot.buffer.copy_(prepared.buffer, non_blocking=True)
        if slot.graph is None:
            slot.seen += 1
            if self._capture is None or slot.seen <= self._after:
                return part(slot.batches)
            self._record(slot, part)
        assert slot.graph is not None and slot.result is not None
        slot.graph.replay()
        # The next graph writes over it.
        return slot.result.clone()

    def _slot(self, prepared: HostBatches) -> _Slot:
        key = prepared.buckets
        if key in self._slots:
            self._slots.move_to_end(key)
            return self._slots[key]
        buffer = torch.empty_like(prepared.buffer, device=self._device, pin_memory=False)
        slot = self._slots[key] = _Slot(buffer, batches=prepared.on(buffer))
        if len(self._slots) > LIMIT:
            self._slots.popitem(last=False)
        return slot

    def _check_addresses(self) -> None:
        """Graphs of a model that was elsewhere are dropped."""
        here = tuple(p.data_ptr() for p in self.trainer.model.parameters())
        if self._addresses != here:
            self._slots.clear()
            self._addresses = here


def why_no_graphs(trainer: Trainer) -> str | None:
    """Why steps are not captured; None if they can be."""
    if not trainer.config.cuda_graphs:
        return "the configuration says cuda_graphs=False"
    if not trainer.capturable:
        return "updates are decided on the host"
    if trainer.config.head_dropout:
        return "head dropout is drawn from PyTorch's own generator"
    return None


def say_why(reason: str) -> None:
    """Once a run, where a GPU could have had graphs."""
    logging.getLogger("fastadv").info("steps run without CUDA graphs: %s", reason)
