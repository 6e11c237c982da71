"""Is the language discriminator alive? Its accuracy so far, judged as statistics and put in words.

A D batch holds as many texts of the source language as of the others, so guessing is right on
half of them. The paper (Keung, Lu and Bhardwaj, EMNLP 2019) does not report the accuracy of its
discriminator; the thresholds here are ours.

A verdict needs a whole window: two stretches in a row, each of at least 50 steps and 2,048 texts,
each of which must show the same by itself, so that a discriminator on its way up or down is left
alone. A stretch shows that the accuracy is at chance where the upper bound of its confidence
interval is below 55%, and that it is certain where the lower bound is above 98%. The interval is
Wilson's at two standard errors, which holds near 0 and 1 too, over half as many texts as there
were: texts come again and a batch's logits share one w_D, so errors are not independent draws. (On
a real run of 300 steps the means of 320 texts varied by 0.024 where independent draws would by
0.028: a factor of two is ample.) So at 2,048 texts a discriminator that only guesses is recognised
95 times in 100, and one that is right 55% of the time is taken for it 5 times in 10,000.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastadv.config import FinetuneConfig

STRETCH_STEPS = 50
STRETCH_TEXTS = 2048
DESIGN_EFFECT = 2.0
STANDARD_ERRORS = 2.0
CHANCE = 0.5
NEAR_CHANCE = 0.55
CERTAIN = 0.98
LEARNED = 0.65
"""Lower bound over a stretch of the start at which the discriminator did tell languages apart."""
LEARNED_TEXTS = 512
SETTLED = 100
"""Steps that w_D is given to leave its random start (on a real run it was at 86% by step 30)."""
SETTLED_CERTAIN = 300
"""Steps before which a certain discriminator is no news: languages start far apart."""


@dataclass(frozen=True)
class _Interval:
    """Records taken together: after step `start`, up to `end`; the bounds are Wilson's."""

    start: int
    end: int
    texts: int
    mean: float

    def bounds(self) -> tuple[float, float]:
        n, z2 = self.texts / DESIGN_EFFECT, STANDARD_ERRORS**2
        centre = (self.mean + z2 / (2 * n)) / (1 + z2 / n)
        spread = math.sqrt(max(0.0, self.mean * (1 - self.mean) * z2 / n + (z2 / (2 * n)) ** 2))
        return centre - spread / (1 + z2 / n), centre + spread / (1 + z2 / n)


def diagnose(records: Sequence[Mapping[str, Any]], config: FinetuneConfig) -> str | None:
    """What is wrong with the discriminator, at the record that first shows it, in words.

    A pure function, to be called after every training record: for the same records it says the
    same, so a resumed run says it at the same step and only once.

    Args:
        records: Records of metrics.jsonl so far; only training records count.
        config: The configuration of the run, with the task's learning rates filled in.

    Returns:
        A few sentences, and what to change; None if there is nothing to say, if there is no
        discriminator, or if this was said for a shorter sequence of these records.
    """
    # A state that lasts was reported before, and needs no search through all the records.
    state, before = _state(records, config), _state(records[:-1], config)
    if state is None or (before is not None and before.name == state.name):
        return None
    name = state.verdict()
    # "fooled" is a way of being no better than guessing, and a run swings between the two.
    same = {name} if name in ("certain", "fooled") else {name, "fooled"}
    for end in range(len(records) - 1, 0, -1):
        earlier = _state(records[:end], config)
        if earlier is not None and earlier.verdict() in same:
            return None
    return _words(name, state.window, config)


@dataclass(frozen=True)
class _State:
    """What the last two stretches show, and the spans before them, newest first."""

    name: str
    window: _Interval
    before: Iterator[_Interval]

    def verdict(self) -> str:
        return "forgotten" if self.name == "chance" and _learned(self.before) else self.name


