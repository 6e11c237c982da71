"""Plain text, one text per line."""

from __future__ import annotations

from collections.abc import Iterator

from fastadv.data.records import Document
from fastadv.data.source import Lines


def parse(lines: Lines) -> Iterator[Document]:
    """Every line that is not blank, as an unlabelled document."""
    empty = True
    for _, line in lines:
        if line.strip():
            empty = False
            yield Document(line)
    if empty:
        raise ValueError(f"{lines.name}: found no text, expected one a line")
