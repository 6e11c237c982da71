"""Unlabelled text that differs from the source's in more than language, in words.

The discriminator reads whatever tells the two sides apart. Where that is the length of a text or
its script, it need not learn languages, and what the encoder unlearns is not language either.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastadv.batches.draws import Draws

LEAST_TEXTS = 20
"""Of fewer texts neither a median nor a share is known well enough to warn."""
LENGTHS_APART = 2.0
"""Median lengths that differ by more than this factor are not those of texts of one kind. Where
texts are, they have up to 1.75 times as many word pieces as English ones (Hindi and Chinese in
multilingual BERT's vocabulary).
"""
OTHER_SCRIPT = 0.1
"""A share of texts in another script than the rest that is no chance. Where technical Chinese and
Japanese is full of English names, 1% of the texts are mainly Latin; in manual pages that are
translated in part, 11% to 24% are, nearly all of them English or program code.
"""


def unlike_source(draws: Draws, scripts: Mapping[str, Mapping[str, int]], source: str) -> list[str]:
    """A sentence for each difference, saying what was measured and what to do.

    Args:
        draws: The two sides.
        scripts: Texts by script and by language, as `script_counts` gives them.
        source: The language of the English side, which is not looked at for scripts.

    Returns:
        At most two sentences a language; none without the adversary.
    """
    english, others = draws.pieces()
    found = []
    for language, pieces in others.items():
        if min(len(english), len(pieces)) >= LEAST_TEXTS:
            medians = float(np.median(pieces)), float(np.median(english))
            found += _lengths(language, *medians, source)
        found += _scripts(language, scripts[language])
    return found


def _lengths(language: str, pieces: float, english: float, source: str) -> list[str]:
    shorter, longer = sorted((pieces, english))
    if longer <= LENGTHS_APART * shorter:
        return []
    return [
        f"unlabelled texts of {language} have {pieces:g} word pieces in the median and those of "
        f"{source} {english:g}, so that the discriminator can read length in place of language: "
        f"choose texts of one kind, or cut all to one length (max_length near {shorter:g}, which "
        "cuts labelled text too)"
    ]


def _scripts(language: str, texts: Mapping[str, int]) -> list[str]:
    looked_at = sum(texts.values())
    by_number = sorted(texts, key=lambda script: (-texts[script], script))
    if looked_at < LEAST_TEXTS or looked_at - texts[by_number[0]] <= OTHER_SCRIPT * looked_at:
        return []
    main, other = by_number[:2]
    share = 1 - texts[main] / looked_at
    return [
        f"of {looked_at} unlabelled texts of {language} {share:.0%} are not in the script of the "
        f"others ({main}), most of them in {other}, so that the discriminator can read script in "
        f"place of language: remove them if they are not in {language}, or choose text in one "
        "script"
    ]
