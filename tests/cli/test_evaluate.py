"""`fastadv evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from fastadv import AdversarialFinetuner
from fastadv.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_scores_of_each_file(
    classifier: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "half.txt").write_text("".join((corpus / "en.train").open().readlines()[:3]))
    tests = ["--test", "en=en.train", "--test", "half=half.txt"]
    assert main(["evaluate", "--model", str(classifier), *tests]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["test", "accuracy", "macro_f1"]
    scores = AdversarialFinetuner.from_pretrained(classifier).evaluate(
        {"en": "en.train", "half": "half.txt"}
    )
    expected = [[name, *(f"{v:.4f}" for v in values.values())] for name, values in scores.items()]
    assert [row.split() for row in rows] == expected


def test_details_of_documents(
    classifier: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(classifier), "--test", "en=en.train", "--details"]
    assert main(["evaluate", *options]) == 0
    printed = capsys.readouterr().out
    assert main(["evaluate", *options, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["en"]
    assert facts["labels"] == list(tiny.LABELS)
    confusion = np.array(facts["confusion"])
    assert confusion.sum() == len(tiny.ENGLISH)
    assert facts["accuracy"] == confusion.trace() / confusion.sum()
    for label, counts in zip(tiny.LABELS, confusion.tolist(), strict=True):
        assert [label, *map(str, counts)] in [line.split() for line in printed.splitlines()]
        assert facts["per_class"][label]["support"] == sum(counts)


def test_details_of_entities(
    tagger: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tagger), "--test", "en=en.conll", "--details"]
    assert main(["evaluate", *options]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[0] == ["test", "precision", "recall", "f1"]
    assert main(["evaluate", *options, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["en"]
    # Gold: Anna Berg, Carl, Mira Sol, Carl; Oslo, New York.
    assert {kind: s["support"] for kind, s in facts["per_type"].items()} == {"LOC": 2, "PER": 4}
    for kind, scores in facts["per_type"].items():
        row = [kind, *(f"{scores[m]:.4f}" for m in ("precision", "recall", "f1"))]
        assert [*row, str(scores["support"])] in printed


def test_json_without_details_is_scores_alone(
    classifier: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--model", str(classifier), "--test", "en=en.train", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["en"]) == {"accuracy", "macro_f1"}


def test_needs_a_test_file(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", str(classifier)]) == 2
    assert "expected at least one NAME=FILE" in capsys.readouterr().err
