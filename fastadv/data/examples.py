"""Examples from whatever a caller holds: a file, records, pairs, mappings or plain strings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast, overload

from fastadv.data import hub
from fastadv.data.data_file import DataFile, as_data_file
from fastadv.data.fields import column_of, document_of, listed, sentence_of, tagged, text_of
from fastadv.data.files import (
    dataset_examples,
    labelled_examples,
    unlabelled,
    unlabelled_examples,
)
from fastadv.data.records import Document, Kind, Sentence, to_iob2

__all__ = ["Data", "Document", "Sentence", "as_documents", "as_sentences", "as_texts", "iter_texts"]

Data = str | os.PathLike[str] | DataFile | Iterable[Any]
"""A file (a path, "-" for standard input, a `DataFile`), "hf:OWNER/NAME[/CONFIG][:SPLIT]", a
`datasets.Dataset`, or examples in any of the forms that `as_documents` and `as_sentences` list."""

_Record = TypeVar("_Record", bound=Document | Sentence)
_KINDS: dict[str, Kind] = {"classification": Document, "ner": Sentence}
_EXPECTED = "a path or a sequence of examples"


def as_documents(data: Data) -> list[Document]:
    """Labelled documents from a file, a data set of the hub, or examples in memory.

    A file has `LABEL<TAB>text` lines, or is CSV or TSV with a header, or JSONL (see `DataFile`).
    An example in memory is a `Document`, a (text, label) pair, a mapping with "text" and perhaps
    "label", or a string, which is an unlabelled text.

    Raises:
        ValueError: The file is missing or malformed, or an example is none of these; the message
            names the line, or the example counted from 0.
    """
    return cast(list[Document], list(_labelled(data, Document, _document)))


def as_sentences(data: Data) -> list[Sentence]:
    """Tagged sentences from a file, a data set of the hub, or examples in memory.

    A file is a column file (see `read_conll`) or JSONL with "tokens" and "tags". An example in
    memory is a `Sentence`, a (words, tags) pair, a mapping with "tokens" or "words" and perhaps
    "tags" or "ner_tags", a sequence of words, or a text (a string, a `Document`, or a mapping with
    "text"), which is split at white space. Tags come back in IOB2.

    Raises:
        ValueError: The file is missing or malformed, or an example is none of these; the message
            names the line, or the example counted from 0.
    """
    return cast(list[Sentence], list(_labelled(data, Sentence, _sentence)))


@overload
def as_texts(data: Data, task: Literal["classification"] | type[Document]) -> list[Document]: ...
@overload
def as_texts(data: Data, task: Literal["ner"] | type[Sentence]) -> list[Sentence]: ...
@overload
def as_texts(data: Data, task: str | Kind) -> list[Document] | list[Sentence]: ...
def as_texts(data: Data, task: str | Kind) -> list[Document] | list[Sentence]:
    """Unlabelled examples in a list: see `iter_texts`.

    Raises:
        ValueError: As `iter_texts`.
    """
    return cast(list[Document] | list[Sentence], list(iter_texts(data, task)))


@overload
def iter_texts(
    data: Data, task: Literal["classification"] | type[Document]
) -> Iterator[Document]: ...
@overload
def iter_texts(data: Data, task: Literal["ner"] | type[Sentence]) -> Iterator[Sentence]: ...
@overload
def iter_texts(data: Data, task: str | Kind) -> Iterator[Document] | Iterator[Sentence]: ...
def iter_texts(data: Data, task: str | Kind) -> Iterator[Document] | Iterator[Sentence]:
    """Unlabelled examples, one by one: documents for "classification", sentences for "ner".

    The class that is wanted, `Document` or `Sentence`, may stand for the task's name. Takes a file
    of any format (see `DataFile`), labelled or not, and all that `as_documents` and `as_sentences`
    take; labels are dropped unseen. Words are joined by spaces where documents are wanted, texts
    are split at white space where sentences are. A file is taken as labelled if its first line with
    content is: what a file of that form holds further on that is not of that form is refused, not
    taken as text. Files, pipes and standard input are read as examples are taken, in bounded
    memory.

    Raises:
        ValueError: The task is none of these; or, while examples are taken, the file is missing or
            malformed, or an example is of no known form; the message names the line, or the example
            counted from 0.
    """
    kind = _KINDS.get(task) if isinstance(task, str) else task
    if kind is None or kind not in _KINDS.values():
        known = " or ".join(map(repr, _KINDS))
        raise ValueError(f"found the task {task!r}, expected {known}")
    return cast(Iterator[Document] | Iterator[Sentence], _texts(data, kind))


def _texts(data: Data, kind: Kind) -> Iterator[Document | Sentence]:
    if isinstance(data, str | os.PathLike | DataFile):
        return unlabelled_examples(as_data_file(data), kind)
    convert = _sentence if kind is Sentence else _document

    def text(example: Any) -> Document | Sentence:
        if isinstance(example, Mapping):
            example = text_of(example, kind, None)
        if not isinstance(example, Document | Sentence):
            example = convert(example)
        return unlabelled(example, kind)

    if hub.is_dataset(data):
        return dataset_examples(data, kind, labelled=False)
    return _converted(data, text)


def _labelled(
    data: Data, kind: Kind, convert: Callable[[Any], Document | Sentence]
) -> Iterator[Document | Sentence]:
    if isinstance(data, str | os.PathLike | DataFile):
        return labelled_examples(as_data_file(data), kind)
    if hub.is_dataset(data):
        return dataset_examples(data, kind)
    return _converted(data, convert)


def _converted(data: Iterable[Any], convert: Callable[[Any], _Record]) -> Iterator[_Record]:
    splits = hub.splits_of(data)
    if splits:
        raise ValueError(
            f"found the splits {listed(splits)}, expected one of them, as data[{splits[0]!r}]"
        )
    # Iterating over a table of pandas gives the names of its columns.
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        raise ValueError(f"found a table, expected {_EXPECTED}, such as data.to_dict('records')")
    if isinstance(data, bytes | Mapping) or not isinstance(data, Iterable):
        raise ValueError(f"found data of type {type(data).__name__}, expected {_EXPECTED}")
    for number, example in enumerate(data):
        try:
            record = convert(example)
        except ValueError as error:
            raise ValueError(f"example {number}: {error}") from error
        yield record


def _document(example: Any) -> Document:
    if isinstance(example, Document):
        return example
    if isinstance(example, str):
        return Document(example)
    if isinstance(example, Mapping):
        return document_of(example, None)
    if isinstance(example, Sequence) and len(example) == 2:
        return Document(example[0], example[1])
    raise ValueError(
        f"found {_described(example)}, expected a text, a (text, label) pair, a mapping with "
        "'text', or a Document"
    )


def _sentence(example: Any) -> Sentence:
    if isinstance(example, Sentence):
        return Sentence(example.words, example.tags and to_iob2(example.tags), where=example.where)
    if isinstance(example, Document):
        example = example.text
    if isinstance(example, Mapping):
        if column_of("tokens", example) is not None or column_of("text", example) is None:
            return sentence_of(example, None)
        example = text_of(example, Sentence, None)
        return Sentence(example.text.split())
    if isinstance(example, str):
        return Sentence(tuple(example.split()))
    if isinstance(example, Sequence):
        if len(example) == 2 and not isinstance(example[0], str):
            return tagged(example[0], example[1])
        return Sentence(tuple(example))
    raise ValueError(
        f"found {_described(example)}, expected words, a (words, tags) pair, a mapping with "
        "'tokens', a text, or a Sentence"
    )


def _described(example: object) -> str:
    size = f" and length {len(example)}" if isinstance(example, Sequence) else ""
    return f"an example of type {type(example).__name__}{size}"
