"""The labels that examples imply."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastadv.tasks.labels import labels_of


def test_classes_and_tags_in_a_stable_order() -> None:
    assert labels_of([("a", "y"), ("b", "x"), ("c", "y")], "classification") == ("x", "y")
    sentences = [(("a", "b"), ("B-PER", "O")), (("c",), ("B-LOC",))]
    assert labels_of(sentences, "ner") == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("classification", "x\tone\nx\ttwo\n", "found the one label 'x', expected at least two"),
        ("ner", "one O\ntwo O\n", "found no entity, expected tags such as B-PER beside O"),
    ],
)
def test_too_few_are_refused_by_file(task: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}: {message}"):
        labels_of(path, task)


def test_too_few_in_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="the labelled examples: found the one label 'x'"):
        labels_of([("a", "x")], "classification")
    with pytest.raises(ValueError, match="the labelled examples: found no label"):
        labels_of(["a"], "classification")
