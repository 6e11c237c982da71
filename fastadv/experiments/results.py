"""Results of an experiment, and what a criterion would have made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastadv.config import SCORE, TaskName
from fastadv.experiments.plan import ADVERSARIAL, BASELINE
from fastadv.selection import chosen_step

AVERAGED = "mean_weights"
"""No step: the mean of the weights at the evaluations in the second half of a run."""
CONDITIONS = (BASELINE, ADVERSARIAL)

Result = Mapping[str, Any]


class Results:
    """Lines of results.jsonl.

    Attributes:
        lines: The lines, one per finished run.
        task: The name of the task.
        metric: The task's metric, by which runs are compared.
        source: The labelled language.
        languages: The targets, in the order of the plan.
        seeds: The seeds, in the order of the plan.

    Raises:
        ValueError: There is no line, or lines are of several experiments.
    """

    def __init__(self, lines: Iterable[Result]) -> None:
        self.lines = list(lines)
        if not self.lines:
            raise ValueError("found no finished run, expected at least one")
        kinds = {(line["experiment"], line["model"], line["task"]) for line in self.lines}
        if len(kinds) > 1:
            raise ValueError(f"found runs of {sorted(kinds)}, expected those of one experiment")
        first = self.lines[0]
        self.task: TaskName = first["task"]
        self.metric = SCORE[self.task]
        self.source: str = first["source"]
        self.experiment, self.model = str(first["experiment"]), str(first["model"])
        self.languages = list(dict.fromkeys(n for line in self.lines for n in line["languages"]))
        self.seeds = list(dict.fromkeys(line["seed"] for line in self.lines))

    @classmethod
    def read(cls, path: Path) -> Results:
        """The results in a results.jsonl.

        Raises:
            ValueError: The file is missing, no JSON lines, or see above.
        """
        try:
            return cls(json.loads(line) for line in path.read_text("utf-8").splitlines())
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: expected results of an experiment: {error}") from error

    @property
    def arms(self) -> list[str]:
        """The conditions with a finished run, in the order of the plan."""
        return list(dict.fromkeys(line["condition"] for line in self.lines))

    def matchings(self) -> list[str]:
        """The shares that predictions were matched to, in the order in which they were."""
        last = self.lines[0]["evaluations"][-1]["observed"]
        return [*last[self.languages[0]].get("matched", {})]

    def runs(self, condition: str, language: str) -> dict[int, Result]:
        """Finished runs that were scored on a language, by seed."""
        # For the source language the paper's tables have only the baseline's score.
        scored = {self.source} if condition == BASELINE else set()
        return {
            line["seed"]: line
            for line in self.lines
            if line["condition"] == condition and language in scored | {*line["languages"]}
        }

    def scores(
        self, condition: str, language: str, criterion: str, matched: str | None = None
    ) -> dict[int, float]:
        """Test accuracy or F1 by seed, at the step that a criterion chooses.

        Args:
            condition: The name of an arm, such as "baseline" or "adversarial".
            language: A target, or for the baseline the source.
            criterion: See `fastadv.selection`; or "mean_weights".
            matched: The shares that predictions are matched to, such as "equal"; None for
                predictions as they are.
        """
        found = {}
        for seed, line in self.runs(condition, language).items():
            if criterion == AVERAGED:
                chosen = line["averaged"]
            else:
                step = chosen_step(line["evaluations"], language, criterion, self.metric)
                if step is None:
                    continue
                chosen = next(e for e in line["evaluations"] if e["step"] == step)
            scores = chosen["test"][language]
            if matched is not None:
                scores = chosen["observed"][language]["matched"].get(matched)
            if scores is not None:
                found[seed] = float(scores[self.metric])
        return found

    def majority(self) -> tuple[str, dict[str, float]] | None:
        """The commonest class of the training labels, and what always giving it would score, by
        language; None for NER, and for results of before it was noted.
        """
        found = [line["majority"] for line in self.lines if line.get("majority") is not None]
        if not found:
            return None
        tests = {name: scores for each in found for name, scores in each["test"].items()}
        return found[0]["label"], {name: float(s[self.metric]) for name, s in tests.items()}

    def mean_scores(
        self, condition: str, criterion: str, matched: str | None = None
    ) -> dict[int, float]:
        """The mean over all targets by seed, for seeds whose runs are all finished."""
        by_language = [self.scores(condition, name, criterion, matched) for name in self.languages]
        return {
            seed: float(np.mean([scores[seed] for scores in by_language]))
            for seed in self.seeds
            if all(seed in scores for scores in by_language)
        }

    def effect(self, language: str | None, criterion: str) -> dict[int, float]:
        """What the adversary adds, by seed: runs with one seed see the same task batches.

        Args:
            language: A target; None for the mean over all.
            criterion: Chooses the step of either run.
        """
        if language is None:
            with_, without = (self.mean_scores(c, criterion) for c in (ADVERSARIAL, BASELINE))
        else:
            with_, without = (self.scores(c, language, criterion) for c in (ADVERSARIAL, BASELINE))
        return {
            seed: with_[seed] - without[seed]
            for seed in self.seeds
            if seed in with_.keys() & without.keys()
        }

    def against(self, condition: str, criterion: str, other: str) -> tuple[int, int, int]:
        """How often a criterion chose better than another, worse, and neither, over the runs and
        targets for which both have a score.
        """
        counts = [0, 0, 0]
        for language in self.languages:
            ours, theirs = (self.scores(condition, language, c) for c in (criterion, other))
            for seed in ours.keys() & theirs.keys():
                difference = ours[seed] - theirs[seed]
                counts[0 if difference > 0 else 1 if difference < 0 else 2] += 1
        return counts[0], counts[1], counts[2]

    def signal(self, condition: str, language: str, name: str, place: int = -1) -> dict[int, float]:
        """A signal by seed at one evaluation: the last, or with `place` 0 the one at step 0."""
        runs = self.runs(condition, language).items()
        observed = {s: line["evaluations"][place]["observed"].get(language, {}) for s, line in runs}
        return {seed: float(found[name]) for seed, found in observed.items() if name in found}

    def series(
        self, condition: str, language: str, name: str | None = None
    ) -> dict[int, tuple[list[int], list[float]]]:
        """Steps and values by seed, for a signal or, without a name, for the test score."""
        found = {}
        for seed, line in self.runs(condition, language).items():
            points = []
            for e in line["evaluations"]:
                observed = e["observed"].get(language, {})
                value = e["test"][language][self.metric] if name is None else observed.get(name)
                if value is not None:
                    points.append((int(e["step"]), float(value)))
            if points:
                found[seed] = [p[0] for p in points], [p[1] for p in points]
        return found


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the standard deviation of a sample (n - 1); None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
