"""Made-up files in the layouts of the corpora, quirks and official sizes included."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

WORDS = ["Zürich", "Peña", "1\xa0000", "das", "-", "#", "Straße", "el", "São", "»", "O", "de"]
TYPES = ["PER", "ORG", "LOC", "MISC"]
Rows = list[tuple[str, str]]


def corpus(sentences: int, words: int, longest: int = 0, seed: int = 1) -> list[Rows]:
    """So many sentences with so many words in all, tags in IOB2; one sentence of `longest`."""
    rng = random.Random(seed)
    sizes = [1] * sentences
    left = words - sentences
    if longest:
        sizes[sentences // 2] = longest
        left -= longest - 1
    # Short of the longest by far, so that it stays the longest.
    for index in rng.choices(range(sentences), k=left):
        sizes[index - (longest > 0 and index == sentences // 2)] += 1
    return [_rows(rng, size) for size in sizes]


def _rows(rng: random.Random, size: int) -> Rows:
    rows: Rows = []
    while len(rows) < size:
        kind = rng.choice(TYPES)
        entity = ["B-" + kind] + ["I-" + kind] * rng.randrange(3)
        tags = entity if rng.random() < 0.4 else ["O"]
        rows += [(rng.choice(WORDS), tag) for tag in tags[: size - len(rows)]]
    return rows


def to_iob1(rows: Rows) -> Rows:
    """B- only where an entity directly follows another of its type."""
    result, previous = [], "O"
    for word, tag in rows:
        follows = previous[2:] == tag[2:]
        result.append((word, tag if tag == "O" or follows else "I-" + tag[2:]))
        previous = tag
    return result


def conll_2003(sentences: list[Rows], start: str = "-DOCSTART- -X- -X- O") -> str:
    """Four columns in IOB1, document starts with a blank line after them."""
    return _by_documents(
        sentences, f"{start}\n\n", lambda word, tag: f"{word} NN I-NP {tag}\n", to_iob1
    )


def conll_2003_german(sentences: list[Rows]) -> str:
    """Five columns, the second of which is the lemma."""
    return _by_documents(
        sentences,
        "-DOCSTART- -X- -X- -X- O\n\n",
        lambda word, tag: f"{word} {word.lower()} NN I-NC {tag}\n",
        to_iob1,
    )


def conll_2002_dutch(sentences: list[Rows]) -> str:
    """Three columns in IOB2, document starts without a blank line after them."""
    return _by_documents(sentences, "-DOCSTART- -DOCSTART- O\n", lambda w, tag: f"{w} N {tag}\n")


def conll_2002_spanish(sentences: list[Rows]) -> str:
    """Three columns in IOB2, no document starts, one I- after O."""
    content = "".join("".join(f"{w} NC {t}\n" for w, t in rows) + "\n" for rows in sentences)
    return content.replace(" NC O\n", " NC O\nilegal NC I-ORG\n", 1)


def universal_ner(sentences: list[Rows]) -> str:
    """Comments, indices, lines of three and of five columns."""
    parts = []
    for number, rows in enumerate(sentences):
        parts.append(f"# sent_id = {number}\n# text = {' '.join(word for word, _ in rows)}\n")
        for index, (word, tag) in enumerate(rows, 1):
            more = "\t-\tx" if (number + index) % 3 else ""
            parts.append(f"{index}\t{word}\t{tag}{more}\n")
        parts.append("\n")
    return "".join(parts)


def mldoc(documents: int, literal: bool = False, seed: int = 1) -> str:
    """LABEL<TAB>text lines; with `literal`, texts as MLDoc's generator writes them."""
    rng = random.Random(seed)
    lines = []
    for _ in range(documents):
        text = " ".join(rng.choices([*WORDS, "it's", '"so"', "東京"], k=rng.randrange(1, 30)))
        shown = repr(text.encode()) if literal else text
        lines.append(f"{rng.choice(['CCAT', 'ECAT', 'GCAT', 'MCAT'])}\t{shown}\n")
    return "".join(lines)


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def _by_documents(
    sentences: Iterable[Rows],
    start: str,
    line: Callable[[str, str], str],
    scheme: Callable[[Rows], Rows] = list,
) -> str:
    parts = []
    for number, rows in enumerate(sentences):
        if number % 15 == 0:
            parts.append(start)
        parts += [line(word, tag) for word, tag in scheme(rows)]
        parts.append("\n")
    return "".join(parts)
