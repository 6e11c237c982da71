"""The figure of docs/adversary.md: class shares of two languages, and predictions with and without
matching.

    python benchmarks/class_shares/figure.py --data DATA --results FILE.jsonl --output FILE.png

DATA holds `en.train` and `ru.train` (`LABEL<TAB>text` lines); the results are of an experiment that
scored Russian.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from fastadv.experiments.plan import BASELINE
from fastadv.experiments.results import AVERAGED, Results

LANGUAGE = "ru"
WAYS = {
    None: "as they are",
    "english": "to English shares",
    "equal": "to equal shares",
    "halfway": "half-way between",
    "fitted": "fitted to 50 texts",
    "oracle": "to the true shares",
}
ENGLISH, TARGET, PLAIN, MATCHED, FEW = "#4477AA", "#EE6677", "#BBBBBB", "#228833", "#CCBB44"


def shares(path: Path) -> dict[str, float]:
    """Shares of the labels in a file, in alphabetical order."""
    lines = path.read_text("utf-8").splitlines()
    counts = Counter(line.partition("\t")[0] for line in lines)
    return {name: counts[name] / len(lines) for name in sorted(counts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    english, target = (shares(options.data / f"{name}.train") for name in ("en", LANGUAGE))
    results = Results.read(options.results)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    places = np.arange(len(english))
    left.bar(places - 0.2, english.values(), 0.4, label="English", color=ENGLISH)
    left.bar(places + 0.2, target.values(), 0.4, label="Russian", color=TARGET)
    left.set_xticks(places, [name.title() for name in english])
    left.set_ylabel("share of the texts")
    moved = sum(abs(english[name] - target[name]) for name in english) / 2
    left.set_title(f"{moved:.0%} of the texts would have to change class", fontsize=10)
    left.legend(frameon=False)
    names, means, colours = [], [], []
    for way, name in WAYS.items():
        found = results.scores(BASELINE, LANGUAGE, AVERAGED, way)
        names.append(name)
        means.append(100 * float(np.mean([*found.values()])))
        few = way in ("fitted", "oracle")
        colours.append(PLAIN if way is None else FEW if few else MATCHED)
    rows = np.arange(len(names))[::-1]
    right.barh(rows, means, color=colours)
    for row, mean in zip(rows, means, strict=True):
        right.text(mean + 1, row, f"{mean:.0f}", va="center", fontsize=9)
    right.set_yticks(rows, names)
    right.set_xlim(0, 100)
    right.set_xlabel(f"accuracy in Russian, per cent ({results.model}, baseline)")
    right.set_title("predictions matched", fontsize=10)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=130)


if __name__ == "__main__":
    main()
