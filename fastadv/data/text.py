"""Plain text files, one text a line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fastadv.data.records import Document


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers from 1, without their ends.

    Only a line feed, with or without a carriage return before it, ends a line: text in the wild
    holds the other characters that `str.splitlines` splits at. A byte order mark is dropped.

    Raises:
        ValueError: the file is missing, or a line is not UTF-8; the message names file and line.
    """
    if not Path(path).is_file():
        raise ValueError(f"{os.fspath(path)}: found no file of that name, expected a data file")
    with Path(path).open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{raw[error.start]:02x} at place {error.start + 1}"
                raise ValueError(malformed(path, number, found, "UTF-8 text")) from error
            yield number, line.removesuffix("\n").removesuffix("\r")


def malformed(path: str | os.PathLike[str], number: int, found: str, expected: str) -> str:
    """The one sentence with which every reader here refuses a line."""
    return f"{os.fspath(path)}:{number}: found {found}, expected {expected}"


def read_texts(path: str | os.PathLike[str]) -> list[Document]:
    """Read a file of one text a line as unlabelled documents; blank lines are skipped.

    Raises:
        ValueError: the file is missing, is not UTF-8, or holds no text.
    """
    texts = [Document(line) for _, line in read_lines(path) if line.strip()]
    if not texts:
        raise ValueError(f"{os.fspath(path)}: found no text, expected one a line")
    return texts
