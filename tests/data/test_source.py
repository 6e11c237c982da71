"""Where lines come from: files, pipes, standard input, packed or not; and what is refused."""

import errno
import gzip
import io
import itertools
import lzma
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastadv.data import DataFile, Document, as_documents, as_sentences, as_texts, iter_texts
from fastadv.data.source import MAX_LINE, open_lines

DOCUMENTS = "CCAT\teins\nMCAT\tMünchen\n"
READ = [Document("eins", "CCAT"), Document("München", "MCAT")]
READERS: list[Callable[[object], object]] = [
    as_documents,
    as_sentences,
    lambda data: as_texts(data, "classification"),
    lambda data: as_texts(data, "ner"),
]


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def refusal(data: object, read: Callable[[object], object] = as_documents) -> str:
    with pytest.raises(ValueError) as raised:
        read(data)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_files(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "german.train"
    path.write_bytes(pack(DOCUMENTS.encode()))
    assert as_documents(path) == READ
    assert as_texts(path, "classification") == [Document(d.text) for d in READ]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_damaged_packed_files(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(DOCUMENTS.encode() * 5000)
    path = tmp_path / "german.train"
    middle = len(packed) // 2
    for damaged in (packed[:middle], packed[:middle] + b"\xff" * 40 + packed[middle + 40 :]):
        path.write_bytes(damaged)
        assert "found a packed file that is damaged, expected one that unpacks" in refusal(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]) -> None:
    stdin(monkeypatch, pack(DOCUMENTS.encode()))
    assert list(iter_texts("-", "classification")) == [Document("eins"), Document("München")]
    assert not sys.stdin.buffer.closed
    stdin(monkeypatch, pack(b'{"text": "a"}\n'))
    assert list(iter_texts(DataFile("-"), "classification")) == [Document("a")]
    stdin(monkeypatch, pack(DOCUMENTS.encode()))
    assert as_documents("-") == READ


def test_messages_name_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"CCAT\teins\nzwei\n")
    assert refusal("-").startswith("standard input:2: found 'zwei'")
    stdin(monkeypatch, b"")
    assert refusal("-") == "standard input: found no document, expected lines of LABEL<TAB>text"
    monkeypatch.setattr(sys, "stdin", None)
    assert refusal("-") == "standard input: found none, expected text"


def feed(path: Path, content: bytes) -> threading.Thread:
    thread = threading.Thread(target=path.write_bytes, args=(content,))
    thread.start()
    return thread


def test_pipes(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    thread = feed(path, DOCUMENTS.encode() * 20_000)
    assert sum(d.text == "München" for d in iter_texts(path, "classification")) == 20_000
    thread.join()
    thread = feed(path, b"EU NNP I-ORG\nrejects VBZ O\n")
    assert [s.words for s in iter_texts(path, "ner")] == [("EU", "rejects")]
    thread.join()


def test_an_example_is_given_before_the_next_line_comes(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\n")
    texts = iter_texts(f"/dev/fd/{reader}", "classification")
    assert next(texts) == Document("one")
    os.write(writer, b"three\n")
    os.close(writer)
    assert [d.text for d in texts] == ["two", "three"]
    os.close(reader)


class Repeated(io.RawIOBase):
    """One example over and over, about so many bytes in all, made as they are read."""

    def __init__(self, example: bytes, size: int) -> None:
        self._block, self.left = example * (8192 // len(example)), size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self.left < 0:
            return 0
        assert len(buffer) >= len(self._block)
        buffer[: len(self._block)] = self._block
        self.left -= len(self._block)
        return len(self._block)


@pytest.mark.parametrize(
    ("example", "task"),
    [
        (b"ein Satz mit Text und noch mehr Text\n", "classification"),
        (b"CCAT\tein Satz mit Text und noch mehr Text\n", "classification"),
        (b"ein O\nSatz O\nmit O\nText B-PER\nund O\n\n", "ner"),
        (b'{"text": "ein Satz mit Text und noch mehr Text"}\n', "classification"),
    ],
)
def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch, example: bytes, task: str) -> None:
    class Stream:
        buffer = io.BufferedReader(Repeated(example, 1 << 20), 8192)

    monkeypatch.setattr(sys, "stdin", Stream)
    texts: Iterator[object] = iter(iter_texts("-", task))
    for _ in itertools.islice(texts, 1000):
        pass
    tracemalloc.start()
    count = sum(1 for _ in texts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 15_000
    # The buffer and one example, of a MiB that passes by.
    assert peak < 1 << 16


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"x" * (MAX_LINE + 1))
    assert refusal(path, READERS[2]) == (
        f"{path}:1: found a line of more than 16 MiB, expected text by lines"
    )


def test_a_line_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Repeated(b"x", 4 * MAX_LINE)

    class Stream:
        buffer = io.BufferedReader(stream, 8192)

    monkeypatch.setattr(sys, "stdin", Stream)
    assert "found a line of more than 16 MiB" in refusal("-")
    assert stream.left > 2 * MAX_LINE


@pytest.mark.parametrize("read", READERS)
def test_what_cannot_be_read(tmp_path: Path, read: Callable[[object], object]) -> None:
    missing = tmp_path / "missing"
    assert refusal(missing, read) == (
        f"{missing}: found no file of that name, expected a data file"
    )
    assert refusal(str(missing) + "\0", read).endswith("no file of that name, expected a data file")
    assert refusal(tmp_path, read) == f"{tmp_path}: found a folder, expected a data file"
    name = "n" * 300
    assert "(File name too long), expected a data file" in refusal(name, read)
    empty = tmp_path / "empty"
    for content in (b"", b"\n\n", b"\xef\xbb\xbf", gzip.compress(b"")):
        empty.write_bytes(content)
        assert refusal(empty, read).startswith(f"{empty}: found no ")


def test_a_file_one_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    path.write_text(DOCUMENTS)

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Not by the file's own mode: root may read everything.
    monkeypatch.setattr(os, "open", refused)
    assert refusal(path) == (
        f"{path}: found a file that cannot be read (Permission denied), expected a data file"
    )


def test_a_file_that_fails_in_reading() -> None:
    # Reading another process's memory from address 0 fails, though opening it does not.
    assert refusal("/proc/self/mem") == (
        "/proc/self/mem: found a file that cannot be read (Input/output error), "
        "expected a data file"
    )


def test_a_name_with_a_line_end_stays_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb"
    assert "a\\nb" in refusal(path)


def test_lines_ahead_stay() -> None:
    lines = open_lines(Path(__file__))
    ahead = list(lines.ahead())
    assert list(lines.ahead()) == ahead and lines.number == 0
    taken = list(lines)
    assert [line for _, line in taken] == ahead == Path(__file__).read_text("utf-8").splitlines()
    assert [number for number, _ in taken] == list(range(1, len(ahead) + 1))
    assert list(lines.ahead()) == []


def test_lines_ahead_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_text("\n" * 5000)
    lines = open_lines(path)
    assert len(list(lines.ahead())) == 1000
    path.write_text(("x" * (1 << 20) + "\n") * 10)
    lines = open_lines(path)
    assert len(list(lines.ahead())) == 4
    assert sum(1 for _ in lines) == 10
