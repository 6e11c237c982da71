"""Examples from whatever a caller holds: a file, records, pairs, mappings or plain strings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

from fastadv.data.conll import is_column_file, read_conll
from fastadv.data.documents import is_document_line, read_documents
from fastadv.data.records import Document, Sentence, to_iob2
from fastadv.data.text import read_lines, read_texts

__all__ = ["Data", "Document", "Sentence", "as_documents", "as_sentences", "as_texts"]

Data = str | os.PathLike[str] | Iterable[Any]
"""A path, or examples in any of the forms that `as_documents` and `as_sentences` list."""

_Record = TypeVar("_Record", Document, Sentence)


def as_documents(data: Data) -> list[Document]:
    """Documents from a file of LABEL<TAB>text lines or from examples in memory.

    An example is a `Document`, a (text, label) pair, a mapping with "text" and perhaps "label",
    or a string, which is an unlabelled text.

    Raises:
        ValueError: the file is missing or malformed, or an example is none of these; the message
            names the line, or the example counted from 0.
    """
    if isinstance(data, str | os.PathLike):
        return read_documents(data)
    return _convert(data, _document)


def as_sentences(data: Data) -> list[Sentence]:
    """Sentences from a column file (see `read_conll`) or from examples in memory.

    An example is a `Sentence`, a (words, tags) pair, a mapping with "tokens" or "words" and
    perhaps "tags" or "ner_tags", a sequence of words, or a text (a string, a `Document`, or a
    mapping with "text"), which is split at white space. Tags come back in IOB2.

    Raises:
        ValueError: the file is missing or malformed, or an example is none of these; the message
            names the line, or the example counted from 0.
    """
    if isinstance(data, str | os.PathLike):
        return read_conll(data)
    return _convert(data, _sentence)


@overload
def as_texts(data: Data, task: Literal["classification"]) -> list[Document]: ...
@overload
def as_texts(data: Data, task: Literal["ner"]) -> list[Sentence]: ...
@overload
def as_texts(data: Data, task: str) -> list[Document] | list[Sentence]: ...
def as_texts(data: Data, task: str) -> list[Document] | list[Sentence]:
    """Unlabelled examples: documents for the task "classification", sentences for "ner".

    Takes what `as_documents` and `as_sentences` take, drops the labels, and reads a file of one
    text a line as well. A file is taken as labelled if its first line with content is: what a
    file of that form holds further on that is not of that form is refused, not taken as text.

    Raises:
        ValueError: as `as_documents` and `as_sentences`, or the task is neither of the two.
    """
    if task == "classification":
        if isinstance(data, str | os.PathLike) and not _is_document_file(data):
            return read_texts(data)
        return [Document(document.text) for document in as_documents(data)]
    if task == "ner":
        if isinstance(data, str | os.PathLike) and not is_column_file(data):
            return as_sentences(read_texts(data))
        return [Sentence(sentence.words) for sentence in as_sentences(data)]
    raise ValueError(f"found the task {task!r}, expected 'classification' or 'ner'")


def _is_document_file(path: str | os.PathLike[str]) -> bool:
    first = next((line for _, line in read_lines(path) if line.strip()), "")
    return is_document_line(first)


def _convert(data: Iterable[Any], convert: Callable[[Any], _Record]) -> list[_Record]:
    if isinstance(data, bytes | Mapping) or not isinstance(data, Iterable):
        raise ValueError(
            f"found data of type {type(data).__name__}, expected a path or a sequence of examples"
        )
    records = []
    for number, example in enumerate(data):
        try:
            records.append(convert(example))
        except ValueError as error:
            raise ValueError(f"example {number}: {error}") from error
    return records


def _document(example: Any) -> Document:
    if isinstance(example, Document):
        return example
    if isinstance(example, str):
        return Document(example)
    if isinstance(example, Mapping):
        return Document(_field(example, "text"), example.get("label"))
    if isinstance(example, Sequence) and len(example) == 2:
        return Document(example[0], example[1])
    raise ValueError(
        f"found {_described(example)}, expected a text, a (text, label) pair, a mapping with "
        "'text', or a Document"
    )


def _sentence(example: Any) -> Sentence:
    if isinstance(example, Sentence):
        return Sentence(example.words, example.tags and to_iob2(example.tags))
    if isinstance(example, Document):
        example = example.text
    if isinstance(example, Mapping):
        if "text" in example and "tokens" not in example and "words" not in example:
            example = _field(example, "text")
        else:
            tags = example.get("tags", example.get("ner_tags"))
            return _tagged(_field(example, "tokens", "words"), tags)
    if isinstance(example, str):
        return Sentence(tuple(example.split()))
    if isinstance(example, Sequence):
        if len(example) == 2 and not isinstance(example[0], str):
            return _tagged(example[0], example[1])
        return Sentence(tuple(example))
    raise ValueError(
        f"found {_described(example)}, expected words, a (words, tags) pair, a mapping with "
        "'tokens', a text, or a Sentence"
    )


def _tagged(words: Any, tags: Any) -> Sentence:
    # Data sets on the hub hold tags as numbers; only the data set itself knows their names.
    if isinstance(tags, Sequence) and any(isinstance(tag, int) for tag in tags):
        raise ValueError(f"found the tags {tags!r}, expected their names, such as 'B-PER'")
    sentence = Sentence(words, tags)
    return Sentence(sentence.words, sentence.tags and to_iob2(sentence.tags))


def _field(example: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if name in example:
            return example[name]
    keys = ", ".join(map(repr, example)) or "none"
    raise ValueError(f"found the keys {keys}, expected {' or '.join(map(repr, names))}")


def _described(example: object) -> str:
    size = f" and length {len(example)}" if isinstance(example, Sequence) else ""
    return f"an example of type {type(example).__name__}{size}"
