"""Every corpus in its own layout, with its quirks, to its official size."""

import logging
from pathlib import Path

import corpora
import pytest
from data_helpers import shared_data

from fastadv.data import (
    Document,
    Sentence,
    as_documents,
    as_sentences,
    as_texts,
    read_pairs,
)

ENGLISH = ["-DOCSTART- -X- -X- O", "-DOCSTART- -X- O O", "-DOCSTART- O O O", "-DOCSTART-\t-X-\tO"]


def expected(sentences: list[corpora.Rows]) -> list[Sentence]:
    return [Sentence(tuple(w for w, _ in rows), tuple(t for _, t in rows)) for rows in sentences]


@pytest.mark.parametrize(
    ("name", "sentences", "words"),
    [
        ("eng.train", 14041, 203621),
        ("eng.testa", 3250, 51362),
        ("eng.testb", 3453, 46435),
    ],
)
def test_conll_2003_english(tmp_path: Path, name: str, sentences: int, words: int) -> None:
    rows = corpora.corpus(sentences, words)
    start = ENGLISH[words % len(ENGLISH)]
    path = corpora.write(tmp_path / name, corpora.conll_2003(rows, start))
    found = as_sentences(path)
    assert (len(found), sum(len(s.words) for s in found)) == (sentences, words)
    assert found == expected(rows)


@pytest.mark.parametrize("start", ENGLISH)
def test_document_starts_of_any_columns(tmp_path: Path, start: str) -> None:
    rows = corpora.corpus(40, 300)
    path = corpora.write(tmp_path / "eng.testa", corpora.conll_2003(rows, start))
    assert as_sentences(path) == expected(rows)
    assert as_texts(path, "ner") == [Sentence(s.words) for s in expected(rows)]


@pytest.mark.parametrize(
    ("name", "sentences", "words"),
    [
        ("deu.train", 12152, 206931),
        ("deu.testa", 2867, 51444),
        ("deu.testb", 3005, 51943),
    ],
)
def test_conll_2003_german_in_latin_1(
    tmp_path: Path, name: str, sentences: int, words: int, caplog: pytest.LogCaptureFixture
) -> None:
    rows = corpora.corpus(sentences, words)
    path = corpora.write(tmp_path / name, corpora.conll_2003_german(rows), "latin-1")
    with caplog.at_level(logging.INFO, logger="fastadv.data"):
        found = as_sentences(path)
    assert (len(found), sum(len(s.words) for s in found)) == (sentences, words)
    assert found == expected(rows)
    assert [(r.levelname, r.name) for r in caplog.records] == [("INFO", "fastadv.data")]
    assert f"{name}: read as latin-1" in caplog.text


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize(
    ("name", "sentences", "words"), [("esp.train", 8323, 264715), ("esp.testb", 1517, 51533)]
)
def test_conll_2002_spanish(
    tmp_path: Path, name: str, sentences: int, words: int, encoding: str
) -> None:
    rows = corpora.corpus(sentences, words - 1, longest=1238)
    path = corpora.write(tmp_path / name, corpora.conll_2002_spanish(rows), encoding)
    found = as_sentences(path)
    assert (len(found), sum(len(s.words) for s in found)) == (sentences, words)
    assert max(len(s.words) for s in found) >= 1238
    wrong = [s for s, right in zip(found, expected(rows), strict=True) if s != right]
    (place,) = [s.words.index("ilegal") for s in wrong]
    assert len(wrong) == 1 and wrong[0].tags is not None
    assert wrong[0].tags[place - 1 : place + 1] == ("O", "B-ORG")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize(
    ("name", "sentences", "words"), [("ned.train", 15806, 202644), ("ned.testb", 5195, 68875)]
)
def test_conll_2002_dutch(
    tmp_path: Path, name: str, sentences: int, words: int, encoding: str
) -> None:
    rows = corpora.corpus(sentences, words)
    path = corpora.write(tmp_path / name, corpora.conll_2002_dutch(rows), encoding)
    found = as_sentences(path)
    assert (len(found), sum(len(s.words) for s in found)) == (sentences, words)
    assert found == expected(rows)


