"""Files damaged at random, of every format: examples that hold what they promise, or one line."""

import gzip
import lzma
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import corpora
import pytest

from fastadv.data import (
    DataFile,
    Document,
    Sentence,
    as_documents,
    as_sentences,
    iter_texts,
    read_pairs,
)

ROWS = corpora.corpus(8, 60)
CSV = 'id,text,label\n1,"a, ""b""",A\n2,"two\nlines é",B\n3,plain,A\n4,東京,B\n'
DOCUMENTS_JSONL = '{"text": "a é", "label": "A"}\n\n{"text": "\\u6771", "label": "B", "n": [1]}\n'
SENTENCES_JSONL = '{"tokens": ["é", "b"], "tags": ["I-X", "O"]}\n{"tokens": ["c"], "tags": ["O"]}\n'
FILES: dict[str, bytes] = {
    "eng.train": corpora.conll_2003(ROWS).encode(),
    "deu.train": corpora.conll_2003_german(ROWS).encode("latin-1"),
    "esp.train": corpora.conll_2002_spanish(ROWS).encode(),
    "ned.train": corpora.conll_2002_dutch(ROWS).encode("latin-1"),
    "en.iob2": corpora.universal_ner(ROWS).encode(),
    "english.train.1000": corpora.mldoc(12).encode(),
    "german.train.1000": corpora.mldoc(12, literal=True).encode(),
    "de.txt": "Ein Satz.\nNoch ein Satz, länger.\n\n東京\n".encode(),
    "a.csv": CSV.encode(),
    "b": CSV.replace(",", ";").encode(),
    "c": CSV.replace(",", "\t").encode(),
    "a.jsonl": DOCUMENTS_JSONL.encode(),
    "d": SENTENCES_JSONL.encode(),
    "en.txt.gz": gzip.compress(corpora.mldoc(12).encode(), mtime=0),
    "en.txt.xz": lzma.compress(corpora.conll_2003(ROWS).encode()),
}
ALPHABET = [b"\n", b"\r", b"\t", b" ", b",", b'"', b";", b"'", b"{", b"}", b"[", b"\\", b"#", b"O",
            b"\0", b"\xff", b"\xfe", b"\xc3", b"\xa9", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"1\t",
            b"\x1f\x8b", b"\\ud800", b"b'\\xc3", "\u2028".encode(), b"NaN",
            b"-DOCSTART-"]  # fmt: skip
Mutation = Callable[[random.Random, bytes], bytes]


def flipped(rng: random.Random, raw: bytes) -> bytes:
    place = rng.randrange(len(raw))
    return raw[:place] + bytes([raw[place] ^ (1 << rng.randrange(8))]) + raw[place + 1 :]


def shortened(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw))]


def inserted(rng: random.Random, raw: bytes) -> bytes:
    place = rng.randrange(len(raw) + 1)
    return raw[:place] + rng.choice(ALPHABET) * rng.choice([1, 1, 1, 3000]) + raw[place:]


def scrambled(rng: random.Random, raw: bytes) -> bytes:
    place = rng.randrange(len(raw))
    return raw[:place] + rng.randbytes(rng.randrange(1, 9)) + raw[place + 8 :]


def line_by_line(change: Callable[[random.Random, list[bytes], int], None]) -> Mutation:
    def mutation(rng: random.Random, raw: bytes) -> bytes:
        lines = raw.split(b"\n")
        change(rng, lines, rng.randrange(len(lines)))
        return b"\n".join(lines)

    return mutation


def without_line(_: random.Random, lines: list[bytes], place: int) -> None:
    del lines[place]


def with_line_twice(_: random.Random, lines: list[bytes], place: int) -> None:
    lines.insert(place, lines[place])


def with_lines_swapped(rng: random.Random, lines: list[bytes], place: int) -> None:
    other = rng.randrange(len(lines))
    lines[place], lines[other] = lines[other], lines[place]


def without_column(rng: random.Random, lines: list[bytes], place: int) -> None:
    separator = rng.choice([b" ", b"\t", b",", b";"])
    columns = lines[place].split(separator)
    del columns[rng.randrange(len(columns))]
    lines[place] = separator.join(columns)


def of_another_file(rng: random.Random, raw: bytes) -> bytes:
    other = rng.choice(list(FILES.values())).split(b"\n")
    lines = raw.split(b"\n")
    lines[rng.randrange(len(lines))] = rng.choice(other)
    return b"\n".join(lines)


