"""How far Adam's arithmetic strays from float64, on the rows that real text reads.

Two Adams, T and G, take turns over one embedding table at the paper's rates, 2e-6 and 2e-8. Their
batches are real paragraphs. The gradients of the rows in a batch are random, with scales from 1e-3
down to 1e-9, where Adam's eps decides. Weights start near 0.9 (like layer-norm gains), near 0.3 and
near 0.04. Each system ends with a displacement from the start. Its error is the norm of the
difference from the displacement of two dense `torch.optim.Adam` in float64, relative to the norm of
the latter, over all rows that were ever read.

python benchmarks/optimiser_error.py --data DIR --plot FILE.png --json FILE.json
"""

from __future__ import annotations

import argparse
import copy
import json
import lzma
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step.batches import make_tokenizer
from torch import Tensor
from torch.nn.parameter import Parameter

from fastadv.ops.adam import adam
from fastadv.optim.host_embedding import HostEmbedding
from fastadv.weights.compensations import Compensations

RATES = (2e-6, 2e-8)
BETAS, EPS = (0.9, 0.999), 1e-8
WEIGHTS = (0.9, 0.3, 0.04)
SCALES = (1e-3, 1e-5, 1e-7, 1e-9)
# Columns for each pair of a weight and a gradient's scale.
REPEATS = 2
BATCH, LONGEST = 16, 128

COLUMNS = [(w, s) for w in WEIGHTS for s in SCALES for _ in range(REPEATS)]
GROUPS: dict[str, list[int]] = {
    f"weights near {weight}": [i for i, (w, s) in enumerate(COLUMNS) if w == weight and s > 1e-9]
    for weight in WEIGHTS
} | {"gradients near 1e-9": [i for i, (_, s) in enumerate(COLUMNS) if s == 1e-9]}


@dataclass
class Event:
    """One optimiser's step: which (T is 0, G is 1), on which ascending rows, with which
    gradients."""

    owner: int
    rows: Tensor
    grads: Tensor


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all systems over the same steps; returns 0, or 2 if it cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="with text/LANG.txt.xz and mbert_vocab/vocab.txt")  # fmt: skip
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        report = measure(options.data, options.steps, options.seed)
    except (ValueError, OSError) as error:
        print(f"optimiser_error.py: {error}", file=sys.stderr)
        return 2
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(report, options.plot)
    return 0


