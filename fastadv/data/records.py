"""What a labelled or unlabelled example is, before it is cut into word-pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_TAG = re.compile(r"O|[BI]-\S+")


@dataclass(frozen=True)
class Document:
    """A text and, where it is known, its class.

    `where` is the file and line it was read from ("FILE:LINE"), for messages; not compared.

    Raises:
        ValueError: The text or the label is not a string, or holds half a surrogate pair.
    """

    text: str
    label: str | None = None
    where: str | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ValueError(f"found a text of type {_kind(self.text)}, expected a string")
        if self.label is not None and not isinstance(self.label, str):
            raise ValueError(
                f"found the label {shown(self.label)} of type {_kind(self.label)}, "
                "expected the name of a class"
            )
        for text, what in ((self.text, "text"), (self.label or "", "label")):
            if not text.isascii():
                _check_unicode(text, what)


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence and, where they are known, a tag for each: O, B-TYPE or I-TYPE.

    `where` is the file and first line it was read from ("FILE:LINE"), for messages; not compared.

    Raises:
        ValueError: A word or a tag is not a string, a tag is not of that form, or there are not
            as many tags as words.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    where: str | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", _strings(self.words, "word"))
        if self.tags is None:
            return
        object.__setattr__(self, "tags", _strings(self.tags, "tag"))
        for tag in self.tags:
            if not is_tag(tag):
                raise ValueError(f"found the tag {shown(tag)}, expected O, B-TYPE or I-TYPE")
        if len(self.tags) != len(self.words):
            raise ValueError(
                f"found {len(self.tags)} tags for {len(self.words)} words, expected one a word"
            )


Kind = type[Document] | type[Sentence]
"""Which of the two is wanted from data that may give either."""


def place(record: Document | Sentence, number: int) -> str:
    """Where an example came from, in words: its file and line, else its number from 0."""
    return record.where or f"example {number}"


def is_tag(tag: str) -> bool:
    """Whether `tag` is O, B-TYPE or I-TYPE."""
    return _TAG.fullmatch(tag) is not None


def to_iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """The tags of one sentence in IOB2, where every entity begins with B-.

    IOB1 (CoNLL-2003) writes B- only where an entity directly follows another of its type. Both
    schemes are read by one rule: I-X that does not continue an entity of type X begins one.
    Tags in IOB2 come back unchanged, and an illegal I- in them gets the B- it lacks, which is
    how `fastadv.tasks.metrics` (as conlleval does) counts it anyway.
    """
    fixed = []
    previous = "O"
    for tag in tags:
        begins = tag[:2] == "I-" and previous[2:] != tag[2:]
        fixed.append("B-" + tag[2:] if begins else tag)
        previous = tag
    return tuple(fixed)


def shown(value: object) -> str:
    """A value for a message: on one line, not too long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _check_unicode(text: str, what: str) -> None:
    """Refuse half a surrogate pair (JSON can escape one), which no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"a {what} with half a surrogate pair at character {error.start + 1}"
        raise ValueError(f"found {found}, expected Unicode text") from None


def _kind(value: object) -> str:
    return type(value).__name__


def _strings(values: object, what: str) -> tuple[str, ...]:
    """`values` as a tuple of strings."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"found {what}s of type {_kind(values)}, expected a sequence of strings")
    for value in values:
        if not isinstance(value, str):
            raise ValueError(
                f"found the {what} {shown(value)} of type {_kind(value)}, expected a string"
            )
        if not value.isascii():
            _check_unicode(value, what)
    return tuple(values)
