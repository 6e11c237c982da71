"""`fastadv evaluate`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

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

if TYPE_CHECKING:
    from fastadv.tasks.metrics import DocumentReport, EntityScores, Scores

SUMMARY = "score a finetuned model"
DESCRIPTION = (
    "Score a finetuned model on labelled files: accuracy and macro-F1 of documents (paper, "
    "Table 1), or precision, recall and F1 of entities as conlleval counts them (paper, Table 2)."
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
    add_json(parser)
    add_reading(parser, "the name of a --test file")
    add_quiet(parser)


def run(options: Namespace) -> None:
    tests = named(options.test, "--test")
    if not tests:
        raise ValueError("found no --test, expected at least one NAME=FILE")
    files = Reading(options, list(tests)).files(tests)
    hush(options.quiet)
    from fastadv.finetuner import AdversarialFinetuner

    tuner = AdversarialFinetuner.from_pretrained(model_of(options))
    reports = {}
    for name, data in files.items():
        size = tuner.config.eval_batch_size
        reports[name] = tuner.evaluation_set(data).report(tuner.model, tuner.labels, size)
    if options.json:
        facts = {n: _scores(r) | (_facts(r) if options.details else {}) for n, r in reports.items()}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    scores = {name: _scores(report) for name, report in reports.items()}
    metrics = list(next(iter(scores.values())))
    rows = [[name, *(f"{values[m]:.4f}" for m in metrics)] for name, values in scores.items()]
    print(table(["test", *metrics], rows))
    if options.details:
        for name, report in reports.items():
            print(f"\n{name}\n\n{_details(report)}")


def _scores(report: DocumentReport | EntityScores) -> dict[str, float]:
    from fastadv.tasks.metrics import DocumentReport

    if isinstance(report, DocumentReport):
        return {"accuracy": report.accuracy, "macro_f1": report.macro_f1}
    return {"precision": report.precision, "recall": report.recall, "f1": report.f1}


def _facts(report: DocumentReport | EntityScores) -> dict[str, Any]:
    """The details as plain data."""
    from fastadv.tasks.metrics import DocumentReport

    if isinstance(report, DocumentReport):
        return {
            "labels": list(report.labels),
            "confusion": report.confusion.tolist(),
            "per_class": {name: vars(scores) for name, scores in report.per_class.items()},
        }
    return {"per_type": {name: vars(scores) for name, scores in report.per_type.items()}}


def _details(report: DocumentReport | EntityScores) -> str:
    from fastadv.tasks.metrics import DocumentReport

    if not isinstance(report, DocumentReport):
        return _each("type", report.per_type)
    rows = [
        [label, *map(str, counts)]
        for label, counts in zip(report.labels, report.confusion.tolist(), strict=True)
    ]
    matrix = table(["true \\ predicted", *report.labels], rows)
    return f"{_each('class', report.per_class)}\n\n{matrix}"


def _each(what: str, scores: dict[str, Scores]) -> str:
    rows = [
        [name, f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}", str(s.support)]
        for name, s in scores.items()
    ]
    return table([what, "precision", "recall", "f1", "support"], rows)
