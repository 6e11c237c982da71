"""The table at the end of `train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastadv.config import SCORE, TaskName
from fastadv.records.history import History
from fastadv.records.text_table import table

_WHAT = {"selected": "step", "last": "step", "mean": "of evaluations"}


def summary(histories: Mapping[str, History], task: TaskName) -> str:
    """One row for each test set (or English dev, without one) and run; with two, the difference;
    where predictions were matched, their score; and for classes what always giving the commonest
    one of the training labels would score.

    Columns: the score at the step that was selected (by default on English dev, if there was a
    dev set), at the last step, and of the mean of the weights, if that was kept. Empty where
    nothing was evaluated.

    Args:
        histories: Histories by the name of the run; the difference is the first minus the second.
        task: Chooses accuracy or F1.
    """
    metric = SCORE[task]
    points = {name: _points(history) for name, history in histories.items()}
    if not all(points.values()):
        return ""
    first = next(iter(points.values()))
    names = list(first["last"]["test"]) or ["dev"]
    majority = next(iter(histories.values())).majority
    rows = []
    for name in names:
        scores: dict[str, list[float]] = {}
        for run, records in points.items():
            cells = [name, run]
            for record in records.values():
                score = (record["test"] or {"dev": record.get("dev")})[name][metric]
                scores.setdefault(run, []).append(score)
                cells += [_when(record), f"{score:.4f}"]
            rows.append(cells)
        if len(scores) == 2:
            one, other = scores.values()
            differences = [f"{a - b:+.4f}" for a, b in zip(one, other, strict=True)]
            rows.append([name, "difference", *(c for d in differences for c in ("", d))])
        matched = [run for run, records in points.items() if _matched(records, name)]
        for run in matched:
            cells = [f"{name}, matched", run]
            for record in points[run].values():
                cells += [_when(record), f"{record['matched'][name][metric]:.4f}"]
            rows.append(cells)
        if majority is not None:
            score = f"{(majority['test'] or {'dev': majority.get('dev')})[name][metric]:.4f}"
            rows.append([name, f"always {majority['label']}", *["", score] * len(first)])
    header = [
        "test",
        "run",
        *(cell for point in first for cell in (f"{point} {_WHAT[point]}", metric)),
    ]
    if len(histories) == 1 and majority is None:
        header.pop(1)
        rows = [[cells[0], *cells[2:]] for cells in rows]
    return table(header, rows, left=len(header) - 2 * len(first))


def _points(history: History) -> dict[str, dict[str, Any]]:
    """The evaluation at the selected step, if one was selected, the last one, and the mean's."""
    evaluations = history.evaluations()
    if not evaluations:
        return {}
    chosen = [e for e in evaluations if e["step"] == history.best_step]
    means = [record for record in history.records if record["kind"] == "mean"]
    return (
        ({"selected": chosen[0]} if chosen else {})
        | {"last": evaluations[-1]}
        | ({"mean": means[-1]} if means else {})
    )


def _matched(records: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    """Whether predictions on a test set were matched at every point of a run."""
    return all(name in record.get("matched", {}) for record in records.values())


def _when(record: Mapping[str, Any]) -> str:
    return str(record["evaluations" if record["kind"] == "mean" else "step"])
