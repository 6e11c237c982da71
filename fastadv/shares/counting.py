"""Class shares counted on labelled texts, and what a count of few texts leaves open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PSEUDO_COUNT = 10.0
"""Texts that the English shares count for beside those of the count. A class's share differs by
some 0.05 from language to language, as much as a count of 50 to 75 texts does from the truth; less
is added, as languages that differ more gain more.
"""


def counted_shares(
    counts: Mapping[str, float],
    names: Sequence[str],
    english: Sequence[float],
    pseudo: float = PSEUDO_COUNT,
) -> tuple[float, ...]:
    """Shares of the classes by a count, to which `pseudo` texts are added that are shared out
    as English ones: the mean a posteriori under a Dirichlet prior.

    Args:
        counts: Texts of each class.
        names: The classes in the order of the result.
        english: (G,) shares of the classes in English training data.
        pseudo: 0 for the count alone.

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
        (counts.get(name, 0) + pseudo * share) / (total + pseudo)
        for name, share in zip(names, english, strict=True)
    )


def standard_error(share: float, texts: int) -> float:
    """Of a share that was counted on so many texts: 0.06 for 0.25 on 50."""
    return math.sqrt(share * (1 - share) / texts)
