"""The format of a file, from its first lines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePath

from fastadv.data.conll import is_column_line
from fastadv.data.data_file import Format
from fastadv.data.delimited import is_header
from fastadv.data.documents import is_document_line
from fastadv.data.fields import Columns
from fastadv.data.source import Lines

_OBJECT = re.compile(r'\{\s*(?:"|\}|$)')
_ARRAY = re.compile(r'\[\s*(?:[{\["]|$)')
_PACKED = (".gz", ".xz")
_BY_SUFFIX: dict[str, Format] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
}  # fmt: skip
_VOTES = 50


def recognise(lines: Lines, path: str | os.PathLike[str], columns: Columns = None) -> Format | None:
    """The format of a source that names none; None for plain text.

    The first line with content decides, so that what is malformed further on is refused and not
    taken for something else. Only a word, a tab and a tag may be a labelled document as well: there
    the next lines decide.

    Raises:
        ValueError: The file is a JSON array.
    """
    number, first, commented = _first(lines)
    if first is None:
        return _by_suffix(path)
    if _ARRAY.match(first.lstrip()) and not is_column_line(first):
        raise lines.malformed(
            number, "a JSON array", "one JSON object a line (jq -c '.[]' FILE writes them so)"
        )
    if _OBJECT.match(first.lstrip()) and not is_column_line(first):
        return "jsonl"
    if by_suffix := _by_suffix(path):
        return by_suffix
    if commented:
        return "columns" if is_column_line(first) else None
    if is_header(first, "\t", columns):
        return "tsv"
    if is_header(first, ",", columns) or is_header(first, ";", columns):
        return "csv"
    if columns:
        return "tsv" if "\t" in first else "csv"
    if is_column_line(first):
        return "documents" if _is_documents(first, lines) else "columns"
    return "documents" if is_document_line(first) else None


def _first(lines: Lines) -> tuple[int, str | None, bool]:
    """The first line with content that is no comment, its number, whether comments precede it."""
    commented = False
    for number, line in enumerate(lines.ahead(), lines.number + 1):
        comment = line.startswith("#") and not is_column_line(line)
        commented |= comment
        if line.strip() and not comment:
            return number, line, commented
    return 0, None, commented


def _by_suffix(path: str | os.PathLike[str]) -> Format | None:
    name = PurePath(path)
    if name.suffix in _PACKED:
        name = name.with_suffix("")
    return _BY_SUFFIX.get(name.suffix.lower())


def _is_documents(first: str, lines: Lines) -> bool:
    if not is_document_line(first):
        return False
    votes = [is_column_line(line) for line in islice(_content(lines), _VOTES)]
    return 2 * sum(votes) <= len(votes)


def _content(lines: Lines) -> Iterator[str]:
    return (line for line in lines.ahead() if line.strip())
