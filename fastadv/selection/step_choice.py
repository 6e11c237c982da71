"""Which evaluated step of a run becomes best/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadv.run.checkpoint import replace_folder
from fastadv.selection import CRITERIA, ENSEMBLES, values
from fastadv.selection.target_signals import TargetPredictions
from fastadv.tasks.inference import SCORE

if TYPE_CHECKING:
    from fastadv.finetuner import AdversarialFinetuner

ENGLISH_DEV = "english_dev"
"""The paper's criterion (section 3.1)."""
BEST = "best"
CANDIDATES = ".candidates"
_GONE = ".gone"
_TARGETS = "targets"


class StepChoice:
    """`FinetuneConfig.selection` at work, over the evaluations that it was given so far.

    Args:
        tuner: Whose configuration and task it is.
        texts: Unlabelled text by target language, at which English dev does not look.
        dev: Whether evaluations have scores on a dev set.

    Raises:
        ValueError: The criterion reads predictions on target text and there is none, or it is an
            ensemble with English dev and there is no dev set.
    """

    def __init__(
        self, tuner: AdversarialFinetuner, texts: Mapping[str, Any], dev: bool = True
    ) -> None:
        self.criterion, self.metric = tuner.config.selection, SCORE[tuner.task]
        self.parts = ENSEMBLES.get(self.criterion, (self.criterion,))
        self._predictions: TargetPredictions | None = None
        self._seen: list[dict[str, Any]] = []
        self._gone: set[int] = set()
        if self.criterion == ENGLISH_DEV:
            return
        if not texts:
            raise ValueError(
                f"selection is {self.criterion!r} and there is no text of another language, "
                "expected unlabeled text for it to look at"
            )
        if ENGLISH_DEV in self.parts and not dev:
            raise ValueError(f"selection is {self.criterion!r}, expected a dev set for it")
        self._predictions = TargetPredictions(tuner, texts)

    @property
    def looks(self) -> bool:
        """Whether the criterion reads predictions on unlabelled text."""
        return self._predictions is not None

    def look(self, tuner: AdversarialFinetuner) -> dict[str, dict[str, float]]:
        """{language: {signal: value}} of the model as it is now; empty where it does not look."""
        return {} if self._predictions is None else self._predictions.signals(tuner)

    def add(self, evaluation: Mapping[str, Any]) -> None:
        """One more evaluation record; signals count by their mean over languages.

        Left out are step 0, where no head was ever trained, and what lacks a part's value.
        """
        by_language = evaluation.get("unlabeled", {}).values()
        names = {name for signals in by_language for name in signals}
        means = {name: float(np.mean([s[name] for s in by_language])) for name in names}
        seen = {**evaluation, "observed": {_TARGETS: means}}
        parts = [CRITERIA[part](seen, _TARGETS, self.metric) for part in self.parts]
        if evaluation["step"] > 0 and None not in parts:
            self._seen.append({**seen, "parts": parts})

    def best(self) -> tuple[int, float] | None:
        """The step with the greatest value, the earliest of equals, and the value: of an ensemble
        the mean of its ranks so far. None before there is one.
        """
        found = values(self._seen, _TARGETS, self.criterion, self.metric) or []
        steps = [seen["step"] for seen in self._seen]
        there = [pair for pair in zip(steps, found, strict=True) if pair[0] not in self._gone]
        return max(there, key=lambda pair: pair[1], default=None)

    def candidates(self) -> list[int]:
        """Steps that are or may yet become the best.

        Of an ensemble more than one: ranks shift with every evaluation. But a step that another
        equals or surpasses in every part never overtakes it.
        """
        return [
            one["step"]
            for one in self._seen
            if one["step"] not in self._gone
            and not any(_never_below(other, one) for other in self._seen if other is not one)
        ]

    def lose(self, step: int) -> None:
        """The step's model is gone: it counts in ranks, but can no longer be the best."""
        self._gone.add(step)


def _never_below(other: Mapping[str, Any], one: Mapping[str, Any]) -> bool:
    if other["parts"] == one["parts"]:
        return bool(other["step"] < one["step"])
    return all(a >= b for a, b in zip(other["parts"], one["parts"], strict=True))


class BestFolder:
    """best/ of a run: the model of the step that is chosen so far.

    Models of other candidates are kept in .candidates/ until the run ends.

    Args:
        folder: Of the run.
        save: Writes the model as it is now into a folder.
    """

    def __init__(self, folder: Path, save: Callable[[Path], None]) -> None:
        self._folder, self._save = folder, save

    def update(self, choice: StepChoice, step: int) -> None:
        """After an evaluation at `step` was added to the choice.

        Raises:
            OSError: A folder cannot be written; what was there before is untouched.
        """
        best, candidates = choice.best(), choice.candidates()
        if best is None:
            return
        if len(choice.parts) == 1:
            if best[0] == step:
                replace_folder(self._folder / BEST, self._save)
            return
        if step in candidates:
            replace_folder(self._kept(step), self._save)
        replace_folder(self._folder / BEST, lambda folder: _link(self._kept(best[0]), folder))
        kept = {_GONE, *map(str, candidates)}
        for path in [*(self._folder / CANDIDATES).iterdir()]:
            if path.name not in kept:
                _remove(path)

    def resume(self, choice: StepChoice) -> None:
        """Before a run goes on, with the evaluations up to its checkpoint in the choice.

        Raises:
            OSError: See `update`.
        """
        best = choice.best()
        if len(choice.parts) == 1 or best is None:
            return
        if not (self._folder / CANDIDATES).exists() and (self._folder / BEST).exists():
            # It had ended, and best/ is its last word.
            replace_folder(self._kept(best[0]), lambda folder: _link(self._folder / BEST, folder))
        for step in choice.candidates():
            if not self._kept(step).exists():
                choice.lose(step)

    def finish(self) -> None:
        """Only best/ remains."""
        if (self._folder / CANDIDATES).exists():
            _remove(self._folder / CANDIDATES)

    def _kept(self, step: int) -> Path:
        return self._folder / CANDIDATES / str(step)


def _remove(path: Path) -> None:
    """Whenever it is stopped, the folder is whole or there is none of that name."""
    gone = path.with_name(_GONE)
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def _link(source: Path, target: Path) -> None:
    """A second name for every file, which takes no room; a copy where there are no hard links."""
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copy2(path, target / path.name)
