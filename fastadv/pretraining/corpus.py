"""Tokenised text of several languages, cut into sequences, some of it held out."""

from __future__ import annotations

import copy
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
# The fewest pieces of a sequence, without special tokens.
SHORTEST = 4
# Paragraphs tokenised at once.
CHUNK = 4096
# A sequence cut to fewer pieces than this could have parts shorter than SHORTEST.
LEAST_LENGTH = 2 + 2 * SHORTEST
# The most held-out paragraphs of a language: its loss need not be more certain than these make it.
MOST_HELD_OUT = 2000
_SPECIAL = ("cls", "sep", "mask")


@dataclass(frozen=True)
class Sequences:
    """Parts of one language's ids.

    Attributes:
        starts, ends: (N,) int64, the bounds of each sequence.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def tokens(self) -> int:
        """The pieces in all sequences."""
        return int((self.ends - self.starts).sum())


@dataclass(frozen=True)
class Corpus:
    """Text of some languages.

    Attributes:
        languages: The languages' names, in order.
        input_ids: By language, (T,) uint16, or uint32 for vocabularies of more than 65,536
            pieces; without special tokens.
        training, held_out: By language, sequences of at most `max_length` - 2 pieces.
        max_length: Pieces of the longest sequence once it has its two special tokens.
        vocabulary: The number of pieces.
        special: Ids of [CLS], [SEP] and [MASK] under "cls", "sep" and "mask", and under "all" the
            ids of all pieces that are not ordinary.
    """

    languages: tuple[str, ...]
    input_ids: dict[str, NDArray[Any]]
    training: dict[str, Sequences]
    held_out: dict[str, Sequences]
    max_length: int
    vocabulary: int
    special: dict[str, Any]

    @classmethod
    def of(
        cls,
        texts: Mapping[str, Iterable[str]],
        tokenizer: Any,
        max_length: int,
        held_out: float = 0.01,
    ) -> Corpus:
        """Tokenises paragraphs.

        A paragraph of more than `max_length` - 2 pieces is cut into parts of equal length; one with
        fewer than four is left out. Checksums of their text decide which paragraphs are held out,
        so that copies go the same way; a language holds out at least one text and at most
        `MOST_HELD_OUT`, the first ones. Text that reads like a special token is treated as text.

        Raises:
            ValueError: A language has too little text, the tokenizer lacks a special token, or
                `max_length` is less than `LEAST_LENGTH`.
        """
        if max_length < LEAST_LENGTH:
            raise ValueError(f"max_length is {max_length}, expected at least {LEAST_LENGTH}")
        special = _special(tokenizer)
        encoder = _plain_encoder(tokenizer)
        ids, training, kept = {}, {}, {}
        for language, paragraphs in texts.items():
            arrays, sums = _tokenized(paragraphs, encoder)
            if len(np.unique(sums)) < 2:
                raise ValueError(
                    f"found {len(np.unique(sums))} different paragraphs of {language} with "
                    f"{SHORTEST} word pieces or more, expected at least 2, one of them to be held "
                    "out"
                )
            chosen = _chosen(sums, held_out)
            kind = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
            ids[language] = np.concatenate(arrays).astype(kind)
            bounds = np.concatenate([[0], np.cumsum([len(a) for a in arrays])])
            training[language] = _cut(bounds, ~chosen, max_length - 2)
            kept[language] = _cut(bounds, chosen, max_length - 2)
        return cls(tuple(ids), ids, training, kept, max_length, len(tokenizer), special)

    def frequencies(self, exponent: float) -> NDArray[np.float64]:
        """(V,) shares of the pieces, with languages weighted as they are drawn."""
        shares = self.shares(exponent)
        total = np.zeros(self.vocabulary)
        for language, ids in self.input_ids.items():
            total += shares[language] * np.bincount(ids, minlength=self.vocabulary) / len(ids)
        return total

    def shares(self, exponent: float) -> dict[str, float]:
        """By language, its share of the tokens in training to a power; the shares sum to 1."""
        tokens = {language: self.training[language].tokens for language in self.languages}
        powers = {n: (count / sum(tokens.values())) ** exponent for n, count in tokens.items()}
        return {n: power / sum(powers.values()) for n, power in powers.items()}

    def fingerprint(self) -> dict[str, list[int]]:
        """By language, sequences in training, and a checksum of the ids and of their borders."""
        found = {}
        for language, ids in self.input_ids.items():
            own = self.training[language]
            borders = zlib.crc32(own.starts.tobytes() + own.ends.tobytes())
            found[language] = [len(own), zlib.crc32(ids.tobytes(), borders)]
        return found

    def save(self, path: Path) -> None:
        """Writes one compressed file.

        Raises:
            OSError: It cannot be written; what was there before is untouched.
        """
        arrays: dict[str, Any] = {
            "format": np.array(FORMAT),
            "languages": np.array(self.languages),
            "max_length": np.array(self.max_length),
            "vocabulary": np.array(self.vocabulary),
            "special": np.array(self.special["all"], np.int64),
            **{name: np.array(self.special[name]) for name in _SPECIAL},
        }
        for language in self.languages:
            arrays[f"ids.{language}"] = self.input_ids[language]
            for name, sequences in (("training", self.training), ("held_out", self.held_out)):
                arrays[f"{name}.starts.{language}"] = sequences[language].starts
                lengths = sequences[language].ends - sequences[language].starts
                arrays[f"{name}.lengths.{language}"] = lengths.astype(np.uint16)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            try:
                np.savez_compressed(file, **arrays)
                file.flush()
                temporary.chmod(0o644)
                temporary.replace(path)
            except BaseException:
                temporary.unlink()
                raise

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Reads what `save` wrote.

        Raises:
            ValueError: There is no such file, or it is damaged or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                found = dict(file)
            if int(found["format"]) != FORMAT:
                raise ValueError(f"found format {found['format']}, expected {FORMAT}")
            return cls._of_arrays(found)
        except Exception as error:  # Damage shows in as many ways as NumPy and zipfile have.
            raise ValueError(
                f"{path}: expected a corpus of fastadv pretrain: {' '.join(str(error).split())}"
            ) from error

    @classmethod
    def _of_arrays(cls, found: Mapping[str, Any]) -> Corpus:
        languages = tuple(str(name) for name in found["languages"])

        def sequences(name: str, language: str) -> Sequences:
            starts = found[f"{name}.starts.{language}"]
            ends = starts + found[f"{name}.lengths.{language}"].astype(np.int64)
            if starts.dtype != np.int64 or len(ends) == 0 or (ends <= starts).any():
                raise ValueError(f"found no sequences of {language}, expected where they begin")
            if starts.min() < 0 or ends.max() > len(found[f"ids.{language}"]):
                raise ValueError(f"sequences of {language} lie outside its ids")
            return Sequences(starts, ends)

        vocabulary = int(found["vocabulary"])
        for name in languages:
            ids = found[f"ids.{name}"]
            if ids.dtype not in (np.uint16, np.uint32) or ids.max(initial=0) >= vocabulary:
                raise ValueError(f"ids of {name} are not below {vocabulary}")

        return cls(
            languages,
            {n: found[f"ids.{n}"] for n in languages},
            {n: sequences("training", n) for n in languages},
            {n: sequences("held_out", n) for n in languages},
            int(found["max_length"]),
            vocabulary,
            {"all": found["special"].tolist()} | {n: int(found[n]) for n in _SPECIAL},
        )


def _special(tokenizer: Any) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}
    for name, number in found.items():
        if number is None:
            raise ValueError(f"the tokenizer has no {name} token, expected [{name.upper()}]")
    return found | {"all": sorted(tokenizer.all_special_ids)}


def _plain_encoder(tokenizer: Any) -> Any:
    """A copy of the tokenizer's core that neither cuts nor pads and knows no special tokens."""
    encoder = copy.deepcopy(tokenizer.backend_tokenizer)
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def _tokenized(
    paragraphs: Iterable[str], encoder: Any
) -> tuple[list[NDArray[Any]], NDArray[np.uint32]]:
    """Ids of each paragraph that is long enough, and a checksum of its text."""
    arrays, sums = [], []
    for chunk in _chunks(paragraphs):
        encodings = encoder.encode_batch_fast(chunk, add_special_tokens=False)
        for paragraph, encoding in zip(chunk, encodings, strict=True):
            if len(encoding.ids) >= SHORTEST:
                arrays.append(np.array(encoding.ids, np.uint32))
                sums.append(zlib.crc32(paragraph.encode()))
    return arrays, np.array(sums, np.uint32)


