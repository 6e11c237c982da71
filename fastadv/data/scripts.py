"""Scripts: in which one a text is written, by its letters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from fastadv.data.records import Document, Sentence

SAMPLE = 500
"""Texts whose script is looked at, at most; shares are then known to two points or so."""

# The first words of the names of letters that Japanese and Chinese are written with: Japanese mixes
# three scripts in every sentence, and two of them Chinese has not.
_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC"}
_NAME = "Chinese or Japanese"
# A Chinese character or a syllable of Hangul says as much as several letters: translations have 2.0
# letters of English for one of Japanese, and 2.8 for one of Chinese (SIB-200). So a Chinese text
# remains one where slightly more than half of its letters are English names.
_WORTH = {_NAME: 2, "Hangul": 2}
# Forms of letters, not scripts: the letter's script is the next word of its name.
_FORMS = {"FULLWIDTH", "HALFWIDTH"}
# Letters in every script's texts: signs for units, formulas and sounds.
_SIGNS = {
    "DOUBLE-STRUCK", "FEMININE", "MASCULINE", "MATHEMATICAL", "MICRO", "MODIFIER", "OHM", "SCRIPT"
}  # fmt: skip


def script_of(text: str) -> str | None:
    """The script of most of a text's letters, such as "Latin", "Cyrillic" or "Devanagari".

    Kana and Chinese characters are one script, "Chinese or Japanese". A letter of it, and one of
    Hangul, counts as two. Digits, punctuation and marks are no letters.

    Returns:
        The name; None for a text of which no script has more than half of the letters, as for one
        without letters.
    """
    letters: Counter[str] = Counter()
    for character, count in Counter(text).items():
        script = _script(character)
        if script is not None:
            letters[script] += _WORTH.get(script, 1) * count
    if not letters:
        return None
    ((script, most),) = letters.most_common(1)
    return script if 2 * most > letters.total() else None


def script_counts(records: Sequence[Document | Sentence]) -> Counter[str]:
    """Texts by `script_of`, of at most `SAMPLE` texts spread evenly; those without are left out."""
    every = max(1, -(-len(records) // SAMPLE))
    found = (script_of(_text(record)) for record in records[::every])
    return Counter(script for script in found if script is not None)


def _text(record: Document | Sentence) -> str:
    return record.text if isinstance(record, Document) else " ".join(record.words)


@cache
def _script(character: str) -> str | None:
    """By the first word of the letter's name in Unicode; None for what is no letter."""
    if not character.isalpha():
        return None
    words = unicodedata.name(character, "").split()
    if words and words[0] in _FORMS:
        words = words[1:]
    if not words or words[0] in _SIGNS:
        return None
    return _NAME if words[0] in _EAST_ASIAN else words[0].capitalize()
