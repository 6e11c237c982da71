"""Class shares where an example has more than one class: types of entities, and sets of them.

    python benchmarks/class_shares/entities.py en=FILE da=FILE ... [--drop OTH]

Prints, for labelled files of named entities, the share of each type among the words of entities, of
entity words among all words, and of sentences without an entity; and the total variation of the
types, and of the sets of types that sentences hold, from those of the first file.
"""

from __future__ import annotations

import argparse
from collections import Counter

from fastadv.data import as_sentences
from fastadv.shares.estimate import total_variation
from fastadv.tasks.ner import OUTSIDE

Shares = dict[str, float]
NONE = "no entity"


def shares(counts: Counter[str]) -> Shares:
    total = counts.total()
    return {name: count / total for name, count in sorted(counts.items())}


def measured(path: str, drop: set[str]) -> tuple[Shares, Shares, float]:
    """Types among entity words, sets of types among sentences, and entity words among words."""
    words: Counter[str] = Counter()
    sets: Counter[str] = Counter()
    for sentence in as_sentences(path):
        types = [OUTSIDE if tag == OUTSIDE else tag[2:] for tag in sentence.tags or ()]
        types = [OUTSIDE if kind in drop else kind for kind in types]
        words.update(types)
        sets["+".join(sorted({*types} - {OUTSIDE})) or NONE] += 1
    outside = words.pop(OUTSIDE, 0)
    return shares(words), shares(sets), words.total() / (words.total() + outside)


def distance(one: Shares, other: Shares) -> float:
    names = sorted(one.keys() | other.keys())
    return total_variation(*([found.get(name, 0.0) for name in names] for found in (one, other)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="LANG=FILE")
    parser.add_argument("--drop", default="", help="types that count as no entity, with commas")
    options = parser.parse_args()
    drop = {*options.drop.split(",")}
    found = {}
    for pair in options.files:
        language, _, path = pair.partition("=")
        found[language] = measured(path, drop)
    first_types, first_sets, _ = next(iter(found.values()))
    names = [*first_types]
    print(f"{'':<6}{''.join(f'{name:>7}' for name in names)}  entity words  {NONE}  types  sets")
    for language, (types, sets, inside) in found.items():
        cells = "".join(f"{types.get(name, 0.0):7.2f}" for name in names)
        print(
            f"{language:<6}{cells}{inside:14.3f}{sets.get(NONE, 0.0):11.2f}"
            f"{distance(types, first_types):7.2f}{distance(sets, first_sets):6.2f}"
        )


if __name__ == "__main__":
    main()
