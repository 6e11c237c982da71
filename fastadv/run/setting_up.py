"""From the arguments of `fit` to a run that is ready to go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastadv.data import Data
from fastadv.data.scripts import script_counts
from fastadv.records.progress import notice
from fastadv.run.fit import Run
from fastadv.run.target_shares import (
    DrawnShares,
    MatchedPredictions,
    TargetText,
    far_from_english,
)
from fastadv.run.trained import Finetuned
from fastadv.run.unlike_text import unlike_source
from fastadv.selection.step_choice import ENGLISH_DEV, StepChoice
from fastadv.selection.target_signals import TargetSignals
from fastadv.tasks.class_shares import ClassShares
from fastadv.tasks.majority import majority_class, majority_record

IGNORE = "ignore"


def prepared_run(
    tuner: Finetuned,
    labeled: Data,
    texts: dict[str, Data],
    dev: Data | None,
    test: Mapping[str, Data],
    **options: Any,
) -> Run:
    """Reads and tokenises all data, and refuses what cannot be done before the first step.

    Args:
        tuner: Its `class_counts` become those of the labelled examples, and `matched` is emptied.
        labeled: See `AdversarialFinetuner.fit`.
        texts: Unlabelled text by language.
        dev: See `fit`.
        test: See `fit`.
        options: Other arguments of `Run`.

    Raises:
        ValueError: Malformed data, or settings that do not fit them.
    """
    config, prepare, task = tuner.config, tuner.preparation, tuner.preparation.task
    examples = task.labeled(labeled)
    tuner.class_counts, tuner.matched = task.counts(examples), {}
    known = ClassShares(task, tuner.labels, tuner.class_counts)
    by_shares = config.adversarial and config.class_shares != IGNORE
    warns = config.adversarial and not by_shares and dev is not None and task.one_class
    selects = config.selection != ENGLISH_DEV
    looks = selects or by_shares or warns or config.match_shares is not None
    if looks:
        # Read once, for all who look.
        texts = {name: list(task.texts(data)) for name, data in texts.items()}
    languages = [name for name in texts if name != config.source_language]
    english = {name: [*known.english.values()] for name in languages} if by_shares else None
    if by_shares and config.source_language in texts:
        notice(
            f"text of {config.source_language} without labels is not drawn: its classes, which "
            "class_shares needs, are not known"
        )
    scripts: dict[str, Counter[str]] = {}

    def look(language: str, records: Sequence[Any]) -> None:
        scripts[language] = script_counts(records)

    draws = prepare.draws(examples, texts, english, look)
    size, signals = config.eval_batch_size, None
    if looks and languages:
        signals = TargetSignals(prepare, {name: texts[name] for name in languages}, size)
    del texts
    choice = StepChoice(
        config.selection, task.metric, signals if selects else None, dev is not None
    )
    dev_set = None if dev is None else prepare.evaluation_set(dev)
    shares = matching = warn_of_shares = None
    if signals is not None:
        text = TargetText(known, signals, dev_set, size)
        if by_shares:
            shares = DrawnShares(text, config.class_shares, languages)
            draws.set_class_shares(shares.arrays())
        if config.match_shares is not None:
            matching = MatchedPredictions(text, config.match_shares, languages)
        if warns and dev_set is not None and not known.missing(dev_set.gold):
            warn_of_shares = partial(far_from_english, text, tuner.model, languages)
    elif config.match_shares is not None:
        raise ValueError("match_shares needs unlabelled text of a target language, found none")
    tests = {name: prepare.evaluation_set(data) for name, data in test.items()}
    majority = majority_class(task, tuner.class_counts, tuner.labels)
    return Run(
        tuner,
        draws,
        choice,
        dev=dev_set,
        tests=tests,
        shares=shares,
        matching=matching,
        warn_of_shares=warn_of_shares,
        majority=majority_record(majority, tuner.labels, dev_set, tests),
        warnings=unlike_source(draws, scripts, config.source_language),
        **options,
    )
