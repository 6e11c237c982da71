"""Times the two optimisers over θ, T's and G's, with all handling of the word table's gradient.

Ours is what a step does between its passes: rows catch up before they are read, gradients are
checked, both updates run, and the layouts for the matrix products are rewritten. The baseline is
two fused `torch.optim.Adam` over the same weights. They need a dense gradient of the table, zeros
plus the rows that were read: either in new memory, as in a backward pass without a pool, or in a
buffer that is kept. All get the same gradients of the same batches; they take turns, and which one
goes first changes.

Last, ours runs in a thread next to the gradients of both passes, and after them: the difference is
what could be hidden by updating a layer while the rest of the backward pass runs.

python benchmarks/optimiser_time.py --data DIR
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from step.batches import SHAPES, DrawnTexts, real_texts
from step.batches import make_tokenizer as tokenizer_of
from step.machine import copy_bandwidth, describe, seconds, versions
from step.models import MODEL_SIZES, make_encoder, make_setup
from step.systems import Library
from torch import Tensor

from fastadv.batches.packing import PackedBatch
from fastadv.training.trainer import Gradients, Trainer

OURS, BARE = "ours", "ours, no layouts"
FUSED, KEPT, PACKED = "torch fused", "torch, buffer kept", "torch kept, layouts"
CPU = torch.device("cpu")
Batches = tuple[PackedBatch, ...]
# Gradients of a phase, and the sums of squares computed with them.
Known = tuple[Gradients, dict[str, Tensor]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every shape; returns 0, or 2 if it cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*SHAPES, "both"], default="both")
    parser.add_argument("--model-size", choices=list(MODEL_SIZES), default="mbert")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--data", type=Path, metavar="DIR", help="as step_time.py takes it")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        names = list(SHAPES) if options.shape == "both" else [options.shape]
        reports = [measure(name, options) for name in names]
    except (ValueError, RuntimeError, OSError) as error:
        print(f"optimiser_time.py: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n")
    return 0


class Fused:
    """Two PyTorch Adams over a copy of the trainer's weights."""

    def __init__(self, trainer: Trainer) -> None:
        self._names = {phase: trainer.optimizers[phase].names for phase in ("task", "generator")}
        named = {n: p for phase in self._names for n, p in parameters(trainer, phase).items()}
        self._weights = {n: torch.nn.Parameter(p.detach().clone()) for n, p in named.items()}
        self._adams = {
            phase: torch.optim.Adam([self._weights[n] for n in names], lr=1e-6, fused=True)
            for phase, names in self._names.items()
        }

    def update(self, phase: str, gradients: Gradients, buffer: Tensor | None) -> None:
        for name, gradient in zip(self._names[phase], gradients, strict=True):
            assert gradient is not None
            whole = dense(gradient, buffer) if gradient.is_sparse else gradient
            self._weights[name].grad = whole
        self._adams[phase].step()
        for name in self._names[phase]:
            self._weights[name].grad = None

    def pack(self) -> None:
        """The layouts that the matrix products read, of every matrix."""
        for name, weight in self._weights.items():
            if is_matrix(name, weight):
                torch.ops.fastadv.linear_pack(weight.detach(), torch.bfloat16)


def parameters(trainer: Trainer, phase: str) -> dict[str, Tensor]:
    """A phase's weights by name."""
    optimizer = trainer.optimizers[phase]
    return dict(zip(optimizer.names, optimizer.parameters, strict=True))


def is_matrix(name: str, weight: Tensor) -> bool:
    return name.startswith("encoder.layers") and weight.dim() == 2


def dense(gradient: Tensor, buffer: Tensor | None) -> Tensor:
    """A gradient over all rows, as a backward pass writes it that does not know which were read."""
    whole = torch.zeros(gradient.shape) if buffer is None else buffer.zero_()
    return whole.index_add_(0, gradient._indices()[0], gradient._values())


def ours(trainer: Trainer, batches: Batches, gradients: dict[str, Known]) -> None:
    """Both updates, and the rows' catching up before the passes that they follow."""
    table = trainer.deferred
    assert table is not None
    for phase, drawn in (("task", batches[:1]), ("generator", batches[1:])):
        for batch in drawn:
            assert batch.rows is not None
            table.catch_up(batch.rows)
        trainer.optimizers[phase].step(*gradients[phase])


def gradients_of(trainer: Trainer, batches: Batches) -> dict[str, Known]:
    """The gradients of T and of G, both at the current weights."""
    trainer.model.train()
    task = trainer.task_gradients(batches[0])[-1], trainer.squares()
    _, pooled = trainer.pooled_draws(batches[1], batches[2])
    generator = trainer.generator_gradients(batches[2], pooled)[-1], trainer.squares()
    return {"task": task, "generator": generator}


