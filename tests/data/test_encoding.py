"""UTF-8 and latin-1: neither is ever read as the other in silence."""

import logging
import random
from pathlib import Path

import corpora
import pytest

from fastadv.data import DataFile, Sentence, as_documents, as_sentences, as_texts, iter_texts

HINT = 'UTF-8 text (or encoding="latin-1", on the command line --encoding latin-1)'
SPANISH = "España NC B-LOC\ny CC O\n\nPeña NC B-PER\n"


def test_latin_1_by_option(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "german.train", "CCAT\tMünchen\n", "latin-1")
    with pytest.raises(ValueError) as raised:
        as_documents(path)
    assert str(raised.value) == f"{path}:1: found byte 0xfc at position 7, expected {HINT}"
    file = DataFile(path, encoding="latin-1")
    assert [d.text for d in as_documents(file)] == ["München"]
    assert [d.text for d in as_texts(file, "classification")] == ["München"]


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_utf_8_is_not_read_as_latin_1(tmp_path: Path, bom: str) -> None:
    path = corpora.write(tmp_path / "german.train", f"{bom}CCAT\teins\nCCAT\tMünchen\n")
    with pytest.raises(ValueError) as raised:
        as_documents(DataFile(path, encoding="latin-1"))
    assert str(raised.value) == (
        f"{path}:{1 if bom else 2}: found UTF-8 text, expected latin-1 as asked for "
        '(leave encoding="latin-1" out)'
    )


def test_latin_1_may_hold_a_line_that_is_utf_8_by_chance(tmp_path: Path) -> None:
    content = "CCAT\tMünchen\nCCAT\tCAMPEÓ»\n"
    path = corpora.write(tmp_path / "x", content, "latin-1")
    assert path.read_bytes().split(b"\n")[1].decode("utf-8") == "CCAT\tCAMPE\u04fb"
    found = as_documents(DataFile(path, encoding="latin-1"))
    assert [d.text for d in found] == ["München", "CAMPEÓ»"]


def test_utf_8_asked_for_is_utf_8(tmp_path: Path) -> None:
    path = corpora.write(tmp_path / "esp.train", SPANISH, "latin-1")
    with pytest.raises(ValueError, match=r"esp.train:1: found byte 0xf1 at position 5, expected"):
        as_sentences(DataFile(path, encoding="utf-8"))


@pytest.mark.parametrize("name", ["esp.train", "ned.testb", "deu.testa", "deu.train.gz"])
def test_the_corpora_in_latin_1(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = corpora.write(tmp_path / name, SPANISH, "latin-1")
    with caplog.at_level(logging.INFO, logger="fastadv.data"):
        found = as_sentences(path)
        assert found == [
            Sentence(("España", "y"), ("B-LOC", "O")),
            Sentence(("Peña",), ("B-PER",)),
        ]
        assert as_texts(path, "ner") == [Sentence(s.words) for s in found]
    assert caplog.messages == [f"{path}: read as latin-1, as the corpus was given out"] * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eng.train", SPANISH.encode("latin-1")),
        ("my.esp.train", SPANISH.encode("latin-1")),
        ("esp.train", SPANISH.replace("Peña", "x").encode() + b"Pe\xf1a NC B-PER\n"),
        ("esp.train", b"Espa\xf1a NC B-LOC\n" + "Peña NC B-PER\n".encode()),
        ("esp.train", b"Espa\xf1a NC O\n" + "Pe\xf1a".encode() + b"\xf1 NC O\n"),
        ("esp.train", b"Espa\xf1a NC O\n\x93 NC O\n"),
        ("esp.train", b"Espa\xf1a es un texto\n"),
        ("esp.train", b"CCAT\tEspa\xf1a\n"),
    ],
    ids=[
        "another name",
        "a name around it",
        "a damaged last line",
        "a damaged first line",
        "a damaged part of a line",
        "Windows' own quotes",
        "no columns",
        "documents",
    ],
)
def test_anything_else_that_is_not_utf_8_is_refused(
    tmp_path: Path, name: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = corpora.write(tmp_path / name, content)
    with caplog.at_level(logging.INFO):
        for read in (as_sentences, lambda data: as_texts(data, "classification")):
            with pytest.raises(ValueError, match=r"found byte 0x.. at position \d+, expected UTF"):
                read(path)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-16", "a UTF-16 byte order mark, expected UTF-8 text"),
        ("utf-16-le", "a NUL byte at position 2, expected text"),
        ("utf-16-be", "a NUL byte at position 1, expected text"),
    ],
)
def test_other_unicode_is_refused(tmp_path: Path, encoding: str, found: str) -> None:
    path = corpora.write(tmp_path / "deu.train", "Haus NN O\nMünchen NE B-LOC\n", encoding)
    for file in (DataFile(path), DataFile(path, encoding="latin-1")):
        with pytest.raises(ValueError, match=f"deu.train:1: found {found}$"):
            as_sentences(file)


def test_a_corpus_without_other_letters_is_said_to_be_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for content in ("casa NC O\n", SPANISH):
        path = corpora.write(tmp_path / "esp.train", content)
        with caplog.at_level(logging.INFO):
            assert as_sentences(path)[0].words[0] in content
        assert not caplog.messages


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """The bytes with one of them, mostly one of a longer character, changed, lost or added."""
    high = [place for place, byte in enumerate(raw) if byte > 127]
    place = rng.choice(high) if rng.random() < 0.8 else rng.randrange(len(raw))
    byte = bytes([rng.randrange(1, 256)])
    return rng.choice(
        [raw[:place] + byte + raw[place + 1 :], raw[:place] + raw[place + 1 :],
         raw[:place] + byte + raw[place:], raw[:place]]
    )  # fmt: skip


def test_damaged_utf_8_never_becomes_latin_1(tmp_path: Path) -> None:
    rng = random.Random(5)
    kinds = set()
    for number in range(400):
        rows = corpora.corpus(6, 40, seed=number)
        raw = damaged(rng, corpora.conll_2002_dutch(rows).encode())
        # One character alone may be told from its damage by nobody.
        if sum(byte > 0xC1 for byte in raw) < 2:
            continue
        path = corpora.write(tmp_path / "ned.train", raw)
        try:
            words = [word for s in iter_texts(path, "ner") for word in s.words]
        except ValueError as error:
            kinds.add("utf-8" if "expected UTF-8" in str(error) else "layout")
            continue
        kinds.add("read")
        assert " ".join(words) in raw.decode("utf-8").replace(" N O", "").replace("\n", " ") or all(
            word in raw.decode("utf-8") for word in words
        )
    assert kinds == {"utf-8", "layout", "read"}


def test_what_is_latin_1_never_becomes_utf_8(tmp_path: Path) -> None:
    for number in range(50):
        rows = corpora.corpus(20, 200, seed=number)
        content = corpora.conll_2002_dutch(rows)
        path = corpora.write(tmp_path / "ned.train", content, "latin-1")
        words = [word for rows in rows for word, _ in rows]
        assert [word for s in iter_texts(path, "ner") for word in s.words] == words
        path = corpora.write(tmp_path / "dutch.train", content, "latin-1")
        with pytest.raises(ValueError, match="expected UTF-8"):
            list(iter_texts(path, "ner"))
        right = DataFile(path, encoding="latin-1")
        assert [word for s in iter_texts(right, "ner") for word in s.words] == words
