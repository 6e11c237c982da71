"""Tables of an experiment, laid out as the paper's, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastadv.experiments import paper
from fastadv.experiments.plan import ADVERSARIAL, BASELINE
from fastadv.experiments.results import AVERAGED, CONDITIONS, Results, mean_and_deviation
from fastadv.selection import CRITERIA, ENSEMBLES, ORACLE

NOT_ALLOWED = f"{ORACLE} (not allowed: reads target labels)"
DEFAULT_CRITERION = "english_dev"
_NOTHING = "-"
_NAMES = {BASELINE: "baseline", ADVERSARIAL: "adversarial"}


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        title: What it shows, in a sentence.
        header: Column names; the first names the rows.
        rows: The rows, with as many cells each as the header.
    """

    title: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """A pipe table under its title."""
        lines = [self.header, ["---", *("---:" for _ in self.header[1:])], *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{self.title}\n\n{body}\n"

    def csv(self) -> str:
        """RFC 4180, without the title."""
        text = io.StringIO()
        csv.writer(text).writerows([self.header, *self.rows])
        return text.getvalue()


def all_tables(results: Results, corpus: str | None = None) -> dict[str, Table]:
    """Every table that the results suffice for, by the name of its file.

    Args:
        results: The results of the finished runs.
        corpus: "mldoc" or "conll" to show the paper's numbers next to ours.
    """
    tables = {"scores": score_table(results, corpus)}
    if any(results.effect(name, DEFAULT_CRITERION) for name in results.languages):
        tables["effect"] = effect_table(results)
    tables["criteria"] = ranking_table(results)
    for condition in CONDITIONS:
        if any(results.runs(condition, name) for name in results.languages):
            tables[f"criteria_{condition}"] = criteria_table(results, condition)
    if any(results.signal(BASELINE, name, "alignment") for name in results.languages):
        tables["alignment"] = alignment_table(results, corpus)
    tables["discriminator"] = discriminator_table(results)
    return tables


def has_papers_arms(results: Results) -> bool:
    """Whether the conditions are the paper's two, which `all_tables` lays out as it does."""
    return set(results.arms) <= set(CONDITIONS)


def score_table(
    results: Results, corpus: str | None = None, criterion: str = DEFAULT_CRITERION
) -> Table:
    """Tables 1 and 2 of the paper: test scores at the step chosen on English dev.

    Mean and standard deviation over seeds. Before our rows stands what always giving the commonest
    class of the training labels would score, where results have it (`Results.majority`). The last
    row is the difference between runs of one seed.
    """
    languages = [results.source, *results.languages]
    rows = []
    for name, values in paper.SCORES.get(corpus or "", {}).items():
        cells = [f"{values[lang]:.1f}" if lang in values else _NOTHING for lang in languages]
        common = [values[lang] for lang in results.languages if lang in values]
        mean = f"{sum(common) / len(common):.1f}" if common else _NOTHING
        rows.append([name, *cells, mean])
    rows += majority_rows(results, languages)
    for condition in CONDITIONS:
        cells = [per_cent(results.scores(condition, lang, criterion)) for lang in languages]
        mean = per_cent(results.mean_scores(condition, criterion))
        rows.append([_NAMES[condition], *cells, mean])
    effects = [per_cent(results.effect(lang, criterion), sign=True) for lang in results.languages]
    mean = per_cent(results.effect(None, criterion), sign=True)
    rows.append(["difference, paired by seed", _NOTHING, *effects, mean])
    metric = "F1 of entities" if results.metric == "f1" else "Accuracy"
    title = (
        f"{metric} on the test sets in per cent, {results.experiment}, {results.model}: mean ± "
        f"standard deviation of {_seeds(results)}, step chosen by {criterion}."
    )
    return Table(title, ["", *languages, "mean of targets"], rows)


def majority_rows(results: Results, languages: Sequence[str]) -> list[list[str]]:
    """A row of what always giving the commonest class of the training labels would score in the
    languages, and on the mean of the targets; none where results do not have it.
    """
    if (majority := results.majority()) is None:
        return []
    label, scores = majority
    cells = [f"{100 * scores[lang]:.1f}" if lang in scores else _NOTHING for lang in languages]
    mean = _NOTHING
    if all(lang in scores for lang in results.languages):
        mean = f"{100 * float(np.mean([scores[lang] for lang in results.languages])):.1f}"
    return [[f"always {label}, the commonest in training", *cells, mean]]


def ranking_table(results: Results) -> Table:
    """What each criterion would have scored on average, the best first and the oracle last.

    Lists only criteria with a score in every language, as means would not compare otherwise.
    """
    rows = []
    for criterion in (*CRITERIA, *ENSEMBLES, AVERAGED, ORACLE):
        means = [
            float(np.mean([*scores.values()])) if scores else None
            for scores in (results.mean_scores(c, criterion) for c in CONDITIONS)
        ]
        if means == [None, None]:
            continue
        both = None if None in means else float(np.mean([m for m in means if m is not None]))
        counts = [results.against(c, criterion, DEFAULT_CRITERION) for c in CONDITIONS]
        totals = np.sum(counts, axis=0)
        told = [_NOTHING] * 3 if criterion == DEFAULT_CRITERION else [str(n) for n in totals]
        name = NOT_ALLOWED if criterion == ORACLE else criterion
        order = (criterion == ORACLE, both is None, 0.0 if both is None else -both)
        cells = [_NOTHING if m is None else f"{100 * m:.1f}" for m in (both, *means)]
        rows.append((order, [name, *cells, *told]))
    title = (
        "Test score in per cent that each criterion gets, mean of all targets and of "
        f"{_seeds(results)}; and how often it is better than, worse than or the same as "
        f"{DEFAULT_CRITERION} for a run and target."
    )
    names = (_NAMES[condition] for condition in CONDITIONS)
    header = ["criterion", "both", *names, "better", "worse", "same"]
    return Table(title, header, [row for _, row in sorted(rows, key=lambda pair: pair[0])])


def criteria_table(results: Results, condition: str) -> Table:
    """What each criterion would have scored, and by how much the oracle is better on average."""
    rows = []
    oracle = results.mean_scores(condition, ORACLE)
    for criterion in (*CRITERIA, *ENSEMBLES, AVERAGED, ORACLE):
        found = {lang: results.scores(condition, lang, criterion) for lang in results.languages}
        if not any(found.values()):
            continue
        mean = results.mean_scores(condition, criterion)
        behind = {seed: oracle[seed] - value for seed, value in mean.items() if seed in oracle}
        name = NOT_ALLOWED if criterion == ORACLE else criterion
        cells = [per_cent(scores) for scores in found.values()]
        rows.append([name, *cells, per_cent(mean), per_cent(behind)])
    title = (
        f"Test score in per cent that each criterion gets, {_NAMES[condition]} runs: mean ± "
        f"standard deviation of {_seeds(results)}."
    )
    header = ["criterion", *results.languages, "mean of targets", "behind the oracle"]
    return Table(title, header, rows)


def effect_table(results: Results) -> Table:
    """What the adversary adds where both runs of a pair keep the step that a criterion chooses."""
    rows = []
    for criterion in (*CRITERIA, *ENSEMBLES, AVERAGED, ORACLE):
        found = [results.effect(language, criterion) for language in (*results.languages, None)]
        if not any(found):
            continue
        name = NOT_ALLOWED if criterion == ORACLE else criterion
        rows.append([name, *(per_cent(effects, sign=True) for effects in found)])
    title = (
        "Test score in per cent, adversarial less baseline, of runs of one seed, by how the step "
        f"of either is chosen: mean ± standard deviation of {_seeds(results)}."
    )
    return Table(title, ["criterion", *results.languages, "mean of targets"], rows)


def alignment_table(results: Results, corpus: str | None = None) -> Table:
    """Table 3 of the paper: median cosine of texts and their translations."""
    rows = []
    for name, values in paper.ALIGNMENT.items() if corpus == "mldoc" else ():
        cells = [f"{values[n]:.2f}" if n in values else _NOTHING for n in results.languages]
        rows.append([name, *cells])
    for name, condition, place in (
        ("before finetuning", BASELINE, 0),
        ("without adversary", BASELINE, -1),
        ("with adversary", ADVERSARIAL, -1),
    ):
        found = (results.signal(condition, n, "alignment", place) for n in results.languages)
        # Before the first step every seed's encoder is the pretrained one.
        rows.append([name, *(_plain(v, spread=place != 0) for v in found)])
    title = (
        "Median cosine of texts and their translations, before the first and after the last step: "
        f"mean ± standard deviation of {_seeds(results)}."
    )
    return Table(title, ["", *results.languages], rows)


def discriminator_table(results: Results) -> Table:
    """The discriminator on text it was not trained on, with a fresh probe and the scores."""
    rows = []
    for place, when in ((0, "before"), (-1, "after")):
        for name, condition, signal in (
            ("discriminator's accuracy", ADVERSARIAL, "discriminator_accuracy"),
            ("discriminator's loss", ADVERSARIAL, "discriminator_loss"),
            ("probe's accuracy, with adversary", ADVERSARIAL, "probe_accuracy"),
            ("probe's accuracy, baseline", BASELINE, "probe_accuracy"),
        ):
            found = (results.signal(condition, n, signal, place) for n in results.languages)
            rows.append([f"{name}, {when}", *map(_plain, found)])
    title = (
        "Telling languages apart on held-out text (guessing: accuracy 0.5, loss 1.386), before the "
        f"first and after the last step: mean ± standard deviation of {_seeds(results)}."
    )
    return Table(title, ["", *results.languages], rows)


def _seeds(results: Results) -> str:
    count = len(results.seeds)
    return f"{count} seed{'s' if count > 1 else ''}"


def per_cent(by_seed: Mapping[int, float], sign: bool = False) -> str:
    """The mean over seeds ± standard deviation, in per cent."""
    return _cell(by_seed.values(), lambda v: f"{100 * v:{'+' if sign else ''}.1f}", 100, 1)


def _plain(by_seed: Mapping[int, float], spread: bool = True) -> str:
    values = list(by_seed.values())
    return _cell(values if spread else values[:1], lambda v: f"{v:.3f}", 1, 3)


def _cell(
    values: Iterable[float], shown: Callable[[float], str], factor: float, digits: int
) -> str:
    sample: Sequence[float] = list(values)
    if not sample:
        return _NOTHING
    mean, deviation = mean_and_deviation(sample)
    return shown(mean) + ("" if deviation is None else f" ± {factor * deviation:.{digits}f}")
