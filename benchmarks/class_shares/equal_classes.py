"""A corpus of labelled documents with equally many of each class, as MLDoc was made.

    python benchmarks/class_shares/equal_classes.py SOURCE TARGET

Every LANG.train, LANG.dev and LANG.test in SOURCE (`LABEL<TAB>text` lines) is cut to as many
documents a class as its rarest class has, and English training text to 250 a class.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np

PARTS = (".train", ".dev", ".test")
ENGLISH, MOST = "en.train", 250


def equal_classes(lines: list[str], name: str, most: int | None = None) -> list[str]:
    """The chosen lines in a shuffled order, which depends on the name of the file alone."""
    by_class: dict[str, list[str]] = {}
    for line in lines:
        by_class.setdefault(line.partition("\t")[0], []).append(line)
    count = min(map(len, by_class.values()))
    if most is not None:
        count = min(count, most)
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    chosen = [
        texts[int(place)]
        for _, texts in sorted(by_class.items())
        for place in draw.permutation(len(texts))[:count]
    ]
    return [chosen[int(place)] for place in draw.permutation(len(chosen))]


def main(source: Path, target: Path) -> None:
    """Writes the corpus and prints the number of documents of each file."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in source.iterdir() if p.suffix in PARTS):
        lines = path.read_text("utf-8").splitlines()
        chosen = equal_classes(lines, path.name, MOST if path.name == ENGLISH else None)
        (target / path.name).write_text("".join(f"{line}\n" for line in chosen), "utf-8")
        print(f"{path.name} {len(chosen)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