def batches(data: Path, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For every iteration the ids of T's batch, English, and of G's, English and all others."""
    tokenizer = make_tokenizer(None, data)
    languages = sorted(p.name.removesuffix(".txt.xz") for p in (data / "text").glob("*.txt.xz"))
    others = [language for language in languages if language != "en"]
    if "en" not in languages or not others:
        raise ValueError(f"{data}/text: found {languages}, expected en and others, LANG.txt.xz")
    texts = {language: paragraphs(data / "text" / f"{language}.txt.xz") for language in languages}
    for step in range(steps):
        english = [next(texts["en"]) for _ in range(2 * BATCH)]
        other = [next(texts[others[(step + i) % len(others)]]) for i in range(BATCH)]
        both = english[BATCH:] + other
        found = tokenizer(english[:BATCH] + both, truncation=True, max_length=LONGEST)["input_ids"]
        yield tuple(np.unique(np.concatenate(part)) for part in (found[:BATCH], found[BATCH:]))


def paragraphs(path: Path) -> Iterator[str]:
    """The file's lines, starting again at its end."""
    while True:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            yield from (line.strip() for line in file if line.strip())


class System:
    """A way to take the steps; `value` is the exact table, and reading it changes nothing."""

    def step(self, event: Event, lr: float) -> None: ...

    def value(self) -> Tensor: ...


class TorchAdam(System):
    """`torch.optim.Adam`, dense."""

    def __init__(self, start: Tensor, dtype: torch.dtype) -> None:
        self.table = Parameter(start.to(dtype, copy=True))
        self.adams = [torch.optim.Adam([self.table], betas=BETAS, eps=EPS) for _ in RATES]

    def step(self, event: Event, lr: float) -> None:
        self.table.grad = torch.zeros_like(self.table)
        self.table.grad[event.rows] = event.grads.to(self.table.dtype)
        self.adams[event.owner].param_groups[0]["lr"] = lr
        self.adams[event.owner].step()

    def value(self) -> Tensor:
        return self.table.detach().double().clone()


class Dense(System):
    """`fastadv.ops.adam` on every row."""

    def __init__(self, start: Tensor) -> None:
        self.table = start.float()
        self.compensation = torch.zeros_like(self.table, dtype=torch.bfloat16)
        self.moments = [(torch.zeros_like(self.table), torch.zeros_like(self.table)) for _ in RATES]
        self.steps = [0 for _ in RATES]

    def step(self, event: Event, lr: float) -> None:
        grad = torch.zeros_like(self.table)
        grad[event.rows] = event.grads.float()
        self.steps[event.owner] += 1
        exp_avg, exp_avg_sq = self.moments[event.owner]
        adam([self.table], [self.compensation], [grad], [exp_avg], [exp_avg_sq],
             [self.steps[event.owner]], lr=lr, beta1=BETAS[0], beta2=BETAS[1], eps=EPS)  # fmt: skip

    def value(self) -> Tensor:
        return self.table.double() + self.compensation.double()


class HighAndLow(Dense):
    """The same with weights as bfloat16 and a float32 remainder, another way to get 33 bits."""

    def __init__(self, start: Tensor) -> None:
        super().__init__(start)
        self.high = start.to(torch.bfloat16)
        self.low = (start - self.high.double()).float()

    def step(self, event: Event, lr: float) -> None:
        # With a weight of zero, the step is the displacement itself.
        self.table.zero_()
        self.compensation.zero_()
        super().step(event, lr)
        low = self.low + self.table
        whole = self.high.double() + low.double()
        self.high = whole.to(torch.bfloat16)
        self.low = (whole - self.high.double()).float()

    def value(self) -> Tensor:
        return self.high.double() + self.low.double()


class Deferred(System):
    """`HostEmbedding`: rows catch up when they are read."""

    def __init__(self, start: Tensor) -> None:
        table = Parameter(start.float())
        self.deferral = HostEmbedding(table, Compensations().of(table), None)
        self.owners = [self.deferral.add_owner(BETAS, EPS) for _ in RATES]

    def step(self, event: Event, lr: float) -> None:
        shape = self.deferral.table.shape
        grad = torch.sparse_coo_tensor(event.rows[None], event.grads.float(), shape,
                                       is_coalesced=True, check_invariants=False)  # fmt: skip
        self.deferral.update(self.owners[event.owner], grad, lr)

    def value(self) -> Tensor:
        twin = copy.deepcopy(self.deferral)
        twin.flush()
        assert twin.compensation is not None
        return twin.table.detach().double() + twin.compensation.double()


SYSTEMS: dict[str, Callable[[Tensor], System]] = {
    "torch float32": lambda start: TorchAdam(start, torch.float32),
    "dense": Dense,
    "dense, bfloat16 + float32": HighAndLow,
    "deferred": Deferred,
}


def measure(data: Path, steps: int, seed: int) -> dict[str, Any]:
    """Errors by system and group at some of the steps."""
    drawn = list(batches(data, steps))
    # Rows that no batch reads never move, in any system.
    ids = np.unique(np.concatenate([part for pair in drawn for part in pair]))
    generator = torch.Generator().manual_seed(seed)
    level = torch.tensor([w for w, _ in COLUMNS], dtype=torch.float64)
    scale = torch.tensor([s for _, s in COLUMNS], dtype=torch.float64)
    spread = torch.randn(len(ids), len(COLUMNS), generator=generator, dtype=torch.float64)
    start = (level * (1 + 0.05 * spread)).float().double()
    oracle = TorchAdam(start, torch.float64)
    systems = {name: make(start) for name, make in SYSTEMS.items()}
    looks = sorted({round(x) for x in np.geomspace(1, steps, 16)})
    curves: dict[str, dict[str, list[float]]] = {n: {g: [] for g in GROUPS} for n in systems}
    for step, pair in enumerate(drawn, start=1):
        for owner, part in enumerate(pair):
            rows = torch.from_numpy(np.searchsorted(ids, part))
            noise = torch.randn(len(rows), len(COLUMNS), generator=generator, dtype=torch.float64)
            event = Event(owner, rows, (scale * noise).float().double())
            for system in (oracle, *systems.values()):
                system.step(event, RATES[owner])
        if step in looks:
            moved = oracle.value() - start
            for name, system in systems.items():
                wrong = system.value() - start - moved
                for group, columns in GROUPS.items():
                    error = float(wrong[:, columns].norm() / moved[:, columns].norm())
                    curves[name][group].append(error)
    counts = np.bincount(np.concatenate([np.searchsorted(ids, p) for pair in drawn for p in pair]))
    return {
        "steps": looks,
        "errors": curves,
        "rows": len(ids),
        "rows_read_once": int((counts == 1).sum()),
        "rows_a_batch": float(np.mean([len(p) for pair in drawn for p in pair])),
        "seed": seed,
    }


def print_report(report: dict[str, Any]) -> None:
    """The last step's errors."""
    print(
        f"{report['steps'][-1]} steps of T and of G, {report['rows']} rows read, "
        f"{report['rows_read_once']} of them once, {report['rows_a_batch']:.0f} rows a batch"
    )
    print(f"{'displacement error':26}" + "".join(f"{group:>22}" for group in GROUPS))
    for name, groups in report["errors"].items():
        print(f"{name:26}" + "".join(f"{groups[group][-1]:22.2e}" for group in GROUPS))


def plot(report: dict[str, Any], path: Path) -> None:
    """Errors over steps, one panel per group."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = ["weights near 0.9", "weights near 0.04", "gradients near 1e-9"]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(11, 3.6), sharey=True)
    styles = {"torch float32": "o-", "dense": "s--", "deferred": "^-"}
    for panel, group in zip(axes, shown, strict=True):
        for name, style in styles.items():
            panel.loglog(report["steps"], report["errors"][name][group], style, ms=4, label=name)
        panel.set_title(group)
        panel.set_xlabel("steps of T and of G")
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("error of the displacement, relative")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