MUTATIONS: list[Mutation] = [
    flipped, shortened, inserted, scrambled, of_another_file,
    line_by_line(without_line), line_by_line(with_line_twice),
    line_by_line(with_lines_swapped), line_by_line(without_column),
]  # fmt: skip


def check_labelled(example: Document | Sentence) -> None:
    if isinstance(example, Document):
        assert isinstance(example.label, str) and example.label.strip()
        return
    assert example.tags is not None and len(example.tags) == len(example.words)
    for before, tag in pairwise(("O", *example.tags)):
        assert tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2)
        assert tag[:2] != "I-" or before[2:] == tag[2:]


def check_text(example: Document | Sentence) -> None:
    words = (example.text,) if isinstance(example, Document) else example.words
    for word in words:
        assert isinstance(word, str)
        word.encode("utf-8")
    assert getattr(example, "label", None) is None and getattr(example, "tags", None) is None


def outcome(file: DataFile) -> str:
    """Read the file in every way, hold what comes to what is promised, and say what came."""
    found = []
    for read, check in (
        (as_documents, check_labelled),
        (as_sentences, check_labelled),
        (lambda data: iter_texts(data, "classification"), check_text),
        (lambda data: iter_texts(data, "ner"), check_text),
    ):
        begin = time.perf_counter()
        count = 0
        try:
            for example in read(file):  # type: ignore[operator]
                check(example)
                count += 1
        except ValueError as error:
            message = str(error)
            assert type(error) is ValueError, type(error)
            assert len(message.splitlines()) == 1 and len(message) < 600
            assert message.startswith(f"{file.path}:") and "found " in message
            assert ", expected " in message
            found.append("refused")
        else:
            assert count, "no example and no word about it"
            found.append("read")
        assert time.perf_counter() - begin < 5
    return " ".join(found)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    path = tmp_path / name
    path.write_bytes(FILES[name])
    assert "read" in outcome(DataFile(path))
    outcomes = set()
    for _ in range(150):
        raw = FILES[name]
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            raw = rng.choice(MUTATIONS)(rng, raw) or b"\n"
        path.write_bytes(raw)
        encoding = rng.choice([None, None, "utf-8", "latin-1"])
        formats = [None, None, None, "documents", "columns", "lines", "csv", "tsv", "jsonl"]
        outcomes.add(outcome(DataFile(path, rng.choice(formats), encoding)))  # type: ignore[arg-type]
    assert len(outcomes) > 1


def test_random_bytes(tmp_path: Path) -> None:
    rng = random.Random(3)
    path = tmp_path / "file"
    for _ in range(300):
        path.write_bytes(b"".join(rng.choices([*ALPHABET, b"a", b"b", b"text", b"label"], k=40)))
        outcome(DataFile(path))
        path.write_bytes(rng.randbytes(rng.randrange(200)))
        outcome(DataFile(path))


@pytest.mark.parametrize("name", ["eng.train", "english.train.1000", "de.txt"])
def test_what_is_read_stands_in_the_file(tmp_path: Path, name: str) -> None:
    """UTF-8 that is damaged is refused; what is not refused is read to the letter."""
    rng = random.Random(name)
    path = tmp_path / name
    kinds = set()
    for _ in range(200):
        raw = rng.choice(MUTATIONS)(rng, FILES[name]) or b"\n"
        path.write_bytes(raw)
        try:
            examples = list(iter_texts(path, "ner" if name == "eng.train" else "classification"))
        except ValueError:
            kinds.add("refused")
            continue
        content = raw.decode("utf-8")
        for example in examples:
            words = (example.text,) if isinstance(example, Document) else example.words
            assert all(word in content for word in words)
        kinds.add("read")
    assert kinds == {"read", "refused"}


def test_damaged_pairs(tmp_path: Path) -> None:
    rng = random.Random(4)
    source, target = tmp_path / "de", tmp_path / "en"
    raw = "eins\nzwei é\n\nvier\n".encode()
    for _ in range(300):
        source.write_bytes(rng.choice(MUTATIONS)(rng, raw))
        target.write_bytes(rng.choice(MUTATIONS)(rng, raw))
        try:
            left, right = read_pairs(source, target)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1 and str(error).startswith(str(tmp_path))
            continue
        assert len(left) == len(right) > 0 and all(text.strip() for text in left + right)
