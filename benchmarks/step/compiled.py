"""Baseline B1: what a careful user of transformers and PyTorch gets without new kernels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastadv.batches.packing import pack
from fastadv.reference import IGNORE_INDEX, PaddedBatch, mean_pool
from step.batches import Examples, StepDraws
from step.systems import PIECES, Padded, Setup, padded


@dataclass(frozen=True)
class Part:
    """Sequences of a phase that go through the encoder together.

    Attributes:
        batch: The padded batch, (B, L).
        targets: (B,) float32, 1 for English and -1 for other languages; None in T.
        shares: (B,) float32, the weight of each sequence's loss: one over the number of sequences
            of its side in the whole phase; None in T.
    """

    batch: PaddedBatch
    targets: Tensor | None = None
    shares: Tensor | None = None


class Compiled(Padded):
    """B1: transformers, padded, autocast, compiled, fused Adam, no encoder gradient in D.

    Batches are sorted by length as far as the draws, which are the same for all systems, allow: the
    two sides of D and of G are combined, sorted by length, and cut into a shorter and a longer
    half. So there is as much to launch as in B0, and less padding. T's batch stays whole: in halves
    it would write every gradient twice.

    torch.compile is applied to every layer of the encoder, to its embeddings and to the pooling,
    with symbolic shapes: one graph serves all layers and lengths. Compiling the encoder as a whole
    takes several times as long.
    """

    name: ClassVar[str] = "b1"
    what: ClassVar[str] = (
        "transformers, padded by length, autocast, compiled, fused Adam, D no grad"
    )
    # A backend of torch.compile; "eager" runs what was traced without a compiler.
    backend: ClassVar[str] = "inductor"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        # Graphs of an earlier instance would stay in memory, be tried first, and count towards the
        # limit beyond which PyTorch stops compiling.
        torch._dynamo.reset()
        reference = self._reference
        compile_regions(reference.encoder, self.backend)
        self._pool = torch.compile(mean_pool, dynamic=True, fullgraph=True, backend=self.backend)
        self._adams = {
            phase: torch.optim.Adam(
                [p for group in adam.param_groups for p in group["params"]],
                lr=adam.param_groups[0]["lr"],
                betas=adam.param_groups[0]["betas"],
                eps=adam.param_groups[0]["eps"],
                fused=True,
            )
            for phase, adam in super().optimizers().items()
        }

    def prepare(self, draws: StepDraws) -> Any:
        """The parts of T, of D and of G."""
        labeled = padded(pack(draws.labeled).to(self._device))
        return (
            [Part(labeled)],
            halves(draws.other_d, draws.english_d, self._device),
            halves(draws.other_g, draws.english_g, self._device),
        )

    def warm_up(self, batches: Any) -> None:
        """Compiles every graph that a step needs, with padding and without.

        The longer halves of news are often all of one length. transformers then passes on no mask,
        and layers have other graphs.
        """
        for last in (0, 1):
            self.gradients([[_padded_at_end(part, last) for part in phase] for phase in batches])

    def step(self, batches: Any) -> object:
        losses = {}
        for phase, parts in zip(PIECES[::2], batches, strict=True):
            losses[phase] = self.backward(phase, parts)
            self._adams[phase].step()
        return losses

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return dict(self._adams)

    def backward(self, phase: str, batch: Sequence[Part]) -> Tensor:
        """The loss of a phase; its gradients, and no others, are in `.grad`."""
        self.clear()
        losses = []
        for part in batch:
            loss = self._task_loss(part) if phase == "task" else self._side_loss(part, phase)
            # Part by part: gradients add up, and only one part's activations are held at a time.
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _task_loss(self, part: Part) -> Tensor:
        batch, head = part.batch, self._reference.task_head
        assert batch.labels is not None
        hidden = self._reference.hidden(batch)
        if self._task == "classification":
            return F.cross_entropy(head(self._pool(hidden, batch.attention_mask)), batch.labels)
        logits = head(hidden.to(head.weight.dtype)).flatten(0, 1)
        total = F.cross_entropy(
            logits, batch.labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return total / (batch.num_examples or len(batch.labels))

    def _side_loss(self, part: Part, phase: str) -> Tensor:
        assert part.targets is not None and part.shares is not None
        head, targets = self._reference.discriminator, part.targets
        if phase == "discriminator":
            with torch.no_grad():
                pooled = self._pooled(part.batch)
            logits = head(pooled).squeeze(-1)
        else:
            pooled, targets = self._pooled(part.batch), -targets
            logits = F.linear(pooled, head.weight.detach(), head.bias.detach()).squeeze(-1)
        return -(F.logsigmoid(targets * logits) * part.shares).sum()

    def _pooled(self, batch: PaddedBatch) -> Tensor:
        return self._pool(self._reference.hidden(batch), batch.attention_mask)


def halves(other: Examples, english: Examples, device: torch.device) -> list[Part]:
    """Both sides of a D or G draw, by length: the shorter half of the examples, then the longer."""
    sides = [(example, False) for example in other] + [(example, True) for example in english]
    sides.sort(key=lambda side: max(len(sequence.input_ids) for sequence in side[0]))
    # Every window of a long sentence counts as a sequence of its own, as in the other systems.
    counts = [sum(len(example) for example in side) for side in (other, english)]
    parts = []
    for chosen in (sides[: len(sides) // 2], sides[len(sides) // 2 :]):
        batch = pack([example for example, _ in chosen], english=[side for _, side in chosen])
        assert batch.english is not None
        shares = torch.tensor([1 / n for n in counts])[batch.english.long()]
        targets = batch.english.float() * 2 - 1
        parts.append(Part(padded(batch.to(device)), targets.to(device), shares.to(device)))
    return parts


def _padded_at_end(part: Part, last: int) -> Part:
    """The part with a mask of ones, except for `last` at the end of its first sequence."""
    mask = torch.ones_like(part.batch.attention_mask)
    mask[0, -1] = last
    return replace(part, batch=replace(part.batch, attention_mask=mask))


def compiler_missing(device: torch.device) -> str | None:
    """Why torch.compile cannot work for `device`, in words; None if nothing is known to be missing.

    A graph for a CPU is C++ that a compiler on the path turns into a library.
    """
    names = torch._inductor.config.cpp.cxx
    found = any(name and shutil.which(name) for name in names)
    if device.type == "cpu" and not found:
        wanted = " or ".join(name for name in names if name)
        return f"found no C++ compiler ({wanted}), expected one for torch.compile"
    return None


def graphs_compiled() -> int:
    """The number of graphs that torch.compile has made in this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compile_regions(encoder: nn.Module, backend: str = "inductor") -> None:
    """Compiles a transformers encoder in place, part by part, with symbolic shapes.

    The parts are the embeddings and every layer, found as the longest list of modules. From then
    on, PyTorch raises an error where it would otherwise stop compiling and run the rest as it is.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    layers = list(max(lists, key=len)) if lists else []
    embeddings = getattr(encoder, "embeddings", None)
    for region in [*([embeddings] if embeddings is not None else []), *layers]:
        region.compile(dynamic=True, fullgraph=True, backend=backend)