def hidden(trainer: Trainer, batches: Batches, gradients: dict[str, Known]) -> tuple[float, float]:
    """Seconds of gradients and then updates, and of both at once, on unrelated numbers."""
    first, second = trainer.optimizers["task"], trainer.optimizers["generator"]
    names = [i for i, name in enumerate(first.names) if name.startswith("encoder.layers")]
    twins = [torch.nn.Parameter(first.parameters[i].detach().clone()) for i in names]
    adam = type(first)(((first.names[i], p) for i, p in zip(names, twins, strict=True)), lr=1e-6)
    parts = [
        [dict(zip(o.names, gradients[phase][0], strict=True))[first.names[i]] for i in names]
        for phase, o in (("task", first), ("generator", second))
    ]

    def update() -> None:
        for part in parts:
            adam.step(part)

    update()
    after = seconds(lambda: (gradients_of(trainer, batches), update()), CPU)

    def both() -> None:
        thread = threading.Thread(target=update)
        thread.start()
        gradients_of(trainer, batches)
        thread.join()

    both()
    return after, seconds(both, CPU)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians for one shape."""
    tokenizer, shape = tokenizer_of(None, options.data), SHAPES[name]
    encoder = make_encoder(options.model_size, None, len(tokenizer))
    setup = make_setup(encoder, tokenizer, shape, CPU, "auto", None)
    texts = (
        DrawnTexts(shape, encoder.config.vocab_size, 0)
        if options.data is None
        else real_texts(options.data, shape, tokenizer, 0)
    )
    library = Library(setup)
    trainer = library._tuner.trainer
    fused = Fused(trainer)
    layouts = trainer.optimizers["task"]._layouts
    times: dict[str, list[float]] = {n: [] for n in (OURS, BARE, FUSED, KEPT, PACKED)}
    buffer = torch.zeros(encoder.config.vocab_size, encoder.config.hidden_size)
    beside: list[tuple[float, float]] = []
    steps: list[float] = []
    for number in range(options.steps + 1):
        prepared = library.prepare(texts.step(options.batch_size))
        steps.append(seconds(lambda prepared=prepared: library.step(prepared), CPU))
        batches = prepared.packed
        found = gradients_of(trainer, batches)

        def work(system: str, batches: Batches = batches, found: Any = found) -> None:
            if system in (FUSED, KEPT, PACKED):
                for phase, gradients in found.items():
                    fused.update(phase, gradients[0], None if system == FUSED else buffer)
                    if system == PACKED:
                        fused.pack()
                return
            ours(trainer, batches, found)

        order = list(times)[number % 5 :] + list(times)[: number % 5]
        for system in order:
            for phase in found:
                trainer.optimizers[phase]._layouts = layouts if system == OURS else None
            if system == OURS:
                # Otherwise layouts that another turn left behind would not be rewritten.
                for weight in list(layouts._made):
                    layouts.rewritten(weight)
            taken = seconds(lambda system=system: work(system), CPU)
            if number:
                times[system].append(taken)
        for phase in found:
            trainer.optimizers[phase]._layouts = layouts
        if number:
            beside.append(hidden(trainer, batches, found))
    return report(name, trainer, times, steps[1:], copy_bandwidth(CPU), beside)


def moved_bytes(trainer: Trainer, layouts: bool) -> int:
    """What both updates must move, without the table: 4 for the gradient, 16 for the moments, 12
    for weight and compensation, and 4 for both layouts of a matrix.
    """
    total = 0
    for phase in ("task", "generator"):
        for name, parameter in parameters(trainer, phase).items():
            if name != "encoder.embeddings.word.weight":
                packed = layouts and is_matrix(name, parameter)
                total += parameter.numel() * (36 if packed else 32)
    return total


def report(
    name: str,
    trainer: Trainer,
    times: dict[str, list[float]],
    steps: list[float],
    copied: float,
    beside: list[tuple[float, float]],
) -> dict[str, Any]:
    """Prints the numbers and returns them."""
    step = statistics.median(steps)
    result: dict[str, Any] = {
        "shape": name,
        "machine": describe(CPU),
        "versions": versions(CPU),
        "seconds": times,
        "step_seconds": steps,
        "copy_bytes_per_second": copied,
        "after_and_beside_seconds": beside,
    }
    print(f"{name}: a step {step:.3g} s; a copy moves {copied / 1e9:.1f} GB/s")
    for system, taken in times.items():
        middle = statistics.median(taken)
        ratios = [f / t for f, t in zip(times[FUSED], taken, strict=True)]
        kept = statistics.median(f / t for f, t in zip(times[KEPT], taken, strict=True))
        packed = statistics.median(f / t for f, t in zip(times[PACKED], taken, strict=True))
        line = (
            f"  {system:20}{middle * 1e3:8.1f} ms ({min(taken) * 1e3:.1f} to "
            f"{max(taken) * 1e3:.1f})  {statistics.median(ratios):5.2f} times torch's speed "
            f"({min(ratios):.2f} to {max(ratios):.2f}), {kept:.2f} of its with the buffer kept, "
            f"{packed:.2f} with layouts too"
        )
        if system in (OURS, BARE):
            rate = moved_bytes(trainer, system == OURS) / middle
            line += f"  {rate / 1e9:.1f} GB/s, {rate / copied:.0%} of a copy's"
            result |= {f"{system} ratio": ratios, f"{system} bytes per second": rate}
        if system == OURS:
            line += f"  {middle / step:.1%} of a step"
        print(line)
    after, both = (statistics.median(column) for column in zip(*beside, strict=True))
    print(f"  gradients, then updates {after * 1e3:.0f} ms; at once {both * 1e3:.0f} ms")
    return result


if __name__ == "__main__":
    sys.exit(main())
