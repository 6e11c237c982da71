"""A task's class shares: English ones, counted or estimated ones, and predictions matched to them.

A class is a document's label, or a type of entity. What is apart, words outside of entities, is in
no share and keeps the mean prediction that the model gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fastadv.shares.counting import counted_shares
from fastadv.shares.estimate import Estimate, estimate_shares
from fastadv.shares.matching import checked_shares, matching_constants, with_constants
from fastadv.tasks.task import Outputs, Task

Shares = Mapping[str, float]
Named = Literal["english", "equal", "halfway"]
"""Shares that need no text: as in English training data, equal, and half-way between."""
NAMED: tuple[str, ...] = get_args(Named)
ROWS = 20_000
"""Predictions that shares are estimated and matched on, at most; NER has one a word."""


@dataclass(frozen=True)
class Matched:
    """Predictions matched in one language.

    Attributes:
        shares: Shares of the classes that predictions are matched to.
        constants: (K,) float64, added to the logits of the labels.
    """

    shares: dict[str, float]
    constants: NDArray[np.float64]


class ClassShares:
    """The classes of a task and how much English training data has of each.

    Args:
        task: The task.
        labels: The labels, in the order of the output.
        counts: Of each class, in English training data; `Task.counts`.

    Attributes:
        names: The classes that have shares, in the order of the labels.
        counts: As given.
    """

    def __init__(self, task: Task, labels: Sequence[str], counts: Mapping[str, int]) -> None:
        self.task, self.labels, self.counts = task, tuple(labels), dict(counts)
        groups = task.groups(labels)
        self._groups = list(dict.fromkeys(groups))
        self._column = np.array([self._groups.index(group) for group in groups])
        self.names = tuple(name for name in self._groups if name not in task.apart())

    @property
    def english(self) -> dict[str, float]:
        """Shares in English training data."""
        return self._shares(self._counted(self.names))

    def named(self, name: str) -> dict[str, float]:
        """English, equal or half-way shares.

        Raises:
            ValueError: There is no such name.
        """
        english, equal = np.array([*self.english.values()]), 1 / len(self.names)
        if name == "english":
            return self.english
        if name == "equal":
            return self._shares(np.full(len(self.names), equal))
        if name == "halfway":
            return self._shares((english + equal) / 2)
        raise ValueError(f"found the shares {name!r}, expected one of {', '.join(NAMED)}")

    def known(self, shares: Shares) -> dict[str, float]:
        """Given shares, classes in order; one that is not given is 0.

        Raises:
            ValueError: An unknown class, a number below 0, or a sum that is not 1.
        """
        for name in shares:
            if name not in self.names:
                raise ValueError(
                    f"found a share of {name!r}, expected classes among {', '.join(self.names)}"
                )
        found = [float(shares.get(name, 0.0)) for name in self.names]
        return self._shares(checked_shares(found, len(self.names)))

    def counted(self, examples: Sequence[Any]) -> dict[str, float]:
        """Shares counted on labelled examples of the task; see `counted_shares`.

        Raises:
            ValueError: There is none, or a class is unknown.
        """
        counts = self.task.counts(examples)
        inside = {name: n for name, n in counts.items() if name not in self.task.apart()}
        found = counted_shares(inside, self.names, [*self.english.values()])
        return self._shares(found)

    def missing(self, gold: Sequence[Any]) -> list[str]:
        """Classes, those apart too, of which labelled examples have none: with them no other
        shares can be estimated.

        Args:
            gold: Their labels, as `Task.evaluation` gives them.
        """
        found = self.task.classes(gold)
        return [name for name in self._groups if name not in found]

    def estimated(
        self, dev: Outputs, gold: Sequence[Any], target: Outputs
    ) -> tuple[dict[str, float], Estimate]:
        """Shares of a language estimated from predictions; the estimate is over all classes, those
        apart among them.

        Args:
            dev: Outputs for labelled English that the model was not trained on.
            gold: Its labels, as `Task.evaluation` gives them.
            target: Outputs for the language's text.

        Raises:
            ValueError: English dev lacks a class, or there is no text.
        """
        rows, classes = self.task.known(dev, gold, self.labels)
        # A type that training did not have is no class of the model.
        kept = [place for place, name in enumerate(classes) if name in self._groups]
        numbers = np.array([self._groups.index(classes[place]) for place in kept], np.int64)
        chosen = _spread(len(kept))
        estimate = estimate_shares(
            self._by_class(rows[kept])[chosen],
            numbers[chosen],
            self._by_class(self._rows(target)),
            self._counted(self._groups).tolist(),
        )
        by_name = dict(zip(self._groups, estimate.shares.tolist(), strict=True))
        inside = np.array([by_name[name] for name in self.names])
        return self._shares(inside / inside.sum()), estimate

    def match(self, unlabeled: Outputs, shares: Shares) -> Matched:
        """What makes predictions on a language's text have the given shares in the mean.

        Args:
            unlabeled: Outputs for the text.
            shares: Shares by class, as the other methods give them.

        Raises:
            ValueError: There is no text, or see `known`.
        """
        wanted = self.known(shares)
        rows = self._by_class(self._rows(unlabeled))
        if not len(rows):
            raise ValueError("found no text to match predictions on, expected some")
        mean = dict(zip(self._groups, rows.mean(axis=0).tolist(), strict=True))
        left = sum(mean[name] for name in self.names)
        full = [left * wanted[n] if n in wanted else mean[n] for n in self._groups]
        constants = matching_constants(rows, np.array(full) / sum(full))
        return Matched(wanted, constants[self._column])

    def _rows(self, outputs: Outputs) -> NDArray[Any]:
        rows = self.task.rows(outputs)
        return rows[_spread(len(rows))]

    def _by_class(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """(M, G): the sum over the labels of each class."""
        return np.stack(
            [
                rows[:, self._column == k].sum(axis=1, dtype=np.float64)
                for k in range(len(self._groups))
            ],
            axis=1,
        )

    def _counted(self, names: Sequence[str]) -> NDArray[np.float64]:
        found = np.array([self.counts.get(name, 0) for name in names], np.float64)
        if not found.sum():
            raise ValueError("found no count of the classes in training, expected some")
        return found / found.sum()

    def _shares(self, values: Iterable[float]) -> dict[str, float]:
        return {name: float(v) for name, v in zip(self.names, values, strict=True)}


def matched_outputs(outputs: Outputs, constants: NDArray[np.float64]) -> Outputs:
    """The outputs with constants (K,) added to every logit."""
    if isinstance(outputs, np.ndarray):
        return with_constants(outputs, constants)
    return [with_constants(rows, constants) for rows in outputs]


def _spread(count: int) -> NDArray[np.int64]:
    """At most `ROWS` places, evenly."""
    return np.linspace(0, count - 1, min(count, ROWS)).round().astype(np.int64)
