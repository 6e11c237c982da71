"""Labelled documents, one per line: LABEL<TAB>text, as in MLDoc (Schwenk and Li, 2018)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from fastadv.data.records import Document
from fastadv.data.source import Lines, quoted

_LINE = "LABEL<TAB>text"
# What repr() writes for bytes, and nothing else.
_BYTES_LITERAL = re.compile(
    r"""b(?:'(?:[ -&(-\[\]-~]|\\[\\tnr']|\\x[0-9a-f]{2})*'"""
    r"""|"(?:[ !#-\[\]-~]|\\[\\tnr]|\\x[0-9a-f]{2})*")\s*"""
)
_BEGUN_LITERAL = re.compile(r"""b['"].*\\x[0-9a-f]{2}""", re.DOTALL)


def is_document_line(line: str) -> bool:
    """Whether a line looks like LABEL<TAB>text: one word, then a tab."""
    label, tab, _ = line.partition("\t")
    return bool(tab) and len(label.split()) == 1


def parse(lines: Lines) -> Iterator[Document]:
    """Documents with labels; blank lines are skipped."""
    empty = True
    for number, line in lines:
        if not line.strip():
            continue
        empty = False
        yield document_of_line(lines, number, line)
    if empty:
        raise ValueError(f"{lines.name}: found no document, expected lines of {_LINE}")


def document_of_line(lines: Lines, number: int, line: str) -> Document:
    """The document on one line that is not blank; `lines` and `number` are for messages.

    Raises:
        ValueError: The line is not LABEL<TAB>text, or the text a damaged bytes literal.
    """
    if not is_document_line(line):
        expected = f'{_LINE} (plain text is read by format="lines")'
        raise lines.malformed(number, quoted(line), expected)
    label, _, text = line.partition("\t")
    try:
        text = decode_bytes_literal(text)
    except ValueError as error:
        raise lines.malformed(number, str(error), "UTF-8 text") from None
    return Document(text, label.strip(), where=f"{lines.name}:{number}")


def decode_bytes_literal(text: str) -> str:
    """The text behind a bytes literal of Python; any other text as it is.

    Raises:
        ValueError: It is a bytes literal, but its bytes are not UTF-8, or it does not end.
    """
    if not _BYTES_LITERAL.fullmatch(text):
        # Prose may well begin with b', but holds no \xc3.
        if _BEGUN_LITERAL.match(text):
            raise ValueError("a bytes literal that is damaged")
        return text
    try:
        return ast.literal_eval(text.strip()).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("a bytes literal that is not UTF-8") from None
