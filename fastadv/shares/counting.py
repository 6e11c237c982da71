"""Class shares counted on labelled texts, and what a count of few texts leaves open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PSEUDO_COUNT = 1.0


def counted_shares(
    counts: Mapping[str, float], names: Sequence[str], english: Sequence[float]
) -> tuple[float, ...]:
    """Shares of the classes by a count, to which one text is added that is shared out as English.

    That one text keeps a class that a small sample happens to lack from a share of 0, and counts
    for little beside fifty.

    Args:
        counts: Texts of each class.
        names: The classes in the order of the result.
        english: (G,) shares of the classes in English training data.

    Raises:
        ValueError: There is no text, or a class that is not among the names.
    """
    for name in counts:
        if name not in names:
            raise ValueError(
                f"found the class {name!r} in labelled texts to count, expected one of "
                f"{', '.join(names)}"
            )
    total = sum(counts.values())
    if total <= 0:
        raise ValueError("found no labelled text to count class shares on, expected some")
    return tuple(
        (counts.get(name, 0) + PSEUDO_COUNT * share) / (total + PSEUDO_COUNT)
        for name, share in zip(names, english, strict=True)
    )


def standard_error(share: float, texts: int) -> float:
    """Of a share that was counted on so many texts: 0.06 for 0.25 on 50."""
    return math.sqrt(share * (1 - share) / texts)
