"""How far estimated class shares are from the true ones, to set the thresholds of the estimate by.

Finetunes on English alone, and then compares with each language's true shares, in total variation:
the English shares, the unshrunk estimate, and the estimate as it is used. A case is a language's
text as it is, or one of 12 samples of it with other shares: those are drawn from a Dirichlet
distribution with 2 for each class, and are some 0.2 from equal ones in the mean. English dev is
a language too, cut in two by chance: shares of one are estimated with the other.

The grid then has other thresholds for the drop in confidence, from which the trust in an estimate
falls to nothing at the second: the mean over the cases of what the estimate would be with them.

Choose thresholds on languages that are in no table which the thresholds are to improve.

python benchmarks/class_shares/held_out.py --data DIR --languages nl,zh
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.nn.heads import AdversarialModel
from fastadv.run.observer import Tested
from fastadv.selection.target_signals import spread
from fastadv.shares import estimate
from fastadv.shares.estimate import estimate_shares, total_variation
from fastadv.tasks.registry import task_of

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]
Outputs = tuple[Floats, Classes]
"""p(Y | x), (N, K), of texts, and their classes, (N,)."""

SHIFTS = 12
CONCENTRATION = 2.0
SAMPLE = 500
"""Texts of a sample with other shares, at most: as many as a run reads."""
USED = (estimate.DROP_TRUSTED, estimate.DROP_DISTRUSTED)
ALL_TRUSTED = (9.0, 10.0)
"""A drop in confidence is at most 1: only what the estimate's own spread says counts then."""
GRID = ((0.02, 0.06), (0.02, 0.1), (0.05, 0.15), (0.1, 0.2), (0.1, 0.3), (0.2, 0.4), ALL_TRUSTED)
AS_IT_IS, SHIFTED = "as it is", "shifted"


@dataclass(frozen=True)
class Case:
    """One estimate.

    Attributes:
        name: The language, and after how many steps.
        kind: `AS_IT_IS` or `SHIFTED`.
        true: (K,) shares of the classes.
        english: (K,) those of English training data.
        unshrunk: (K,) the estimate without trust.
        rest: How much it would be trusted without a drop in confidence.
        drop: The drop in confidence; see `Estimate`.
    """

    name: str
    kind: str
    true: Floats
    english: Floats
    unshrunk: Floats
    rest: float
    drop: float

    def shares(self, thresholds: tuple[float, float]) -> Floats:
        """(K,) the estimate, shrunk towards English, with these thresholds."""
        trust = self.rest * float(np.interp(self.drop, thresholds, (1.0, 0.0)))
        found: Floats = trust * self.unshrunk + (1 - trust) * self.english
        return found

    def distance(self, shares: Floats) -> float:
        """Total variation from the true ones."""
        return total_variation(shares, self.true)


class Predictions:
    """An observer that keeps what the model says of every test set after some of the steps."""

    def __init__(self, steps: Sequence[int], labels: Sequence[str]) -> None:
        self.steps, self.labels = steps, list(labels)
        self.found: dict[int, dict[str, Outputs]] = {}

    def observe(self, step: int, model: AdversarialModel, tested: Tested) -> Mapping[str, Any]:
        if step in self.steps:
            self.found[step] = {
                name: (np.asarray(outputs, np.float64), self._classes(data.gold))
                for name, (data, outputs) in tested.tests.items()
            }
        return {}

    def _classes(self, gold: Sequence[Any]) -> Classes:
        return np.array([self.labels.index(label) for label in gold])


