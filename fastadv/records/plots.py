"""Figures of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastadv.config import SCORE, TaskName
from fastadv.records.history import History

# Okabe and Ito's colours, which colour-blind readers tell apart too; line and marker tell the
# systems apart without colour. As in the paper's Figure 2: solid without the adversary, dashed
# with it.
COLOURS = {"baseline": "#0072B2", "adversarial": "#D55E00"}
_STYLES: dict[str, dict[str, Any]] = {
    "baseline": {"color": COLOURS["baseline"], "linestyle": "-", "marker": "o"},
    "adversarial": {
        "color": COLOURS["adversarial"],
        "linestyle": (0, (4, 1.5)),
        "marker": "s",
        "markerfacecolor": "white",
    },
}
_OTHER_STYLE = {"color": "#000000", "linestyle": ":", "marker": "^"}
_NAMES = {
    "baseline": "without adversary (baseline)",
    "adversarial": "with adversary",
}
_LOSSES = (
    ("loss_discriminator", "$L_D$", "#009E73", "-"),
    ("loss_generator", "$L_G$", "#CC79A7", (0, (1, 1))),
)
GUESSING = {"color": "#666666", "linewidth": 0.8, "linestyle": (0, (6, 2, 1, 2))}
_POINTS = 40
"""The most points of a training series; each is the mean of the values that it stands for."""
# Drawn at the width of a printed page's text, so that its letters have their true size there.
_WIDTH, _PANEL_HEIGHT, _LEGEND_HEIGHT = 7.0, 1.75, 0.45
RC = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 8,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
}


def plot_curves(
    path: Path, histories: Mapping[str, History], task: TaskName, relaxation: float = 0.0
) -> None:
    """Scores by language over steps, with and without the adversary (paper, Figure 2), and losses.

    There is a panel for the dev set and one for every test set, with the selected step ringed, and
    one for the task loss. Where a run had an adversary, there is one for its losses and one for the
    discriminator's accuracy, with the accuracy of guessing drawn in. The score panels share their
    axis. The figure is as wide as a printed page's text, and readable without colour.

    Args:
        path: The PNG to write.
        histories: "baseline" and "adversarial", or either.
        task: Chooses accuracy or F1.
        relaxation: The runs', which says what the losses are where D only guesses.

    Raises:
        ValueError: No history holds a training or an evaluation record.
        ImportError: Matplotlib is not installed.
    """
    records = [record for history in histories.values() for record in history.records]
    if not any(record["kind"] in ("train", "eval") for record in records):
        raise ValueError("found no training or evaluation records, expected some to plot")
    sets = _score_sets(histories)
    trained = any(record["kind"] == "train" for record in records)
    adversarial = any("loss_discriminator" in record for record in records)
    panels = len(sets) + trained + 2 * adversarial
    columns = 2 if panels in (2, 4) else min(3, panels)
    rows = math.ceil(panels / columns)
    plt = pyplot()
    with plt.rc_context(RC):
        height = rows * _PANEL_HEIGHT + _LEGEND_HEIGHT
        figure, grid = plt.subplots(
            rows, columns, figsize=(_WIDTH, height), squeeze=False, layout="constrained"
        )
        axes = iter(grid.flat)
        scores = [next(axes) for _ in sets]
        for axis, name in zip(scores, sets, strict=True):
            _draw_scores(axis, name, histories, task)
        for axis in scores[1:]:
            axis.sharey(scores[0])
        if trained:
            _draw_task_loss(next(axes), histories)
        if adversarial:
            _draw_adversarial_losses(next(axes), histories, relaxation)
            _draw_discriminator(next(axes), histories)
        for axis in axes:
            axis.remove()
        _label_edges(grid, len(scores), panels)
        _legend(figure, grid, histories)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)
        plt.close(figure)


def _score_sets(histories: Mapping[str, History]) -> list[str | None]:
    """None for the dev set, then the names of the test sets in the order of the records."""
    evaluations = [e for history in histories.values() for e in history.evaluations()]
    names = dict.fromkeys(name for e in evaluations for name in e["test"])
    return [*([None] if any("dev" in e for e in evaluations) else []), *names]


def _draw_scores(
    axis: Any, name: str | None, histories: Mapping[str, History], task: TaskName
) -> None:
    metric = SCORE[task]
    for run, history in histories.items():
        found = [
            (e["step"], e.get("dev") if name is None else e["test"].get(name))
            for e in history.evaluations()
        ]
        points = [(step, values[metric]) for step, values in found if values]
        if not points:
            continue
        axis.plot(*zip(*points, strict=True), **_style(run), clip_on=False)
        for step, score in points:
            if step == history.best_step:
                axis.plot(step, score, **_RING, clip_on=False)
    title = "dev (selects the step)" if name is None else name
    _finish(axis, title, "F1" if metric == "f1" else metric)


def _draw_task_loss(axis: Any, histories: Mapping[str, History]) -> None:
    for run, history in histories.items():
        _draw_series(axis, history, "loss_task", **_style(run))
    axis.set_ylim(bottom=0)
    _finish(axis, "task loss", "$L_T$")


def _draw_adversarial_losses(
    axis: Any, histories: Mapping[str, History], relaxation: float
) -> None:
    """Both losses in one panel, each named at its end; both are 2 ln 2 where D only guesses, and
    with relaxation β, of a p at its bound of 1 / (2 + β), ln((2 + β)² / (1 + β)).
    """
    for history in histories.values():
        ends = []
        for key, symbol, colour, line in _LOSSES:
            steps, values = _draw_series(axis, history, key, color=colour, linestyle=line)
            if values:
                ends.append((values[-1], steps[-1], symbol, colour))
        # The lower name below its line's end and the upper one above, so that they never meet.
        for (loss, step, symbol, colour), side in zip(
            sorted(ends), ("top", "bottom"), strict=False
        ):
            axis.annotate(
                symbol, (step, loss), (4, 0), textcoords="offset points", color=colour, va=side
            )
    guessing = 2 * math.log(2)
    if relaxation:
        guessing = 2 * math.log(2 + relaxation) - math.log1p(relaxation)
    axis.axhline(guessing, **GUESSING)
    _finish(axis, "adversarial losses (grey: D guesses)", "loss")


def _draw_discriminator(axis: Any, histories: Mapping[str, History]) -> None:
    for run, history in histories.items():
        _draw_series(axis, history, "discriminator_accuracy", **_style(run))
    axis.axhline(0.5, **GUESSING)
    axis.set_ylim(min(0.4, axis.get_ylim()[0]), 1.02)
    _finish(axis, "discriminator (grey: guessing)", "accuracy")


def _draw_series(
    axis: Any, history: History, key: str, **style: Any
) -> tuple[list[float], list[float]]:
    """Draws a value of the training records; returns the steps and values that it drew."""
    points = [(r["step"], r[key]) for r in history.records if key in r]
    size = max(1, math.ceil(len(points) / _POINTS))
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    steps = [sum(step for step, _ in group) / len(group) for group in groups]
    values = [sum(value for _, value in group) / len(group) for group in groups]
    if points:
        axis.plot(steps, values, markevery=max(1, len(groups) // 8), **style)
    return steps, values


_RING: dict[str, Any] = {
    "marker": "o", "markersize": 8, "markerfacecolor": "none", "markeredgecolor": "black",
    "markeredgewidth": 1.1, "linestyle": "none",
}  # fmt: skip


def _style(run: str) -> dict[str, Any]:
    return {"label": _NAMES.get(run, run), **_STYLES.get(run, _OTHER_STYLE)}


def _label_edges(grid: Any, scores: int, panels: int) -> None:
    """ "step" only under the lowest panel of each column, the metric only at the first of a row."""
    columns = grid.shape[1]
    for place, axis in enumerate(list(grid.flat)[:panels]):
        if place + columns >= panels:
            axis.set_xlabel("step")
        if place < scores and place % columns:
            axis.set_ylabel(None)


def _finish(axis: Any, title: str, ylabel: str) -> None:
    axis.set_title(title)
    axis.set_ylabel(ylabel)
    axis.margins(x=0.03)
    axis.locator_params(axis="x", nbins=5, integer=True)
    axis.locator_params(axis="y", nbins=5)


def _legend(figure: Any, grid: Any, histories: Mapping[str, History]) -> None:
    """One legend for the figure: the systems, and the ring."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_style(run)) for run in histories]
    if any(history.best_step is not None for history in histories.values()):
        handles.append(Line2D([], [], **_RING, label="step selected on dev"))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        handlelength=3.2,
    )


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        ImportError: Matplotlib is not installed.
    """
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