def test_universal_ner_of_three_and_five_columns(tmp_path: Path) -> None:
    rows = corpora.corpus(500, 6000)
    path = corpora.write(tmp_path / "en.iob2", corpora.universal_ner(rows))
    assert as_sentences(path) == expected(rows)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize(
    ("name", "documents"),
    [("english.train.1000", 1000), ("russian.train.10000", 5216), ("spanish.train.10000", 9458)],
)
def test_mldoc(tmp_path: Path, name: str, documents: int, literal: bool) -> None:
    path = corpora.write(tmp_path / name, corpora.mldoc(documents, literal))
    plain = corpora.mldoc(documents).splitlines()
    right = [Document(text, label) for label, text in (line.split("\t") for line in plain)]
    assert len(right) == documents
    assert as_documents(path) == right
    assert as_texts(path, "classification") == [Document(d.text) for d in right]


def loosened(content: str, form: str) -> str:
    """The same sentences in another of the forms that files are found in."""
    match form:
        case "crlf":
            return content.replace("\n", "\r\n")
        case "byte order mark":
            return "\ufeff" + content
        case "no final newline":
            return content.rstrip("\n")
        case "trailing spaces":
            return content.replace("\n", "  \n")
        case "trailing tab":
            return content.replace("\n", "\t\n")
        case "tabs":
            return content.replace(" ", "\t")
        case "two spaces":
            return content.replace(" ", "  ")
        case "blank lines":
            return "\n\n" + content.replace("\n\n", "\n \t\n\n")
    raise ValueError(form)


@pytest.mark.parametrize(
    "form",
    ["crlf", "byte order mark", "no final newline", "trailing spaces", "trailing tab", "tabs",
     "two spaces", "blank lines"],
)  # fmt: skip
@pytest.mark.parametrize(
    "layout", [corpora.conll_2003, corpora.conll_2003_german, corpora.conll_2002_dutch]
)
def test_forms_of_column_files(tmp_path: Path, layout: object, form: str) -> None:
    rows = corpora.corpus(50, 400)
    assert callable(layout)
    path = corpora.write(tmp_path / "file", loosened(layout(rows), form))
    assert as_sentences(path) == expected(rows)
    assert as_texts(path, "ner") == [Sentence(s.words) for s in expected(rows)]
    joined = [Document(" ".join(s.words)) for s in expected(rows)]
    assert as_texts(path, "classification") == joined


@pytest.mark.parametrize("form", ["crlf", "byte order mark", "no final newline"])
def test_forms_of_universal_ner(tmp_path: Path, form: str) -> None:
    rows = corpora.corpus(50, 400)
    path = corpora.write(tmp_path / "file", loosened(corpora.universal_ner(rows), form))
    assert as_sentences(path) == expected(rows)


LANGUAGES = ("en", "de", "fr", "it", "ja", "ru", "es", "zh", "nl")
SIZES = {
    "train": (4606, 1399, 2721, 4079, 747, 457, 340, 111, 40),
    "dev": (867, 281, 464, 773, 158, 88, 55, 26, 6),
    "test": (2365, 725, 1498, 2114, 375, 242, 189, 63, 19),
}


@pytest.mark.parametrize("split", SIZES)
def test_real_documents_to_the_last(split: str) -> None:
    folder = shared_data("debian_topics")
    for language, count in zip(LANGUAGES, SIZES[split], strict=True):
        documents = as_documents(folder / f"{language}.{split}")
        assert len(documents) == count
        assert {d.label for d in documents} <= {"GAMES", "MEDIA", "NET", "SCIENCE"}
        assert as_texts(folder / f"{language}.{split}", "classification") == [
            Document(d.text) for d in documents
        ]


def test_real_sentences_of_every_file() -> None:
    for path in sorted(shared_data("uner").rglob("*.iob2")):
        rows = [line for line in path.read_text("utf-8").split("\n") if line[:1].isdigit()]
        found = as_sentences(path)
        assert sum(len(s.words) for s in found) == len(rows)


def test_real_pairs() -> None:
    for path in sorted(shared_data("tatoeba").glob("*.eng")):
        other = path.with_suffix("." + path.name.split(".")[1].removesuffix("-eng"))
        source, target = read_pairs(path, other)
        assert len(source) == len(target) == 1000


def test_real_packed_text() -> None:
    path = shared_data("text", "ru.txt.xz")
    texts = as_texts(path, "classification")
    assert len(texts) > 3000 and all(d.text.strip() for d in texts)
