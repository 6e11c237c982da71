"""The sample corpora hold what the demo and the documentation say."""

from __future__ import annotations

from collections import Counter

import pytest

from fastadv import samples
from fastadv.data import as_documents, as_sentences, as_texts
from fastadv.tasks.metrics import entities

TOPICS = {
    "news": {"BUSINESS", "POLITICS", "SCIENCE", "SPORT"},
    "software": {"GAMES", "MEDIA", "NET", "SCIENCE"},
}


UNLABELED = {"news": 80, "software": 24}


@pytest.mark.parametrize("sample", TOPICS)
@pytest.mark.parametrize(
    ("name", "count"),
    [("en.train", 160), ("en.dev", 40)]
    + [(f"{lang}.test", 40) for lang in ("en", *samples.DOCUMENT_LANGUAGES)],
)
def test_labelled_documents_are_balanced(sample: str, name: str, count: int) -> None:
    documents = as_documents(samples.documents(sample, name))
    assert Counter(d.label for d in documents) == dict.fromkeys(TOPICS[sample], count // 4)


@pytest.mark.parametrize("sample", TOPICS)
def test_no_text_stands_twice(sample: str) -> None:
    files = [samples.documents(sample, f"en.{part}") for part in ("train", "dev")]
    for lang in samples.DOCUMENT_LANGUAGES:
        files += [samples.documents(sample, f"{lang}.{part}") for part in ("unlabeled", "test")]
    texts = [d.text for file in files for d in as_texts(file, "classification")]
    assert len(texts) == 160 + 40 + 4 * (UNLABELED[sample] + 40)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("sample", TOPICS)
@pytest.mark.parametrize("language", samples.DOCUMENT_LANGUAGES)
def test_tests_are_line_by_line_translations(sample: str, language: str) -> None:
    english = as_documents(samples.documents(sample, "en.test"))
    other = as_documents(samples.documents(sample, f"{language}.test"))
    assert [d.label for d in english] == [d.label for d in other]


@pytest.mark.parametrize(
    ("name", "count"), [("en.train", 60), ("en.test", 20), ("de.test", 20), ("es.test", 20)]
)
def test_entity_files(name: str, count: int) -> None:
    sentences = as_sentences(samples.entities(name))
    assert len(sentences) == count
    kinds = Counter(kind for s in sentences for kind, _, _ in entities(s.tags))
    assert kinds.keys() == {"PER", "ORG", "LOC", "MISC"}
    assert min(kinds.values()) >= (20 if name == "en.train" else 8)
