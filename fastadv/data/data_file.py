"""A data file with the options to read it by, and the formats that are known."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Format = Literal["documents", "columns", "lines", "csv", "tsv", "jsonl"]
Encoding = Literal["utf-8", "latin-1"]
Field = Literal["text", "label", "tokens", "tags"]

STANDARD_INPUT = "-"
HUB_PREFIX = "hf:"
_NAMED: tuple[Format, ...] = ("csv", "tsv", "jsonl")


@dataclass(frozen=True)
class DataFile:
    """A data file with the options to read it by; a plain path stands for one without options.

    Formats, each recognised from its first lines where `format` is None (a name that ends in .csv,
    .jsonl, .ndjson or .json decides as well):

    - "documents": `LABEL<TAB>text`, one per line, as in MLDoc. See `read_documents`.
    - "columns": a word with its tag on each line, as in CoNLL 2002/2003 and Universal NER. See
      `read_conll`.
    - "lines": one text per line, without labels. See `read_texts`.
    - "csv", "tsv": fields divided by commas (or semicolons) or by tabs, the first line names them;
      fields may be quoted, hold line ends within quotes, and quotes in them are doubled. The
      columns "text" and "label" are read.
    - "jsonl": one JSON object per line, with "text" and "label", or "tokens" and "tags", which are
      lists of strings.

    A column of csv, tsv or jsonl may have another usual name (sentence, content, document or
    utterance for text; category, class, intent or topic for label; words for tokens; ner_tags for
    tags), if only one of them is there; `columns` names any other.

    Files packed by gzip or xz are unpacked as they are read. Lines end in a line feed, with or
    without a carriage return before it. Blank lines count as lines, but hold no example (in
    "columns" they end a sentence). A byte order mark is dropped. Bytes that are no text (NUL, a
    line over 16 MiB) are refused.

    Args:
        path: A file, a pipe, "-" for standard input, or "hf:OWNER/NAME[/CONFIG][:SPLIT]" for a
            data set of the Hugging Face hub.
        format: One of those above; None to recognise it.
        encoding: "utf-8" or "latin-1" (ISO 8859-1). None is UTF-8, except for column files under a
            CoNLL corpus's own name (`deu.*`, `esp.*`, `ned.*`), which were published in latin-1:
            they are read as latin-1 if they hold no UTF-8.
        columns: The file's names of our fields "text", "label", "tokens" and "tags", such as
            {"text": "body"}.

    Raises:
        ValueError: An option is none of these, or does not fit another.
    """

    path: str | os.PathLike[str]
    format: Format | None = None
    encoding: Encoding | None = None
    columns: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise ValueError(f"found a path of type {type(self.path).__name__}, expected a string")
        _one_of("format", self.format, get_args(Format))
        _one_of("encoding", self.encoding, get_args(Encoding))
        for field, column in (self.columns or {}).items():
            _one_of("field", field, get_args(Field))
            if not isinstance(column, str):
                raise ValueError(f"found the column {column!r} for {field!r}, expected its name")
        if self.columns and self.format not in (None, *_NAMED):
            raise ValueError(
                f"found columns for the format {self.format!r}, which names none, expected "
                f"{_listed(_NAMED)}"
            )
        if is_hub_name(self.path) and (self.format or self.encoding):
            raise ValueError(f"{self.path}: found a format or an encoding, expected neither here")


def is_hub_name(path: str | os.PathLike[str]) -> bool:
    """Whether this is "hf:…", a data set of the hub."""
    return isinstance(path, str) and path.startswith(HUB_PREFIX)


def as_data_file(data: str | os.PathLike[str] | DataFile) -> DataFile:
    """A path with no options, or the `DataFile` as it is."""
    return data if isinstance(data, DataFile) else DataFile(data)


def _one_of(what: str, value: object, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ValueError(f"found the {what} {value!r}, expected {_listed(known)}")


def _listed(names: tuple[str, ...]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}"
