"""Tables of an experiment with arms of its own, each with predictions as they are and matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from fastadv.experiments.plan import BASELINE
from fastadv.experiments.results import AVERAGED, Results
from fastadv.experiments.tables import DEFAULT_CRITERION, Table, majority_rows, per_cent

CHOICES = (DEFAULT_CRITERION, "last", AVERAGED)
"""How a run's model is chosen; none of them reads the target language."""
LEVEL = 0.95
PLAIN = "as they are"
MARKED = {
    "counted": "counted (few-shot)",
    "fitted": "fitted (few-shot)",
    "oracle": "oracle (not allowed: reads target labels)",
}
"""What needs labels of the target language."""


def arm_tables(results: Results) -> dict[str, Table]:
    """The tables by the name of their file."""
    tables = {}
    for criterion in CHOICES:
        tables[f"arms_{criterion}"] = scores_by_arm(results, criterion)
        tables[f"gains_{criterion}"] = gains(results, criterion)
        tables[f"effects_{criterion}"] = effects(results, criterion)
    tables["languages"] = scores_by_language(results, AVERAGED)
    tables["shares"] = share_errors(results)
    return tables


def scores_by_arm(results: Results, criterion: str) -> Table:
    """The mean of the targets: a row for each arm, a column for each way of matching."""
    ways = [None, *results.matchings()]
    rows = [
        [marked(arm), *(per_cent(results.mean_scores(arm, criterion, way)) for way in ways)]
        for arm in results.arms
    ]
    title = (
        f"Test score in per cent, mean of the targets, model by {criterion}: mean ± standard "
        f"deviation of {_seeds(results)}. Rows: what was trained. Columns: the class shares that "
        "predictions are matched to."
    )
    return Table(title, ["", *_columns(ways)], rows)


def gains(results: Results, criterion: str) -> Table:
    """Everything less the baseline with predictions as they are, paired by seed."""
    plain = results.mean_scores(BASELINE, criterion)
    return _differences(
        results,
        criterion,
        dict.fromkeys([None, *results.matchings()], plain),
        "Points above the baseline with predictions as they are",
    )


def effects(results: Results, criterion: str) -> Table:
    """What an arm adds to the baseline whose predictions are matched to the same shares."""
    ways = [None, *results.matchings()]
    return _differences(
        results,
        criterion,
        {way: results.mean_scores(BASELINE, criterion, way) for way in ways},
        "Points that training adds: above the baseline with predictions matched to the same shares",
    )


def scores_by_language(results: Results, criterion: str) -> Table:
    """A row for each arm and way of matching, and one above for the commonest class of the training
    labels; a column for each language.
    """
    rows = majority_rows(results, results.languages)
    for arm in results.arms:
        for way in [None, *results.matchings()]:
            found = [results.scores(arm, lang, criterion, way) for lang in results.languages]
            mean = results.mean_scores(arm, criterion, way)
            name = f"{marked(arm)}, {_way(way)}"
            rows.append([name, *map(per_cent, found), per_cent(mean)])
    title = (
        f"Test score in per cent by language, model by {criterion}: mean ± standard deviation of "
        f"{_seeds(results)}."
    )
    return Table(title, ["", *results.languages, "mean of targets"], rows)


def share_errors(results: Results) -> Table:
    """How far class shares are from the true ones: named ones, counted ones and estimates."""
    rows = []
    for way in ("english", "equal", "halfway", "counted"):
        found = [_errors(results, BASELINE, language, way) for language in results.languages]
        if any(found):
            rows.append([marked(way), *_cells(found)])
    found = [_errors(results, BASELINE, lang, "estimate_to_match") for lang in results.languages]
    if any(found):
        rows.append(["estimate to match to, baseline, after the last step", *_cells(found)])
    for place, when in ((0, "early"), (-1, "after the last step")):
        for arm in results.arms:
            found = [
                _errors(results, arm, language, "estimate", place) for language in results.languages
            ]
            if any(found):
                rows.append([f"estimate, {marked(arm)}, {when}", *_cells(found)])
    for arm in results.arms:
        trust = [results.signal(arm, language, "trust") for language in results.languages]
        if any(trust):
            rows.append([f"trust in it, {marked(arm)}, after the last step", *_cells(trust)])
    title = (
        "Total variation between class shares and the true ones of the unlabelled text, and how "
        "far the estimate is trusted (1 in full, 0 not at all: it is then the English shares): "
        f"mean of {_seeds(results)}. Early is the first evaluation."
    )
    return Table(title, ["", *results.languages, "mean"], rows)


def marked(name: str) -> str:
    """The name of an arm or of shares, with a mark where labels of the target are read."""
    return MARKED.get(name, name)


def interval(values: Sequence[float]) -> str:
    """Mean [lower, upper] of Student's interval at `LEVEL`, in per cent; the mean of one alone."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{100 * mean:+.1f}"
    error = float(stats.sem(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return f"{100 * mean:+.1f} [{100 * (mean - half):+.1f}, {100 * (mean + half):+.1f}]"


def _differences(
    results: Results,
    criterion: str,
    against: Mapping[str | None, Mapping[int, float]],
    what: str,
) -> Table:
    rows = []
    for arm in results.arms:
        cells = []
        for way, base in against.items():
            found = results.mean_scores(arm, criterion, way)
            values = [found[seed] - base[seed] for seed in found.keys() & base.keys()]
            cells.append(interval(values) if values else "-")
        rows.append([marked(arm), *cells])
    title = (
        f"{what}, mean of the targets, model by {criterion}, paired by seed: mean and "
        f"{LEVEL:.0%} interval of {_seeds(results)} (Student's t)."
    )
    return Table(title, ["", *_columns(list(against))], rows)


def _errors(
    results: Results, arm: str, language: str, way: str, place: int = -1
) -> dict[int, float]:
    found = {}
    for seed, line in results.runs(arm, language).items():
        errors = line["evaluations"][place]["observed"].get(language, {}).get("share_error", {})
        if way in errors:
            found[seed] = float(errors[way])
    return found


def _cells(found: Sequence[Mapping[int, float]]) -> list[str]:
    means = [float(np.mean([*one.values()])) if one else None for one in found]
    known = [mean for mean in means if mean is not None]
    return ["-" if m is None else f"{m:.2f}" for m in means] + [f"{np.mean(known):.2f}"]


def _columns(ways: Sequence[str | None]) -> list[str]:
    return [_way(way) for way in ways]


def _way(way: str | None) -> str:
    return PLAIN if way is None else f"matched: {marked(way)}"


def _seeds(results: Results) -> str:
    count = len(results.seeds)
    return f"{count} seed{'s' if count > 1 else ''}"
