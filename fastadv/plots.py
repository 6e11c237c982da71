"""Figures of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastadv.config import Task
from fastadv.evaluate import SCORE
from fastadv.fit import History

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# As in the paper's Figure 2: solid without the adversary, dashed with it.
_STYLES = {"baseline": "-", "adversarial": "--"}


def plot_curves(path: Path, histories: Mapping[str, History], task: Task) -> None:
    """Test score over steps by language, with and without the adversary (paper, Figure 2).

    Args:
        path: The PNG to write.
        histories: "baseline" and "adversarial", or either.
        task: Chooses accuracy or F1.

    Raises:
        ValueError: No history holds an evaluation on a test set.
        ImportError: matplotlib is not installed.
    """
    languages = sorted(
        {name for h in histories.values() for e in h.evaluations() for name in e["test"]}
    )
    if not languages:
        raise ValueError("no evaluation on a test set was recorded, expected one to plot")
    plt = _pyplot()
    columns = min(3, len(languages))
    rows = -(-len(languages) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3 * rows), sharex=True, squeeze=False
    )
    for axis, language, colour in zip(axes.flat, languages, _COLOURS * rows, strict=False):
        for name, history in histories.items():
            points = [
                (e["step"], e["test"][language][SCORE[task]])
                for e in history.evaluations()
                if language in e["test"]
            ]
            axis.plot(*zip(*points, strict=True), _STYLES.get(name, ":"), color=colour, label=name)
        axis.set_title(language)
        axis.set_xlabel("step")
        axis.set_ylabel(SCORE[task])
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    for axis in list(axes.flat)[len(languages) :]:
        axis.remove()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "curves need matplotlib, expected it to be installed: pip install 'fastadv[demo]'"
        ) from error
    # Drawing to files needs no display.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
