"""JSON Lines: one object per line, with named fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from fastadv.data.fields import (
    Columns,
    document_of,
    explained,
    sentence_of,
    text_of,
    with_label,
    with_tags,
)
from fastadv.data.records import Document, Kind, Sentence
from fastadv.data.source import Lines, quoted

_EXPECTED = "one JSON object a line"


def parse(
    lines: Lines, kind: Kind, columns: Columns, labelled: bool
) -> Iterator[Document | Sentence]:
    """The examples of a kind in the objects, with labels or tags if `labelled`.

    Blank lines are skipped. A label is a string, tags are a list of strings: numbers are refused,
    since the names behind them are not in the file.
    """
    empty = True
    for number, line in lines:
        if not line.strip():
            continue
        empty = False
        where = f"{lines.name}:{number}"
        try:
            record = _object(line)
            if not labelled:
                yield text_of(record, kind, columns)
            elif kind is Sentence:
                yield with_tags(sentence_of(record, columns, where))
            else:
                yield with_label(document_of(record, columns, where))
        except ValueError as error:
            raise ValueError(f"{where}: {explained(error)}") from None
    if empty:
        raise ValueError(f"{lines.name}: found no object, expected {_EXPECTED}")


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(
            line,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        found = f"malformed JSON ({error.msg.removesuffix(' at')} at character {error.pos + 1})"
        raise ValueError(f"found {found}, expected {_EXPECTED}") from None
    except RecursionError:
        raise ValueError(f"found JSON nested too deep, expected {_EXPECTED}") from None
    if not isinstance(value, dict):
        raise ValueError(f"found a JSON {type(value).__name__}, expected {_EXPECTED}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"found the key {quoted(twice)} twice, expected it once")
    return record


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        # Python itself limits the digits of a number.
        raise ValueError(f"found a number of {len(digits)} digits, expected {_EXPECTED}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}, expected JSON, which has no such number")
