"""Translations in two files, line by line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import zip_longest

from fastadv.data.data_file import STANDARD_INPUT, DataFile, as_data_file, is_hub_name
from fastadv.data.documents import document_of_line
from fastadv.data.formats import recognise
from fastadv.data.source import Lines, open_lines


def read_pairs(
    source: str | os.PathLike[str] | DataFile, target: str | os.PathLike[str] | DataFile
) -> tuple[list[str], list[str]]:
    """Read two files of one text per line; the nth line of one is the translation of the other's.

    A pair of which one line is blank is left out. In a file of `LABEL<TAB>text` lines the labels
    are dropped; `format="lines"` takes such lines as they are.

    Returns:
        The texts of the one and of the other, equally many.

    Raises:
        ValueError: A file is missing, not text or of another format, they differ in their numbers
            of lines, or there is no pair.
    """
    if source == target == STANDARD_INPUT:
        raise ValueError("standard input: found it for both files of pairs, expected two files")
    (first, lefts), (second, rights) = _texts(source), _texts(target)
    texts: tuple[list[str], list[str]] = ([], [])
    for left, right in zip_longest(lefts, rights):
        if left and right and left.strip() and right.strip():
            texts[0].append(left)
            texts[1].append(right)
    if first.number != second.number:
        raise ValueError(
            f"{first.name}: found {first.number} lines, expected as many as the {second.number} "
            f"of {second.name}"
        )
    if not texts[0]:
        raise ValueError(f"{first.name}: found no pair of lines with {second.name}, expected some")
    return texts


def _texts(data: str | os.PathLike[str] | DataFile) -> tuple[Lines, Iterator[str]]:
    """A file's lines, and its texts: one for every line, even if it is blank."""
    file = as_data_file(data)
    if is_hub_name(file.path):
        raise ValueError(f"{file.path}: found a data set of the hub, expected a file of lines")
    lines = open_lines(file.path, file.encoding or "utf-8")
    found = file.format or recognise(lines, file.path) or "lines"
    if found == "lines":
        return lines, (line for _, line in lines)
    if found == "documents":
        return lines, (
            document_of_line(lines, number, line).text if line.strip() else ""
            for number, line in lines
        )
    raise ValueError(
        f"{lines.name}: found the format {found!r}, expected 'lines' or 'documents' for pairs"
    )
