"""The labels that examples imply."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastadv.tasks.registry import task_of

CLASSIFICATION = task_of("classification")


def test_classes_and_tags_in_a_stable_order() -> None:
    assert CLASSIFICATION.labels_of([("a", "y"), ("b", "x"), ("c", "y")]) == ("x", "y")
    sentences = [(("a", "b"), ("B-PER", "O")), (("c",), ("B-LOC",))]
    assert task_of("ner").labels_of(sentences) == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


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
        task_of(task).labels_of(path)


def test_too_few_in_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="the labelled examples: found the one label 'x'"):
        CLASSIFICATION.labels_of([("a", "x")])
    with pytest.raises(ValueError, match="the labelled examples: found no label"):
        CLASSIFICATION.labels_of(["a"])
