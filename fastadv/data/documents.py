"""Labelled documents, one a line: LABEL<TAB>text, as MLDoc has them (Schwenk and Li, 2018)."""

from __future__ import annotations

import ast
import os
import re

from fastadv.data.records import Document
from fastadv.data.text import malformed, read_lines

_LINE = "LABEL<TAB>text"
_BYTES_LITERAL = re.compile(r"""b(['"]).*\1\s*""", re.DOTALL)


def is_document_line(line: str) -> bool:
    """Whether a line looks like LABEL<TAB>text: one word, then a tab."""
    label, tab, _ = line.partition("\t")
    return bool(tab) and len(label.split()) == 1


def read_documents(path: str | os.PathLike[str]) -> list[Document]:
    r"""Read a file of LABEL<TAB>text lines; blank lines are skipped.

    MLDoc's generator, run under Python 3, writes a text as a bytes literal (`b'M\xc3\xbcnchen'`);
    such a text is decoded.

    Raises:
        ValueError: the file is missing, is not UTF-8, holds no document, or a line is not of that
            form; the message names file and line.
    """
    documents = []
    for number, line in read_lines(path):
        if not line.strip():
            continue
        if not is_document_line(line):
            raise ValueError(malformed(path, number, repr(_short(line)), _LINE))
        label, _, text = line.partition("\t")
        try:
            text = decode_bytes_literal(text)
        except UnicodeDecodeError as error:
            found = "a bytes literal that is not UTF-8"
            raise ValueError(malformed(path, number, found, "UTF-8 text")) from error
        documents.append(Document(text, label.strip()))
    if not documents:
        raise ValueError(f"{os.fspath(path)}: found no document, expected lines of {_LINE}")
    return documents


def decode_bytes_literal(text: str) -> str:
    """The text behind a Python bytes literal; any other text as it is.

    Raises:
        UnicodeDecodeError: it is a bytes literal, but its bytes are not UTF-8.
    """
    if not _BYTES_LITERAL.fullmatch(text):
        return text
    try:
        raw = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        # Prose that begins with b' and ends with ' by chance.
        return text
    return raw.decode("utf-8") if isinstance(raw, bytes) else text


def _short(line: str) -> str:
    return line if len(line) <= 40 else line[:40] + "…"
