"""The columns of Universal NER: index, word, tag, and perhaps two more, divided by tabs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from fastadv.data.records import is_tag
from fastadv.data.source import Lines, quoted

_FIRST_ROW = re.compile(r"1\t[^\t]+\t(?:O|[BI]-[^\s]+) *(?:\t|$)")
# The annotators' type "other", which is no type of the corpus.
_UNSURE = frozenset({"B-O", "I-O", "B-OTH", "I-OTH"})


def is_first_row(line: str) -> bool:
    """Whether a line may be the first word of a sentence."""
    return _FIRST_ROW.match(line) is not None


def is_indexed(lines: Iterable[str]) -> bool:
    """Whether the first lines with content count 1, 2 before a tab, or 1 after a comment."""
    count, commented = 0, False
    for line in lines:
        if line.startswith("# ") and not count:
            commented = True
        elif not line.strip():
            # A word that is alone may be the word "1": the next sentence decides.
            count = 0
        elif line.partition("\t")[0] != str(count + 1):
            return False
        elif commented or count == 1:
            return True
        else:
            count += 1
    return False


def rows(lines: Lines) -> Iterator[tuple[int, tuple[str, str] | None]]:
    """A word and its tag for each line that has one, None for each end of a sentence."""
    index = 0
    for number, line in lines:
        if line.startswith("#"):
            continue
        if not line.strip(" \t"):
            index = 0
            yield number, None
            continue
        columns = line.split("\t")
        if len(columns) not in (3, 5):
            expected = "3 or 5: index, word, tag, -, annotator"
            raise lines.malformed(number, f"{len(columns)} columns", expected)
        index += 1
        if columns[0] != str(index):
            raise lines.malformed(number, f"the index {quoted(columns[0])}", str(index))
        word, tag = columns[1], columns[2].strip(" ")
        if not word.strip(" "):
            raise lines.malformed(number, "an empty word", "a word in the second column")
        if not is_tag(tag):
            raise lines.malformed(number, f"the tag {quoted(tag)}", "O, B-TYPE or I-TYPE")
        yield number, (word, "O" if tag in _UNSURE else tag)
    yield lines.number, None
