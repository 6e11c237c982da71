"""Which column of a file, or key of a mapping, holds which of our fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from fastadv.data.records import Document, Kind, Sentence, shown, to_iob2
from fastadv.data.source import quoted

NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "content", "document", "utterance"),
    "label": ("label", "category", "class", "intent", "topic"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags"),
}
"""Our name of each field first, then the other usual ones."""

_SHOWN = {"text": ("text",), "label": ("label",), **{f: NAMES[f] for f in ("tokens", "tags")}}

Columns = Mapping[str, str] | None


class MissingField(ValueError):
    """A field has no name, more than one, or not the name that was chosen."""

    def __init__(self, found: Sequence[str], *fields: str, chosen: str | None = None) -> None:
        field = fields[0]
        wanted = " or ".join(repr(name) for field in fields for name in _SHOWN[field])
        if chosen is not None:
            wanted = f"{quoted(chosen)} for {field}"
        super().__init__(f"found the columns {listed(found)}, expected {wanted}")
        self.with_remedy = (
            f'{self} (columns={{"{field}": NAME}} says which it is, on the command line --columns '
            f"{field}=NAME)"
        )


def explained(error: ValueError) -> str:
    """An error about a file, in words: for a file, an option can name the missing column."""
    return error.with_remedy if isinstance(error, MissingField) else str(error)


def column_of(field: str, names: Iterable[str], columns: Columns = None) -> str | None:
    """The name among `names` that stands for `field`, if there is one.

    It is the one that `columns` gives, else our own name of the field, else the only one of the
    usual names; case and surrounding spaces are ignored.

    Raises:
        MissingField: Several names may stand for it, or what `columns` gives is not there.
    """
    return _column(field, tuple(names), (columns or {}).get(field))


@lru_cache(maxsize=256)
def _column(field: str, names: tuple[str, ...], chosen: str | None) -> str | None:
    if chosen is not None:
        if chosen in names:
            return chosen
        raise MissingField(names, field, chosen=chosen)
    for known in ((field,), NAMES[field]):
        found = [name for name in names if str(name).strip().casefold() in known]
        if len(found) == 1:
            return found[0]
        if found:
            raise MissingField(found, field)
    return None


def listed(names: Sequence[str]) -> str:
    """Names for a message."""
    shown = ", ".join(quoted(str(name)) for name in names[:12]) or "none"
    return shown + (", …" if len(names) > 12 else "")


def document_of(record: Mapping[str, Any], columns: Columns, where: str | None = None) -> Document:
    """A document, with its label where the mapping has one."""
    label = column_of("label", record, columns)
    return Document(
        required(record, columns, "text"), record[label] if label else None, where=where
    )


def sentence_of(record: Mapping[str, Any], columns: Columns, where: str | None = None) -> Sentence:
    """A sentence, with its tags in IOB2 where the mapping has them."""
    words = required(record, columns, "tokens")
    column = column_of("tags", record, columns)
    return tagged(words, record[column] if column else None, where)


def text_of(record: Mapping[str, Any], kind: Kind, columns: Columns) -> Document | Sentence:
    """The text or the words of a mapping, without looking at its labels.

    Words are preferred for sentences, the text for documents; either does for both.
    """
    fields = ("tokens", "text") if kind is Sentence else ("text", "tokens")
    for field in fields:
        column = column_of(field, record, columns)
        if column is not None:
            value = record[column]
            return Document(value) if field == "text" else Sentence(value)
    raise MissingField(list(record), *fields)


def tagged(words: Any, tags: Any, where: str | None = None) -> Sentence:
    """A sentence of these words and tags, the tags in IOB2."""
    # Data sets on the hub hold tags as numbers; only the data set itself knows their names.
    if isinstance(tags, Sequence) and any(isinstance(tag, int) for tag in tags):
        raise ValueError(f"found the tags {shown(tags)}, expected their names, such as 'B-PER'")
    sentence = Sentence(words, tags)
    return Sentence(sentence.words, sentence.tags and to_iob2(sentence.tags), where=where)


def required(record: Mapping[str, Any], columns: Columns, field: str) -> Any:
    """The value of a field."""
    column = column_of(field, record, columns)
    if column is None:
        raise MissingField(list(record), field)
    return record[column]


def with_label(document: Document) -> Document:
    """The document, if it has a label.

    Raises:
        ValueError: It has none, or an empty one.
    """
    if document.label is None or not document.label.strip():
        found = "no label" if document.label is None else "an empty label"
        raise ValueError(f"found {found}, expected the name of a class")
    return document


def with_tags(sentence: Sentence) -> Sentence:
    """The sentence, if it has tags.

    Raises:
        ValueError: It has none.
    """
    if sentence.tags is None:
        raise ValueError("found no tags, expected one a word")
    return sentence
