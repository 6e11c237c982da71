"""What a labelled or unlabelled example is, before it is cut into word-pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TAG = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True)
class Document:
    """A text and, where it is known, its class.

    Raises:
        ValueError: the text or the label is not a string.
    """

    text: str
    label: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ValueError(f"found a text of type {_kind(self.text)}, expected a string")
        if self.label is not None and not isinstance(self.label, str):
            raise ValueError(
                f"found the label {self.label!r} of type {_kind(self.label)}, "
                "expected the name of a class"
            )


@dataclass(frozen=True)
class Sentence:
    """The words of a sentence and, where they are known, a tag for each: O, B-TYPE or I-TYPE.

    Raises:
        ValueError: a word or a tag is not a string, a tag is not of that form, or there are not
            as many tags as words.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", _strings(self.words, "word"))
        if self.tags is None:
            return
        object.__setattr__(self, "tags", _strings(self.tags, "tag"))
        for tag in self.tags:
            if not is_tag(tag):
                raise ValueError(f"found the tag {tag!r}, expected O, B-TYPE or I-TYPE")
        if len(self.tags) != len(self.words):
            raise ValueError(
                f"found {len(self.tags)} tags for {len(self.words)} words, expected one a word"
            )


def is_tag(tag: str) -> bool:
    """Whether `tag` is O, B-TYPE or I-TYPE."""
    return _TAG.fullmatch(tag) is not None


def to_iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """The tags of one sentence in IOB2, where every entity begins with B-.

    IOB1 (CoNLL-2003) writes B- only where an entity directly follows another of its type. Both
    schemes are read by one rule: I-X that does not continue an entity of type X begins one.
    Tags in IOB2 come back unchanged, and an illegal I- in them gets the B- it lacks, which is
    how `fastadv.metrics` (as conlleval does) counts it anyway.
    """
    fixed = []
    previous = "O"
    for tag in tags:
        begins = tag[:2] == "I-" and previous[2:] != tag[2:]
        fixed.append("B-" + tag[2:] if begins else tag)
        previous = tag
    return tuple(fixed)


def _kind(value: object) -> str:
    return type(value).__name__


def _strings(values: object, what: str) -> tuple[str, ...]:
    """`values` as a tuple of strings."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"found {what}s of type {_kind(values)}, expected a sequence of strings")
    for value in values:
        if not isinstance(value, str):
            raise ValueError(
                f"found the {what} {value!r} of type {_kind(value)}, expected a string"
            )
    return tuple(values)
