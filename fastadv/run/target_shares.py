"""Class shares of the target languages in a run: by what English is drawn, and predictions matched
to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastadv.nn.heads import AdversarialModel
from fastadv.selection.target_signals import TargetSignals
from fastadv.shares.estimate import Estimate, total_variation
from fastadv.tasks.class_shares import NAMED, ClassShares, Matched, Named
from fastadv.tasks.evaluation_set import EvaluationSet

DAMPING = 0.5
"""How much of a new estimate is taken: it moves what the encoder learns, and that the next one."""
DISTRUST = 0.5
INSTEAD: Named = "halfway"
"""Shares to match predictions to where an estimate is not trusted. Predictions have a mean of their
own, which English shares need not be nearer to the truth than; what is drawn, by contrast, is
English text, whose own shares cost nothing.
"""


@dataclass(frozen=True)
class TargetText:
    """What shares are estimated from.

    Attributes:
        known: The classes, and English shares.
        signals: Text of every target language.
        dev: Labelled English that is not trained on; None without.
        batch_size: Sequences in a batch of the longest.
    """

    known: ClassShares
    signals: TargetSignals
    dev: EvaluationSet | None
    batch_size: int

    def estimates(
        self, model: AdversarialModel, languages: list[str], instead: Named = "english"
    ) -> dict[str, tuple[dict[str, float], Estimate]]:
        """By language the shares, and how they were found.

        Raises:
            ValueError: English dev lacks a class.
        """
        assert self.dev is not None
        dev = self.dev.outputs(model, self.batch_size)
        return {
            name: self.known.estimated(
                dev, self.dev.gold, self.signals.outputs(model, name), instead
            )
            for name in languages
        }


class DrawnShares:
    """Shares by which the English side of D and G batches is drawn.

    Args:
        text: Text of the target languages.
        wanted: `FinetuneConfig.class_shares`, not "ignore".
        languages: The languages of the other side.

    Attributes:
        current: Shares of the classes by language; what is estimated begins as English.
        estimated: The languages whose shares are estimated.

    Raises:
        ValueError: A language or a class that is unknown, or no English dev to estimate with.
    """

    def __init__(self, text: TargetText, wanted: Any, languages: list[str]) -> None:
        self.text, wanted = text, _by_language("class_shares", wanted, languages)
        self.current = dict.fromkeys(languages, text.known.english)
        self.current |= {
            n: text.known.known(s) for n, s in wanted.items() if isinstance(s, Mapping)
        }
        self.estimated = [name for name in languages if wanted.get(name) == "estimate"]
        _need_dev("class_shares", self.estimated, text)

    def arrays(self) -> dict[str, list[float]]:
        """As `Draws` takes them: classes in the order of the labels."""
        return {name: [*shares.values()] for name, shares in self.current.items()}

    def update(self, model: AdversarialModel) -> dict[str, dict[str, Any]]:
        """Estimates again; returns what to record, by language."""
        told = {}
        for name, (shares, estimate) in self.text.estimates(model, self.estimated).items():
            old = self.current[name]
            self.current[name] = {
                k: (1 - DAMPING) * old[k] + DAMPING * share for k, share in shares.items()
            }
            told[name] = {
                "drawn_by": self.current[name],
                "estimate": shares,
                "low": estimate.low.tolist(),
                "high": estimate.high.tolist(),
                "trust": estimate.trust,
                "confidence_drop": estimate.confidence_drop,
            }
        return told


class MatchedPredictions:
    """Constants that match predictions in each language to shares.

    Args:
        text: Text of the target languages.
        wanted: `FinetuneConfig.match_shares`.
        languages: The target languages.

    Raises:
        ValueError: A language or a class that is unknown, or no English dev to estimate with.
    """

    def __init__(self, text: TargetText, wanted: Any, languages: list[str]) -> None:
        self.text, self._wanted = text, _by_language("match_shares", wanted, languages)
        for shares in self._wanted.values():
            if isinstance(shares, Mapping):
                text.known.known(shares)
        estimated = [name for name, shares in self._wanted.items() if shares == "estimate"]
        _need_dev("match_shares", estimated, text)

    def of(self, model: AdversarialModel) -> dict[str, Matched]:
        """The constants by language for a model as it is now."""
        known, wanted = self.text.known, dict(self._wanted)
        estimated = [name for name, shares in wanted.items() if shares == "estimate"]
        if estimated:
            found = self.text.estimates(model, estimated, INSTEAD)
            wanted |= {name: shares for name, (shares, _) in found.items()}
        wanted |= {n: known.named(s) for n, s in wanted.items() if s in NAMED}
        return {
            name: known.match(self.text.signals.outputs(model, name), shares)
            for name, shares in wanted.items()
        }


FAR = 0.1
"""A total variation between class shares from which on an adversary that ignores them may cost."""
LEAST_TEXTS = 100
"""On fewer texts, of English dev or of the language, no warning is built: a model of a small sample
may be sure and wrong, as none of its intervals tells.
"""


def far_from_english(text: TargetText, model: AdversarialModel, languages: list[str]) -> list[str]:
    """A sentence for each language whose estimated shares are far from English ones."""
    english = np.array([*text.known.english.values()])
    assert text.dev is not None
    enough = [name for name in languages if text.signals.texts(name) >= LEAST_TEXTS]
    if len(text.dev.gold) < LEAST_TEXTS or not enough:
        return []
    found = []
    for name, (shares, estimate) in text.estimates(model, enough).items():
        distance = total_variation([*shares.values()], english)
        # Of few texts an estimate may be far by chance.
        sure = np.maximum(estimate.low - english, english - estimate.high).max() > 0
        if distance > FAR and sure:
            found.append(
                f"class shares of {name} are estimated to be {distance:.2f} (total variation) from "
                "English ones: the adversary may cost more than it gains; set class_shares to "
                "'estimate', or to known shares"
            )
    return found


def distrusted(language: str, told: Mapping[str, Any]) -> str | None:
    """A sentence if an estimate, as `DrawnShares.update` tells it, is hardly counted."""
    if told["trust"] >= DISTRUST:
        return None
    return (
        f"class shares of {language} cannot be estimated yet (predictions are "
        f"{told['confidence_drop']:.2f} less sure than on English): they stay close to English "
        f"ones; counts of some labelled texts serve better: class_shares {language}=FILE"
    )


def _by_language(what: str, wanted: Any, languages: list[str]) -> dict[str, Any]:
    """A setting by language, of which a word stands for all."""
    found: dict[str, Any] = (
        dict.fromkeys(languages, wanted) if isinstance(wanted, str) else dict(wanted)
    )
    for name in found:
        if name not in languages:
            raise ValueError(
                f"{what} names the language {name!r}, expected one of {', '.join(languages)}, "
                "of which there is unlabelled text"
            )
    return found


def _need_dev(what: str, estimated: list[str], text: TargetText) -> None:
    if not estimated:
        return
    if text.dev is None:
        raise ValueError(
            f"{what} is to be estimated and there is no dev, expected labelled English that is "
            "not trained on"
        )
    missing = text.known.missing(text.dev.gold)
    if missing:
        raise ValueError(
            f"{what} is to be estimated and dev has no example of {', '.join(missing)}, expected "
            "some of every class"
        )