def main(argv: Sequence[str] | None = None) -> int:
    """Prints both tables; returns 0, or 2 if it cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="with en.train, en.dev, LANG.train: LABEL<TAB>text")  # fmt: skip
    parser.add_argument("--languages", required=True, metavar="LANG,...")
    parser.add_argument("--model", default="fastadv-mini")
    parser.add_argument("--steps", type=_numbers, default=(100, 200), metavar="N,...",
                        help="after which shares are estimated")  # fmt: skip
    parser.add_argument("--lr_task", type=float, default=2e-4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--texts", type=int, default=1000, help="of a language, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        cases = measure(options)
    except (ValueError, OSError) as error:
        print(f"held_out.py: {error}", file=sys.stderr)
        return 2
    _say(cases)
    return 0


def measure(options: argparse.Namespace) -> list[Case]:
    """Trains, and estimates every case.

    Raises:
        ValueError: Malformed data, or English dev of which a half lacks a class.
    """
    task, folder = task_of("classification"), options.data
    train = str(folder / "en.train")
    labels = task.labels_of(train)
    config = FinetuneConfig(
        steps=max(options.steps),
        eval_every=math.gcd(*options.steps),
        lr_task=options.lr_task,
        batch_size=options.batch_size,
        max_length=options.max_length,
        seed=options.seed,
        adversarial=False,
        checkpoint_every=0,
    )
    tuner = AdversarialFinetuner(options.model, "classification", labels, config)
    predictions = Predictions(options.steps, labels)
    tests = {
        name: spread(task.labeled(str(folder / f"{name}.train")), options.texts)
        for name in options.languages.split(",")
    }
    tests["en"] = task.labeled(str(folder / "en.dev"))
    tuner.fit(train, test=tests, quiet=True, observer=predictions, export=False)
    english = np.array([tuner.class_counts[label] for label in labels], np.float64)
    return [
        case
        for step, outputs in sorted(predictions.found.items())
        for case in cases_of(outputs, english / english.sum(), step, options.seed)
    ]


def cases_of(
    outputs: Mapping[str, Outputs], english: Floats, step: int, seed: int
) -> Iterator[Case]:
    """All cases of one model.

    Args:
        outputs: For "en", English dev, and other languages what the model says of their texts.
        english: (K,) shares of the classes in English training data.
        step: The steps that the model was trained for.
        seed: Seed of the halves and the shifts.
    """
    rows, classes = outputs["en"]
    first = np.random.default_rng(seed).permutation(len(rows)) % 2 == 0
    halves = (rows[first], classes[first]), (rows[~first], classes[~first])
    pairs = {"en dev, halves": halves}
    pairs |= {name: (outputs["en"], found) for name, found in outputs.items() if name != "en"}
    for name, (dev, target) in pairs.items():
        chance = np.random.default_rng(seed)
        shifts = [shifted(target, len(english), chance) for _ in range(SHIFTS)]
        for kind, sample in ((AS_IT_IS, target), *((SHIFTED, one) for one in shifts)):
            yield _case(f"{name}, step {step}", kind, dev, sample, english)


def shifted(target: Outputs, classes: int, chance: np.random.Generator) -> Outputs:
    """Texts drawn again by shares that are drawn first; a class without texts stays at 0."""
    rows, own = target
    members = [np.flatnonzero(own == k) for k in range(classes)]
    shares = chance.dirichlet(np.full(classes, CONCENTRATION)) * [len(m) > 0 for m in members]
    drawn = chance.choice(classes, min(SAMPLE, len(own)), p=shares / shares.sum())
    chosen = np.array([chance.choice(members[k]) for k in drawn])
    return rows[chosen], own[chosen]


def _case(name: str, kind: str, dev: Outputs, target: Outputs, english: Floats) -> Case:
    true = np.bincount(target[1], minlength=len(english)) / len(target[1])
    # Trust without what the drop takes of it, so that the grid can have other thresholds.
    trusted, distrusted = ALL_TRUSTED
    with patch.multiple(estimate, DROP_TRUSTED=trusted, DROP_DISTRUSTED=distrusted):
        found = estimate_shares(*dev, target[0], english.tolist())
    return Case(
        name, kind, true, english, found.unshrunk, found.trust, found.confidence_drop
    )  # fmt: skip


def _say(cases: Sequence[Case]) -> None:
    print("total variation from the true shares, mean over the cases of a row")
    print(f"{'':34}{'cases':>6}{'drop':>7}{'English':>9}{'unshrunk':>10}{'shrunk':>8}"
          f"{'worst against English':>23}")  # fmt: skip
    for name, kind in dict.fromkeys((case.name, case.kind) for case in cases):
        row = [case for case in cases if (case.name, case.kind) == (name, kind)]
        english = np.array([case.distance(case.english) for case in row])
        unshrunk = np.mean([case.distance(case.unshrunk) for case in row])
        shrunk = np.array([case.distance(case.shares(USED)) for case in row])
        drop = np.mean([case.drop for case in row])
        print(f"{name + ', ' + kind:34}{len(row):6}{drop:7.3f}{english.mean():9.3f}{unshrunk:10.3f}"
              f"{shrunk.mean():8.3f}{(shrunk - english).max():+23.3f}")  # fmt: skip
    print()
    print("shrunk, with other thresholds of the drop: mean over all cases")
    groups = {
        f"{what}, {kind}": [
            case
            for case in cases
            if case.kind == kind and case.name.startswith("en dev") == (what == "English")
        ]
        for what in ("others", "English")
        for kind in (AS_IT_IS, SHIFTED)
    }
    print(f"{'':24}" + "".join(f"{name:>19}" for name in groups))
    rows = {"English shares": None, **{_thresholds(pair): pair for pair in sorted({*GRID, USED})}}
    for name, pair in rows.items():
        cells = ""
        for group in groups.values():
            found = [c.distance(c.english if pair is None else c.shares(pair)) for c in group]
            cells += f"{np.mean(found):19.3f}"
        print(f"{name:24}{cells}")


def _thresholds(pair: tuple[float, float]) -> str:
    if pair == ALL_TRUSTED:
        return "none"
    return f"{pair[0]:g} to {pair[1]:g}{', as used' if pair == USED else ''}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
