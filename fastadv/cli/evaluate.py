"""`fastadv evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from fastadv.cli.class_shares import add_match_shares, match
from fastadv.cli.messages import hush
from fastadv.cli.options import (
    Reading,
    add_json,
    add_model,
    add_options_file,
    add_quiet,
    add_reading,
    add_repeated,
    model_of,
    named,
)
from fastadv.records.text_table import table

SUMMARY = "score a finetuned model"
DESCRIPTION = (
    "Score a finetuned model on labelled files: accuracy and macro-F1 of documents (paper, "
    "Table 1), or precision, recall and F1 of entities as conlleval counts them (paper, Table 2). "
    "A test that is named as a language in which predictions were matched is scored with and "
    "without. For documents also what always giving the commonest class of the training labels "
    "would score."
)


def add_options(parser: ArgumentParser) -> None:
    add_options_file(parser)
    add_model(parser, finetuned=True)
    add_repeated(parser, "--test", "NAME=FILE", "labelled file; once for each")
    parser.add_argument(
        "--details",
        action="store_true",
        help="also the confusion matrix and each class, or each type of entity",
    )
    add_match_shares(parser, "in each test's language, which is its name, and score them too")
    add_repeated(
        parser,
        "--unlabeled",
        "LANG=FILE",
        "text that predictions are matched on; by default the test file's own, without its labels",
    )
    parser.add_argument(
        "--dev",
        type=str | None,
        default=None,
        help="labelled English that was not trained on, for --match_shares estimate",
    )
    add_json(parser)
    add_reading(parser, "dev, or the name of a --test or --unlabeled file")
    add_quiet(parser)


def run(options: Namespace) -> None:
    tests = named(options.test, "--test")
    if not tests:
        raise ValueError("found no --test, expected at least one NAME=FILE")
    unlabeled = named(options.unlabeled, "--unlabeled")
    reading = Reading(options, [*tests, *unlabeled, "dev"])
    files = reading.files(tests)
    hush(options.quiet)
    from fastadv.finetuner import AdversarialFinetuner
    from fastadv.tasks.majority import majority_scores

    tuner = AdversarialFinetuner.from_pretrained(model_of(options))
    dev = None if options.dev is None else reading.file("dev", options.dev)
    texts = files | reading.files(unlabeled)
    match(tuner, options.match_shares, texts, list(tests), dev, reading.file)
    reports, majority = {}, {}
    for name, data in files.items():
        examples = tuner.evaluation_set(data)
        reports[name] = tuner.report(examples)
        if name in tuner.matched:
            reports[f"{name}, matched"] = tuner.report(examples, name)
        if (least := majority_scores(examples, tuner.majority, tuner.labels)) is not None:
            majority[name] = least
    scores = {name: report.scores() for name, report in reports.items()}
    details = {n: report.details() for n, report in reports.items()} if options.details else {}
    if options.json:
        facts = {name: {**found, **details.get(name, {})} for name, found in scores.items()}
        for name, least in majority.items():
            facts[name]["majority"] = {"label": tuner.majority, **least}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    metrics = list(next(iter(scores.values())))
    rows = [[name, *(f"{values[m]:.4f}" for m in metrics)] for name, values in scores.items()]
    rows += [
        [f"{name}, always {tuner.majority}", *(f"{least[m]:.4f}" for m in metrics)]
        for name, least in majority.items()
    ]
    print(table(["test", *metrics], rows))
    for name, found in details.items():
        print(f"\n{name}\n\n{_tables(found)}")


def _tables(details: Mapping[str, Any]) -> str:
    """Scores of each class or type, and the confusion matrix if there is one."""
    tables = [
        _each(name.removeprefix("per_"), scores)
        for name, scores in details.items()
        if name.startswith("per_")
    ]
    if "confusion" in details:
        labels = details["labels"]
        rows = [
            [label, *map(str, counts)]
            for label, counts in zip(labels, details["confusion"], strict=True)
        ]
        tables.append(table(["true \\ predicted", *labels], rows))
    return "\n\n".join(tables)


def _each(what: str, scores: Mapping[str, Mapping[str, float]]) -> str:
    metrics = ("precision", "recall", "f1")
    rows = [
        [name, *(f"{found[m]:.4f}" for m in metrics), str(found["support"])]
        for name, found in scores.items()
    ]
    return table([what, *metrics, "support"], rows)
