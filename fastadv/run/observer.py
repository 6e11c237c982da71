"""What looks at a model during a run, beyond scores on labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastadv.nn.heads import AdversarialModel
from fastadv.tasks.evaluation_set import EvaluationSet
from fastadv.tasks.task import Outputs

Answered = tuple[EvaluationSet, Outputs]
"""Labelled data, and what the model says of them."""


@dataclass(frozen=True)
class Tested:
    """What an evaluation scores.

    Attributes:
        tests: The test sets by name.
        dev: English dev; None without.
    """

    tests: Mapping[str, Answered]
    dev: Answered | None = None


class Observer(Protocol):
    """Called by `fit` at every evaluation, and for the mean of the weights."""

    def observe(self, step: int, model: AdversarialModel, tested: Tested) -> Mapping[str, Any]:
        """What is kept in the evaluation's record as "observed": anything JSON can hold.

        Args:
            step: Steps done.
            model: The model as it is after them, which must be left as it is.
            tested: What was just scored.
        """
