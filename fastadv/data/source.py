"""The lines of a file, a pipe or standard input: unpacked, decoded, numbered, read once."""

from __future__ import annotations

import gzip
import io
import itertools
import lzma
import os
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastadv.data.data_file import STANDARD_INPUT
from fastadv.data.encoding import NotText, is_latin_1_by_convention, line_decoder

MAX_LINE = 1 << 24
"""The most bytes of a line, its end included. Memory stays bounded whatever is read."""

_AHEAD_LINES, _AHEAD_CHARACTERS = 1000, 1 << 22
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\0"
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class Lines:
    """The lines of one source, which can be read only once.

    Attributes:
        name: The name of the source, for messages.
        number: The number of the line given last, from 1; 0 before the first.
    """

    def __init__(self, name: str, lines: Iterator[str]) -> None:
        self.name, self.number = name, 0
        self._lines = lines
        self._ahead: deque[str] = deque()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Numbers and lines without their ends."""
        for line in self.with_ends():
            yield self.number, without_end(line)

    def with_ends(self) -> Iterator[str]:
        """Lines as they are in the source."""
        while True:
            line = self._ahead.popleft() if self._ahead else next(self._lines, None)
            if line is None:
                return
            self.number += 1
            yield line

    def ahead(self) -> Iterator[str]:
        """The next lines without their ends, at most some thousand, and without taking them."""
        characters = 0
        for index in range(_AHEAD_LINES):
            if index == len(self._ahead):
                line = next(self._lines, None)
                if line is None or characters > _AHEAD_CHARACTERS:
                    if line is not None:
                        self._ahead.append(line)
                    return
                self._ahead.append(line)
            characters += len(self._ahead[index])
            yield without_end(self._ahead[index])

    def malformed(self, number: int, found: str, expected: str) -> ValueError:
        """The error with which every reader here refuses a line."""
        return ValueError(f"{self.name}:{number}: found {found}, expected {expected}")


def without_end(line: str) -> str:
    """A line without the line feed, or carriage return and line feed, at its end."""
    return line.removesuffix("\n").removesuffix("\r")


def quoted(text: str) -> str:
    """A text for a message: in quotes, on one line, not too long."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def shown_name(path: str | os.PathLike[str]) -> str:
    """A path for a message: on one line."""
    name = os.fspath(path)
    if name == STANDARD_INPUT:
        return "standard input"
    return name if name.isprintable() else repr(name)


def open_lines(path: str | os.PathLike[str], encoding: str = "utf-8") -> Lines:
    """The lines of a source; nothing is opened before the first is asked for.

    Only a line feed, with or without a carriage return before it, ends a line: real text holds the
    other characters that `str.splitlines` splits at.

    Raises:
        ValueError: While lines are taken: there is no such file, it cannot be read, is packed and
            damaged, or a line is not text in this encoding; the message names file and line.
    """
    return Lines(shown_name(path), _decoded(path, encoding))


def is_latin_1_corpus(path: str | os.PathLike[str]) -> bool:
    """Whether the file is latin-1 by its corpus's own convention; a pipe, read once, never is."""
    if path == STANDARD_INPUT or not _is_file(path):
        return False
    return is_latin_1_by_convention(path, _raw_lines(path))


def _decoded(path: str | os.PathLike[str], encoding: str) -> Iterator[str]:
    decode = line_decoder(encoding)
    for number, raw in enumerate(_raw_lines(path), 1):
        try:
            yield decode(raw)
        except NotText as error:
            raise ValueError(f"{shown_name(path)}:{number}: {error}") from None


def _raw_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    name = shown_name(path)
    with _opened(path) as file:
        for number in itertools.count(1):
            try:
                raw = file.readline(MAX_LINE + 1)
            except _DAMAGED:
                found, expected = "a packed file that is damaged", "one that unpacks"
                raise ValueError(f"{name}:{number}: found {found}, expected {expected}") from None
            except OSError as error:
                raise _unreadable(name, error) from None
            if not raw:
                return
            if len(raw) > MAX_LINE:
                found = f"a line of more than {MAX_LINE >> 20} MiB"
                raise ValueError(f"{name}:{number}: found {found}, expected text by lines")
            yield raw


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    if path == STANDARD_INPUT:
        file = getattr(sys.stdin, "buffer", None)
        if file is None:
            raise ValueError("standard input: found none, expected text")
        with _peekable(file) as peekable:
            yield _unpacked(peekable, "standard input")
        return
    name = shown_name(path)
    try:
        if Path(path).is_dir():
            raise ValueError(f"{name}: found a folder, expected a data file")
        if not Path(path).exists():
            raise ValueError(f"{name}: found no file of that name, expected a data file")
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(name, error) from None
    with os.fdopen(descriptor, "rb") as file:
        yield _unpacked(file, name)


@contextmanager
def _peekable(file: BinaryIO) -> Iterator[io.BufferedReader]:
    """Standard input as the interpreter made it, or its replacement; it stays open."""
    if isinstance(file, io.BufferedReader):
        yield file
        return
    buffered: Any = io.BufferedReader(cast(io.RawIOBase, file))
    try:
        yield buffered
    finally:
        # A buffer that is garbage-collected closes the file below it.
        if not buffered.closed:
            buffered.detach()


def _unpacked(file: io.BufferedReader, name: str) -> BinaryIO:
    """The file itself, or what gzip or xz packed into it: no text begins as they do."""
    try:
        head = file.peek(len(_XZ))
    except OSError as error:
        raise _unreadable(name, error) from None
    if head.startswith(_GZIP):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if head.startswith(_XZ):
        return cast(BinaryIO, lzma.LZMAFile(file))
    return file


def _is_file(path: str | os.PathLike[str]) -> bool:
    try:
        return Path(path).is_file()
    except OSError:
        return False


def _unreadable(name: str, error: OSError) -> ValueError:
    reason = error.strerror or type(error).__name__
    return ValueError(f"{name}: found a file that cannot be read ({reason}), expected a data file")
