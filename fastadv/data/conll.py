"""Words with entity tags, one word per line, in columns: CoNLL 2002 and 2003."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastadv.data import universal_ner
from fastadv.data.records import Sentence, is_tag, to_iob2
from fastadv.data.source import Lines, quoted

MAX_WORDS = 100_000
"""The most words of a sentence: a file without blank lines is not one sentence."""

# Not str.split(): a no-break space or an ideographic space belongs to the word.
_SPACES = re.compile(r" +")
_DOCUMENT_START = "-DOCSTART-"
_Rows = list[tuple[str, str]]


def parse(lines: Lines) -> Iterator[Sentence]:
    """Sentences with tags in IOB2, in either layout of columns."""
    rows_of = universal_ner.rows if universal_ner.is_indexed(lines.ahead()) else _rows
    empty, begin, rows = True, 1, _Rows()
    for number, row in rows_of(lines):
        if row is not None:
            begin = begin if rows else number
            rows.append(row)
            if len(rows) > MAX_WORDS:
                found = f"a sentence of more than {MAX_WORDS} words"
                raise lines.malformed(begin, found, "a blank line between sentences")
        elif rows:
            empty = False
            yield _sentence(lines, begin, rows)
            rows = []
    if empty:
        raise ValueError(f"{lines.name}: found no sentence, expected a word and its tag a line")


def is_column_line(line: str) -> bool:
    """Whether a line looks like a word with its tag, or a document's start."""
    columns = _split(line)
    if columns[0] == _DOCUMENT_START or universal_ner.is_first_row(line):
        return True
    return len(columns) > 1 and is_tag(columns[-1])


def _sentence(lines: Lines, begin: int, rows: _Rows) -> Sentence:
    words, tags = zip(*rows, strict=True)
    return Sentence(words, to_iob2(tags), where=f"{lines.name}:{begin}")


def _rows(lines: Lines) -> Iterator[tuple[int, tuple[str, str] | None]]:
    """A word and its tag for each line that has one, None for each end of a sentence."""
    width = 0
    for number, line in lines:
        columns = _split(line)
        if columns == [""] or columns[0] == _DOCUMENT_START:
            yield number, None
            continue
        if len(columns) < 2:
            found = f"the one column {quoted(columns[0])}"
            raise lines.malformed(number, found, "a word first and its tag last")
        width = width or len(columns)
        if len(columns) != width:
            found = f"{len(columns)} columns"
            raise lines.malformed(number, found, f"{width} as in the lines before")
        if not is_tag(columns[-1]):
            found = f"the tag {quoted(columns[-1])}"
            raise lines.malformed(number, found, "O, B-TYPE or I-TYPE")
        yield number, (columns[0], columns[-1])
    yield lines.number, None


def _split(line: str) -> list[str]:
    """Columns, divided by tabs if there is one; spaces within a column then belong to the word."""
    line = line.strip(" \t")
    if "\t" in line:
        return [column.strip(" ") for column in line.split("\t")]
    return _SPACES.split(line)
