"""Examples from one file, whatever its format."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import cast

from fastadv.data import conll, delimited, documents, hub, jsonl, text
from fastadv.data.data_file import DataFile, Format, as_data_file, is_hub_name
from fastadv.data.fields import (
    MissingField,
    document_of,
    explained,
    sentence_of,
    text_of,
    with_label,
    with_tags,
)
from fastadv.data.formats import recognise
from fastadv.data.records import Document, Kind, Sentence
from fastadv.data.source import Lines, is_latin_1_corpus, open_lines, shown_name

Record = Document | Sentence
Path = str | os.PathLike[str]

_LOGGER = logging.getLogger("fastadv.data")
_OWN: dict[Kind, Format] = {Document: "documents", Sentence: "columns"}
_LABELLED: dict[Kind, tuple[Format, ...]] = {
    Document: ("documents", "csv", "tsv", "jsonl"),
    Sentence: ("columns", "jsonl"),
}
_EXPECTED: dict[Kind, str] = {
    Document: "documents with labels: LABEL<TAB>text, CSV or TSV with a header, or JSONL",
    Sentence: "words with tags: columns as in CoNLL or Universal NER, or JSONL",
}
_WHAT = {
    "documents": "labelled documents (LABEL<TAB>text)",
    "columns": "words with tags in columns",
    "lines": "plain text",
    "csv": "CSV",
    "tsv": "TSV with a header",
    "jsonl": "JSON Lines",
}


def read_documents(file: Path | DataFile) -> list[Document]:
    r"""Read a file of `LABEL<TAB>text` lines (MLDoc; Schwenk and Li, 2018).

    The label is one word, the text all that follows the first tab; blank lines are skipped. MLDoc's
    generator, run under Python 3, writes a text as a bytes literal (`b'M\xc3\xbcnchen'`, or with
    double quotes); such a text is decoded.

    Raises:
        ValueError: The file is missing, is not UTF-8, holds no document, or a line is not of that
            form; the message names file and line.
    """
    return cast(list[Document], list(_as_format(file, "documents", Document)))


def read_conll(file: Path | DataFile) -> list[Sentence]:
    """Read sentences from a column file, a blank line between them, with tags in IOB2.

    Two layouts are told apart by the first lines:

    - CoNLL 2002/2003: the word first and the tag last, in IOB1 or IOB2 (see `to_iob2`), any columns
      between them, as many in every line. Columns are divided by tabs if the line has one, else by
      spaces. Lines whose word is -DOCSTART- are skipped, whatever their other columns, and end
      a sentence with or without a blank line.
    - Universal NER: columns divided by tabs, `index word tag`, and after them perhaps two more;
      lines that begin with # are comments. Tags of its annotators' type "other" (B-O, B-OTH,
      I-OTH) become O.

    The files under the corpora's own names `deu.*`, `esp.*` and `ned.*` are latin-1 in some copies:
    see `DataFile.encoding`.

    Raises:
        ValueError: The file is missing, is not UTF-8, holds no sentence, or a line is not of the
            layout; the message names file and line.
    """
    return cast(list[Sentence], list(_as_format(file, "columns", Sentence)))


def read_texts(file: Path | DataFile) -> list[Document]:
    """Read a file of one text per line as unlabelled documents; blank lines are skipped.

    Raises:
        ValueError: The file is missing, is not UTF-8, or holds no text.
    """
    return cast(list[Document], list(_as_format(file, "lines", Document)))


def labelled_examples(file: DataFile, kind: Kind) -> Iterator[Record]:
    """Documents with labels, or sentences with tags, one by one.

    Raises:
        ValueError: While examples are taken: the file is missing or malformed, or of a format that
            has no such labels.
    """
    if is_hub_name(file.path):
        yield from dataset_examples(hub.load(str(file.path)), kind, file)
        return
    lines, found = _opened(file)
    if found not in _LABELLED[kind]:
        # Parsing as the kind's own format gives an error about a line, which says more than the
        # name of another format; but columns may pass for documents.
        if file.format is None and found in (None, "lines", "documents"):
            found = _OWN[kind]
        else:
            what = _WHAT[found or "lines"]
            raise ValueError(f"{lines.name}: found {what}, expected {_EXPECTED[kind]}")
    yield from _parsed(lines, cast(Format, found), kind, file, labelled=True)


def unlabelled_examples(file: DataFile, kind: Kind) -> Iterator[Record]:
    """Documents or sentences without labels, one by one.

    Raises:
        ValueError: While examples are taken: the file is missing or malformed.
    """
    if is_hub_name(file.path):
        yield from dataset_examples(hub.load(str(file.path)), kind, file, labelled=False)
        return
    lines, found = _opened(file)
    for record in _parsed(lines, found or "lines", kind, file, labelled=False):
        yield unlabelled(record, kind)


def dataset_examples(
    data: object, kind: Kind, file: DataFile | None = None, labelled: bool = True
) -> Iterator[Record]:
    """The documents or sentences of a `datasets.Dataset`; `file` names it, if it came from the hub.

    Raises:
        ValueError: While examples are taken: a column is missing or not of its type, or, if
            `labelled`, a label is missing or has no name.
    """
    columns, name = (file.columns, f"{file.path}: ") if file else (None, "")
    fields = ("tokens", "tags") if kind is Sentence else ("text", "label")
    rows = hub.rows(data, fields if labelled else ("text", "tokens"), columns, labelled)
    number = 0
    try:
        for row in rows:
            if not labelled:
                yield unlabelled(text_of(row, kind, columns), kind)
            elif kind is Sentence:
                yield with_tags(sentence_of(row, columns))
            else:
                yield with_label(document_of(row, columns))
            number += 1
    except MissingField as error:
        raise ValueError(f"{name}{explained(error) if file else error}") from None
    except ValueError as error:
        raise ValueError(f"{name}example {number}: {error}") from None


def unlabelled(record: Record, kind: Kind) -> Record:
    """The text alone: as a document, or as a sentence of its words, divided at white space."""
    if kind is Sentence:
        words = record.words if isinstance(record, Sentence) else tuple(record.text.split())
        return Sentence(words)
    return Document(record.text if isinstance(record, Document) else " ".join(record.words))


def _as_format(file: Path | DataFile, format: Format, kind: Kind) -> Iterator[Record]:
    data_file = as_data_file(file)
    if data_file.format not in (None, format):
        raise ValueError(
            f"{shown_name(data_file.path)}: found the format {data_file.format!r}, expected "
            f"{format!r}"
        )
    data_file = DataFile(data_file.path, format, data_file.encoding)
    lines, _ = _opened(data_file)
    return _parsed(lines, format, kind, data_file, labelled=True)


def _opened(file: DataFile) -> tuple[Lines, Format | None]:
    """The lines of a file and its format, which is None for plain text."""
    if file.encoding is None and file.format in (None, "columns") and is_latin_1_corpus(file.path):
        lines = open_lines(file.path, "latin-1")
        if (file.format or recognise(lines, file.path, file.columns)) == "columns":
            _LOGGER.info("%s: read as latin-1, as the corpus was given out", lines.name)
            return lines, "columns"
    lines = open_lines(file.path, file.encoding or "utf-8")
    return lines, file.format or recognise(lines, file.path, file.columns)


def _parsed(
    lines: Lines, format: Format, kind: Kind, file: DataFile, labelled: bool
) -> Iterator[Record]:
    match format:
        case "documents":
            return documents.parse(lines)
        case "columns":
            return conll.parse(lines)
        case "lines":
            return text.parse(lines)
        case "csv":
            return delimited.parse(lines, None, file.columns, labelled)
        case "tsv":
            return delimited.parse(lines, "\t", file.columns, labelled)
        case "jsonl":
            return jsonl.parse(lines, kind, file.columns, labelled)
