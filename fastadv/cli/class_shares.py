"""Options that say what shares of the classes a language has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from fastadv.cli.options import add_repeated, each
from fastadv.records.progress import notice

if TYPE_CHECKING:
    from fastadv.tasks.class_shares import ClassShares

MATCHED = ("english", "equal", "halfway", "estimate")
"""Words for shares that predictions can be matched to."""


def add_match_shares(parser: ArgumentParser, what: str) -> None:
    """`--match_shares` of a command; `what` says whose predictions are matched."""
    add_repeated(
        parser,
        "--match_shares",
        "[LANG=]SHARES",
        f"match predictions {what}: a constant a class makes their mean over the language's text "
        "have these shares of the classes. english (as in training), equal, halfway between, "
        "estimate (from predictions on English dev), or a labelled FILE whose classes are counted; "
        "once for all languages, or with LANG= for each",
    )


def by_language(
    given: Any, option: str, words: tuple[str, ...], count: Callable[[str, str], dict[str, float]]
) -> Any:
    """What an option says, as a configuration takes it: a word, or shares by language.

    Args:
        given: The values of the option: WORD, LANG=WORD or LANG=FILE.
        option: Its name.
        words: What need not be counted.
        count: Counts the classes of a labelled file, for a language.

    Returns:
        None if the option was not given.

    Raises:
        ValueError: A value of another form, or a language twice.
    """
    values = each(given)
    if not values:
        return None
    if len(values) == 1 and values[0] in words:
        return values[0]
    found: dict[str, Any] = {}
    for value in values:
        language, equals, shares = value.partition("=")
        if not (equals and language and shares):
            raise ValueError(
                f"{option} is {value!r}, expected {', '.join(words)}, or LANG=FILE with labelled "
                "texts of that language"
            )
        if language in found:
            raise ValueError(f"{option} names {language!r} twice, expected each language once")
        found[language] = shares if shares in words else count(language, shares)
    return found


def counter(
    known: ClassShares, read: Callable[[str, str], Any]
) -> Callable[[str, str], dict[str, float]]:
    """Counts the classes of a labelled file, and says what the count leaves open.

    Args:
        known: The classes.
        read: Labelled examples of a file, by the name that options give it.
    """
    from fastadv.shares.counting import standard_error

    def count(language: str, path: str) -> dict[str, float]:
        examples = known.task.labeled(read(language, path))
        shares = known.counted(examples)
        counts: Mapping[str, int] = known.task.counts(examples)
        texts = sum(counts.get(name, 0) for name in known.names)
        told = (
            f"{name} {share:.2f} ± {standard_error(share, texts):.2f}"
            for name, share in shares.items()
        )
        notice(f"class shares of {language}, counted on {texts}: {', '.join(told)}")
        return shares

    return count