def _chunks(paragraphs: Iterable[str]) -> Iterator[list[str]]:
    left = iter(paragraphs)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


def _chosen(sums: NDArray[np.uint32], held_out: float) -> NDArray[np.bool_]:
    """(N,) whether each paragraph is held out: the first of too many, or the last if none is."""
    texts, first = np.unique(sums, return_index=True)
    texts = texts[np.argsort(first)]
    out = texts[texts < int(held_out * 2**32)][:MOST_HELD_OUT]
    if not len(out):
        out = texts[-1:]
    elif len(out) == len(texts):
        out = out[1:]
    return np.isin(sums, out)


def _cut(bounds: NDArray[Any], chosen: NDArray[np.bool_], longest: int) -> Sequences:
    """The chosen paragraphs, each cut into as few parts as `longest` allows."""
    starts, ends = bounds[:-1][chosen], bounds[1:][chosen]
    sizes = ends - starts
    parts = -(-sizes // longest)
    which = np.repeat(np.arange(len(parts)), parts)
    number = np.arange(len(which)) - np.repeat(np.cumsum(parts) - parts, parts)
    # Bounds at equal distances, rounded.
    first = starts[which] + number * sizes[which] // parts[which]
    last = starts[which] + (number + 1) * sizes[which] // parts[which]
    return Sequences(first.astype(np.int64), last.astype(np.int64))
