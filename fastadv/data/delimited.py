"""CSV and TSV files whose first line names the columns, by Python's csv module."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from fastadv.data.fields import (
    NAMES,
    Columns,
    MissingField,
    column_of,
    explained,
    listed,
    with_label,
)
from fastadv.data.records import Document
from fastadv.data.source import MAX_LINE, Lines, quoted

_NAME = re.compile(r" ?[\w#.-]+(?: [\w#.-]+){0,2} ?")
_KNOWN = {name for names in NAMES.values() for name in names} | {
    "", "id", "idx", "index", "guid", "lang", "language", "split", "source", "title",
}  # fmt: skip


def is_header(line: str, delimiter: str, columns: Columns = None) -> bool:
    """Whether a line names columns, one of which holds texts.

    Prose may hold the word "text" next to a comma, and a label may be "text". So the fields must
    look like names, and if a line with a tab has only two fields, they must be known names.
    """
    names = _fields(line, delimiter)
    if len(names) < 2 or len({name.casefold() for name in names}) < len(names):
        return False
    if columns and columns.get("text") in names:
        return True
    plain = [name.strip().casefold() for name in names]
    if not all(_NAME.fullmatch(name) for name in names if name) or not {*plain} & {*NAMES["text"]}:
        return False
    return delimiter != "\t" or len(names) > 2 or {*plain} <= _KNOWN


def parse(
    lines: Lines, delimiter: str | None, columns: Columns, labelled: bool
) -> Iterator[Document]:
    """Documents, with labels if `labelled`, else without looking for any.

    Args:
        lines: The lines of the file.
        delimiter: None for CSV: a comma, or a semicolon if only that makes the first line name a
            column of texts.
        columns: The file's names of our fields.
        labelled: Whether every row must have a label.
    """
    first = next((line for line in lines.ahead() if line.strip()), "")
    delimiter = delimiter or (";" if _is_semicolon(first, columns) else ",")
    rows = _rows(lines, delimiter)
    number, names = next(rows, (1, []))
    if not names:
        raise ValueError(f"{lines.name}: found no line, expected one that names the columns")
    try:
        if len(set(names)) < len(names):
            raise ValueError(f"found the columns {listed(names)}, expected different names")
        text = _place("text", names, columns)
        label = _place("label", names, columns) if labelled else None
    except ValueError as error:
        raise ValueError(f"{lines.name}:{number}: {explained(error)}") from None
    empty = True
    for number, row in rows:
        if len(row) != len(names):
            found = f"{len(row)} field{'s' * (len(row) != 1)}"
            raise lines.malformed(number, found, f"{len(names)}: {listed(names)}")
        empty = False
        if label is None:
            yield Document(row[text])
            continue
        where = f"{lines.name}:{number}"
        try:
            yield with_label(Document(row[text], row[label].strip(), where=where))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if empty:
        raise ValueError(f"{lines.name}: found no row below the names, expected a text a row")


def _is_semicolon(line: str, columns: Columns) -> bool:
    return is_header(line, ";", columns) and not is_header(line, ",", columns)


def _place(field: str, names: list[str], columns: Columns) -> int:
    column = column_of(field, names, columns)
    if column is None:
        raise MissingField(names, field)
    return names.index(column)


def _fields(line: str, delimiter: str) -> list[str]:
    """The fields of one line; none if the line is not of this form."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _rows(lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows, except blank lines, with the number of the line where each begins."""
    taken: list[str] = []
    width = 0

    def feed() -> Iterator[str]:
        for line in lines.with_ends():
            taken.append(line)
            yield line

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        begin = lines.number + 1
        taken.clear()
        try:
            row = _next_row(reader)
        except csv.Error as error:
            expected = "fields in quotes to end in one, and quotes within them to be doubled"
            raise lines.malformed(begin, f"a malformed row ({error})", expected) from None
        if row is None:
            return
        if len(row) < 2 and not "".join(row).strip():
            continue
        width = width or len(row)
        # Two rows of a file that does not quote would read as one if the first has a stray quote
        # before a field and the second has one after a field.
        whole = all(line.count(delimiter) == width - 1 for line in taken)
        if delimiter == "\t" and len(taken) > 1 and whole:
            found = f"a field in quotes over {len(taken)} lines, each of which is a whole row"
            raise lines.malformed(begin, f"{found} ({quoted(taken[0])})", "no quote, or a pair")
        yield begin, row


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    # The limit belongs to the whole process: it is changed for one row and then restored.
    before = csv.field_size_limit(MAX_LINE)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)