def _state(records: Sequence[Mapping[str, Any]], config: FinetuneConfig) -> _State | None:
    spans = _newest_first(records, config)
    late, early = _stretch(spans), _stretch(spans)
    if late is None or early is None:
        return None
    window, bounds = _join([early, late]), [early.bounds(), late.bounds()]
    if window.start >= SETTLED_CERTAIN and all(low > CERTAIN for low, _ in bounds):
        return _State("certain", window, spans)
    if window.start < SETTLED or not all(high < NEAR_CHANCE for _, high in bounds):
        return None
    fooled = all(high < CHANCE for _, high in bounds)
    return _State("fooled" if fooled else "chance", window, spans)


def _newest_first(
    records: Sequence[Mapping[str, Any]], config: FinetuneConfig
) -> Iterator[_Interval]:
    """What each training record covers: the steps since the one before, or since the beginning."""
    later: Mapping[str, Any] | None = None
    for record in (*reversed(records), {"kind": "train", "step": 0}):
        if record["kind"] != "train":
            continue
        accuracy = None if later is None else later.get("discriminator_accuracy")
        if later is not None and accuracy is not None and later["step"] > record["step"]:
            # Files of earlier versions do not say how many; their batches all had the same size.
            alike = 2 * config.batch_size * (later["step"] - record["step"])
            texts = later.get("discriminator_texts", alike)
            yield _Interval(record["step"], later["step"], texts, accuracy)
        later = record


def _stretch(spans: Iterator[_Interval]) -> _Interval | None:
    """The next spans, newest first, that make a stretch together; None if they run out."""
    taken: list[_Interval] = []
    texts = 0
    for span in spans:
        taken.append(span)
        texts += span.texts
        if texts >= STRETCH_TEXTS and taken[0].end - span.start >= STRETCH_STEPS:
            return _join(taken)
    return None


def _learned(spans: Iterator[_Interval]) -> bool:
    """Whether a stretch of the spans, newest first, shows that languages were told apart."""
    taken: deque[_Interval] = deque()
    texts = 0
    for span in spans:
        taken.appendleft(span)
        texts += span.texts
        while texts - taken[-1].texts >= LEARNED_TEXTS:
            texts -= taken.pop().texts
        if texts >= LEARNED_TEXTS and _join(taken).bounds()[0] > LEARNED:
            return True
    return False


def _join(spans: Collection[_Interval]) -> _Interval:
    texts = sum(span.texts for span in spans)
    mean = sum(span.texts * span.mean for span in spans) / texts
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    return _Interval(start, end, texts, mean)


def _words(verdict: str, window: _Interval, config: FinetuneConfig) -> str:
    share = f"{window.mean:.1%} of {window.texts:,} texts right"
    return _WORDS[verdict].format(
        seen=f"{share} in steps {window.start + 1} to {window.end}",
        lr_d=f"lr_discriminator (now {config.lr_discriminator:g})",
        lr_g=f"lr_generator (now {config.lr_generator:g})",
        source=config.source_language,
    )


_WORDS = {
    "chance": (
        "the discriminator is no better than guessing and never was: {seen}. Its gradients then "
        "say nothing about language, and the adversary only adds noise. Raise {lr_d}, tenfold at "
        "first; lower {lr_g}; and check that the unlabeled texts are in the languages they are "
        "named for, not in {source}."
    ),
    "forgotten": (
        "the discriminator told the languages apart earlier and now only guesses: {seen}. If the "
        "encoder has forgotten which language it reads, this is what the method is for: compare "
        "the test scores, and the median cosine of translations, with a run without the "
        "adversary. If they are no better, the discriminator only lags behind the encoder: raise "
        "{lr_d} or lower {lr_g}."
    ),
    "fooled": (
        "the discriminator is wrong more often than right: {seen}. The encoder runs away from it "
        "faster than it learns, and the two may go round in circles. Lower {lr_g}, or raise "
        "{lr_d}."
    ),
    "certain": (
        "the discriminator is hardly ever wrong: {seen}. The encoder is not unlearning the "
        "language. Perhaps the files differ in more than that, in markup, letter case, spacing, "
        "tokenised punctuation or length: make them alike. Otherwise raise {lr_g}, lower {lr_d}, "
        "or train for more steps; languages in other scripts take longest."
    ),
}
