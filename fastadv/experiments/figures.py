"""Figures of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastadv.experiments.plan import ADVERSARIAL, BASELINE
from fastadv.experiments.results import CONDITIONS, Results
from fastadv.records.plots import COLOURS, GUESSING, RC, pyplot

_NAMES = {BASELINE: "without adversary (baseline)", ADVERSARIAL: "with adversary"}
# As in the paper's Figure 2: solid without the adversary, dashed with it.
_LINES: dict[str, Any] = {BASELINE: "-", ADVERSARIAL: (0, (4, 1.5))}
_SIZE = (4.5, 2.8)

Series = Mapping[int, tuple[list[int], list[float]]]


def plot_scores(path: Path, results: Results, language: str) -> None:
    """Test accuracy or F1 of a language over steps, with and without adversary (paper, Figure 2).

    The mean over seeds as a line, and every seed's own faint behind it.

    Args:
        path: The PNG to write.
        results: With at least one run scored on the language.
        language: A target.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    plt = pyplot()
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=_SIZE, layout="constrained")
        for condition in CONDITIONS:
            series = results.series(condition, language)
            _draw(axis, series, _NAMES[condition], COLOURS[condition], _LINES[condition])
        axis.set_title(f"{language}: test {'F1' if results.metric == 'f1' else 'accuracy'}")
        _finish(plt, figure, axis, path)


def plot_discriminator(path: Path, results: Results, language: str) -> None:
    """How well languages are told apart on held-out text over steps: by the discriminator, and by
    a linear probe trained afresh on the embeddings of either run.

    Arguments and errors are the same as for `plot_scores`.
    """
    plt = pyplot()
    with plt.rc_context(RC):
        figure, axis = plt.subplots(figsize=_SIZE, layout="constrained")
        for label, condition, name, line in (
            ("discriminator", ADVERSARIAL, "discriminator_accuracy", "-"),
            ("probe, with adversary", ADVERSARIAL, "probe_accuracy", _LINES[ADVERSARIAL]),
            ("probe, baseline", BASELINE, "probe_accuracy", (0, (1, 1))),
        ):
            colour = "#009E73" if name == "discriminator_accuracy" else COLOURS[condition]
            _draw(axis, results.series(condition, language, name), label, colour, line)
        axis.axhline(0.5, **GUESSING)
        axis.set_title(f"{language}: told from {results.source} (grey: guessing)")
        axis.set_ylim(top=1.02)
        _finish(plt, figure, axis, path)


def _draw(axis: Any, series: Series, label: str, colour: str, line: Any) -> None:
    if not series:
        return
    for steps, values in series.values():
        axis.plot(steps, values, color=colour, linestyle=line, linewidth=0.6, alpha=0.4)
    # Seeds share their steps; a seed that has not got as far is left out of the mean there.
    by_step: dict[int, list[float]] = {}
    for steps, values in series.values():
        for step, value in zip(steps, values, strict=True):
            by_step.setdefault(step, []).append(value)
    whole = sorted(step for step, values in by_step.items() if len(values) == len(series))
    means = [float(np.mean(by_step[step])) for step in whole]
    axis.plot(whole, means, color=colour, linestyle=line, label=label)


def _finish(plt: Any, figure: Any, axis: Any, path: Path) -> None:
    axis.set_xlabel("step")
    axis.legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)
