"""Words with entity tags, one word a line: CoNLL 2002/2003 and Universal NER."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from fastadv.data.records import Sentence, is_tag, to_iob2
from fastadv.data.text import malformed, read_lines

_Lines = list[tuple[int, str]]
# Not str.split(): a no-break space or an ideographic space belongs to the word.
_SPACE = re.compile(r"[ \t]+")
_UNSURE = frozenset({"B-O", "I-O", "B-OTH", "I-OTH"})


def read_conll(path: str | os.PathLike[str]) -> list[Sentence]:
    """Read sentences from a column file, a blank line between them, with tags in IOB2.

    Two layouts are told apart by the first lines:

    - CoNLL: columns divided by spaces or tabs, the word first and the tag last, in IOB1 or IOB2
      (see `to_iob2`). Lines whose word is -DOCSTART- are skipped and end a sentence.
    - Universal NER: columns divided by tabs, `index word tag`, and after them perhaps two more;
      lines that begin with # are comments. Tags of its annotators' type "other" (B-O, B-OTH,
      I-OTH) become O.

    Raises:
        ValueError: the file is missing, is not UTF-8, holds no sentence, or a line is not of the
            layout; the message names file and line.
    """
    lines = list(read_lines(path))
    parse = _read_indexed if _is_indexed(line for _, line in lines) else _read_columns
    sentences = []
    for rows in parse(path, lines):
        words, tags = zip(*rows, strict=True)
        sentences.append(Sentence(words, to_iob2(tags)))
    if not sentences:
        raise ValueError(
            f"{os.fspath(path)}: found no sentence, expected a word and its tag a line"
        )
    return sentences


def is_column_file(path: str | os.PathLike[str]) -> bool:
    """Whether the first line with content looks like a word with its tag."""
    for _, line in read_lines(path):
        columns = _SPACE.split(line.strip(" \t"))
        indexed = re.match(r"1\t[^\t]+\t", line) is not None
        if indexed or columns[0] == "-DOCSTART-" or (len(columns) > 1 and is_tag(columns[-1])):
            return True
        if columns != [""] and not line.startswith("#"):
            return False
    return False


def _is_indexed(lines: Iterable[str]) -> bool:
    """Whether the first lines with content count 1, 2 before a tab, or 1 after a comment."""
    count, commented = 0, False
    for line in lines:
        if line.startswith("# ") and not count:
            commented = True
        elif not line.strip():
            # One word alone may be the word "1": the next sentence tells.
            count = 0
        elif line.partition("\t")[0] != str(count + 1):
            return False
        elif commented or count == 1:
            return True
        else:
            count += 1
    return False


def _read_columns(path: str | os.PathLike[str], lines: _Lines) -> Iterator[list[tuple[str, str]]]:
    rows: list[tuple[str, str]] = []
    for number, line in lines:
        columns = _SPACE.split(line.strip(" \t"))
        if columns == [""] or columns[0] == "-DOCSTART-":
            if rows:
                yield rows
            rows = []
            continue
        if len(columns) < 2:
            found = f"the one column {columns[0]!r}"
            raise ValueError(malformed(path, number, found, "a word first and its tag last"))
        rows.append((columns[0], _checked(path, number, columns[-1])))
    if rows:
        yield rows


def _read_indexed(path: str | os.PathLike[str], lines: _Lines) -> Iterator[list[tuple[str, str]]]:
    rows: list[tuple[str, str]] = []
    for number, line in lines:
        if line.startswith("#"):
            continue
        if not line.strip():
            if rows:
                yield rows
            rows = []
            continue
        columns = line.split("\t")
        if len(columns) not in (3, 5):
            expected = "3 or 5: index, word, tag, -, annotator"
            raise ValueError(malformed(path, number, f"{len(columns)} columns", expected))
        if columns[0] != str(len(rows) + 1):
            found, expected = f"the index {columns[0]!r}", f"{len(rows) + 1}"
            raise ValueError(malformed(path, number, found, expected))
        tag = _checked(path, number, columns[2])
        rows.append((columns[1], "O" if tag in _UNSURE else tag))
    if rows:
        yield rows


def _checked(path: str | os.PathLike[str], number: int, tag: str) -> str:
    if not is_tag(tag):
        raise ValueError(malformed(path, number, f"the tag {tag!r}", "O, B-TYPE or I-TYPE"))
    return tag
