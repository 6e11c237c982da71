"""The batches that step_time.py times, and how much arithmetic they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fastadv.batches.packing import PackedBatch, pack
from fastadv.batches.tokenization import (
    TokenizedDataset,
    TokenSequence,
    as_unlabeled,
    tokenize_documents,
    tokenize_sentences,
)
from fastadv.config import TaskName
from fastadv.data import read_conll, read_documents

Examples = list[list[TokenSequence]]

# The fewest word-pieces of a drawn text: two special ones, and one between them.
SHORTEST = 3


@dataclass(frozen=True)
class Shape:
    """What the texts of a task look like.

    Attributes:
        task: "classification" or "ner".
        labels: The labels of real data, in the order of the output; drawn texts have as many.
        median, spread: Drawn lengths are log-normal, with this median in word-pieces and this
            standard deviation of the logarithm; they are rounded, then clipped to `SHORTEST` ...
            `max_length`.
        max_length: The longest text in word-pieces, special ones included.
    """

    task: TaskName
    labels: tuple[str, ...]
    median: float
    spread: float
    max_length: int


# Means after clipping: 20 pieces for sentences, as in CoNLL-2003 and English-EWT; 180 for news
# stories, many of which are cut at 256.
SHAPES = {
    "ner": Shape(
        "ner", ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"), 15.7, 0.7, 128
    ),
    "news": Shape("classification", ("GAMES", "MEDIA", "NET", "SCIENCE"), 186.0, 0.6, 256),
}


@dataclass(frozen=True)
class StepDraws:
    """What one iteration of Algorithm 1 draws: lists of examples, each of the batch size."""

    labeled: Examples
    other_d: Examples
    english_d: Examples
    other_g: Examples
    english_g: Examples

    def packed(self) -> tuple[PackedBatch, PackedBatch, PackedBatch]:
        """The batches of T, D and G, as `AdversarialFinetuner.collate` makes them."""
        return (
            pack(self.labeled),
            _pack_sides(self.other_d, self.english_d),
            _pack_sides(self.other_g, self.english_g),
        )

    def parts(self) -> list[PackedBatch]:
        """T; D's other languages and English; G's likewise: the five batches of a padded system."""
        sides = (self.other_d, self.english_d, self.other_g, self.english_g)
        return [pack(self.labeled), *(pack(side) for side in sides)]

    @property
    def sequences(self) -> int:
        """Sequences of all five batches; every window of a long sentence counts as one."""
        return sum(len(part) for part in self.parts())

    @property
    def useful_tokens(self) -> int:
        """Tokens of all five batches, without padding."""
        return sum(part.num_tokens for part in self.parts())

    @property
    def padded_tokens(self) -> int:
        """The same, with each of the five batches padded to its own longest sequence."""
        return sum(len(part) * part.max_seqlen for part in self.parts())

    def rows(self) -> tuple[int, int]:
        """The numbers of different word-pieces in the T batch and in the G batch: these rows of the
        table have a gradient.
        """
        labeled, _, generator = self.packed()
        return len(labeled.input_ids.unique()), len(generator.input_ids.unique())


def _pack_sides(other: Examples, english: Examples) -> PackedBatch:
    return pack(other + english, english=[False] * len(other) + [True] * len(english))


def forward_flops(config: Any, lengths: Sequence[int]) -> int:
    """Floating-point operations of one forward pass over sequences of these lengths.

    This is the unit of the step's count. A multiplication and an addition are two operations, so
    the count is 2 * body parameters * tokens plus attention. The body's parameters are the matrices
    of the layers: Q, K, V and the output (4 H^2) and the two feed-forward ones (2 H I). For a
    sequence of n tokens, attention multiplies Q with K and the result with V: 4 n^2 H per layer.
    Embeddings, element-wise passes and the heads are not counted.

    Args:
        config: The configuration of a BERT-like model.
        lengths: Tokens of each sequence, padding not counted.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    body = layers * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    return 2 * body * sum(lengths) + 4 * layers * hidden * sum(n * n for n in lengths)


def step_flops(config: Any, draws: StepDraws) -> int:
    """Useful floating-point operations of one iteration: 11 forward-units.

    A backward pass costs two forwards. T: one batch forward and backward, 3 units. D: two sides,
    forward only, 2. G: two sides forward and backward, 6.
    """
    units = (3, 1, 1, 3, 3)
    lengths = [part.cu_seqlens.diff().tolist() for part in draws.parts()]
    return sum(u * forward_flops(config, n) for u, n in zip(units, lengths, strict=True))


class DrawnTexts:
    """Random word-pieces of random lengths: no data needed.

    Args:
        shape: The kind of texts to draw.
        vocab_size: Ids are 1 ... vocab_size - 1 (0 is padding), and their logarithm is uniform
            (Zipf's law), so that a batch holds about as many different pieces as real text.
        seed: The seed of all draws.

    Attributes:
        source: Where the lengths come from, in words.
    """

    def __init__(self, shape: Shape, vocab_size: int, seed: int) -> None:
        self.shape, self.vocab_size = shape, vocab_size
        self.source = (
            f"drawn: log-normal, median {shape.median:g} word-pieces, standard deviation of the "
            f"logarithm {shape.spread:g}, cut to {SHORTEST} ... {shape.max_length}"
        )
        self._rng = np.random.default_rng(seed)

    def step(self, batch_size: int) -> StepDraws:
        """Draws one iteration."""
        sides = (self._examples(batch_size, labelled=False) for _ in range(4))
        return StepDraws(self._examples(batch_size, labelled=True), *sides)

    def lengths(self, count: int) -> np.ndarray:
        """(count,) int64 lengths."""
        shape = self.shape
        drawn = self._rng.lognormal(math.log(shape.median), shape.spread, count)
        return np.clip(np.rint(drawn), SHORTEST, shape.max_length).astype(np.int64)

    def _examples(self, count: int, labelled: bool) -> Examples:
        return [[self._sequence(int(n), labelled)] for n in self.lengths(count)]

    def _sequence(self, length: int, labelled: bool) -> TokenSequence:
        ids = np.exp(self._rng.uniform(0.0, math.log(self.vocab_size), length)).astype(np.int32)
        ids = ids.clip(1, self.vocab_size - 1)
        classes = len(self.shape.labels)
        if not labelled:
            return TokenSequence(ids)
        if self.shape.task == "classification":
            return TokenSequence(ids, label=int(self._rng.integers(classes)))
        # Every second piece between the special ones begins a word.
        positions = np.arange(1, length - 1, 2, dtype=np.int32)
        return TokenSequence(
            ids,
            word_positions=positions,
            word_labels=self._rng.integers(classes, size=len(positions)),
            word_indices=np.arange(len(positions), dtype=np.int32),
        )


class RealTexts:
    """Examples drawn with replacement from tokenised text.

    Args:
        labeled: Labelled English examples.
        others: Unlabelled text of other languages, drawn from as one set.
        seed: The seed of the draws.
        source: Where the texts come from, in words.
    """

    def __init__(
        self,
        labeled: TokenizedDataset,
        others: Sequence[TokenizedDataset],
        seed: int,
        source: str = "files",
    ) -> None:
        self.source = source
        self._labeled, self._english = labeled, [as_unlabeled(labeled)]
        self._others = [as_unlabeled(other) for other in others]
        self._rng = np.random.default_rng(seed)

    def step(self, batch_size: int) -> StepDraws:
        """Draws one iteration."""
        sides = (self._others, self._english, self._others, self._english)
        examples = [self._draw(side, batch_size) for side in sides]
        return StepDraws(self._draw([self._labeled], batch_size), *examples)

    def _draw(self, datasets: Sequence[TokenizedDataset], count: int) -> Examples:
        ends = np.cumsum([len(dataset) for dataset in datasets])
        places = self._rng.integers(ends[-1], size=count)
        owners = np.searchsorted(ends, places, side="right")
        return [
            datasets[o][int(p - ends[o] + len(datasets[o]))]
            for o, p in zip(owners, places, strict=True)
        ]


def real_texts(folder: Path, shape: Shape, tokenizer: Any, seed: int) -> RealTexts:
    """Texts of `debian_topics/` (documents) or `uner/` (sentences), cut by `tokenizer`.

    Raises:
        ValueError: A file that is needed is not in the folder.
    """
    if shape.task == "classification":
        english = _found(folder, "debian_topics/en.train")
        others = [p for p in _found(folder, "debian_topics/*.train") if p not in english]
    else:
        english = _found(folder, "uner/*/en_*-train*.iob2")
        others = [p for p in _found(folder, "uner/*/*-train*.iob2") if p not in english]
    if not others:
        raise ValueError(f"{folder}: found no text but English, expected another language too")
    ids = {label: k for k, label in enumerate(shape.labels)}

    def tokenized(path: Path, labels: dict[str, int] | None) -> TokenizedDataset:
        if shape.task == "classification":
            return tokenize_documents(tokenizer, read_documents(path), labels, shape.max_length)
        return tokenize_sentences(tokenizer, read_conll(path), labels, shape.max_length, 32)

    datasets = [tokenized(p, None) for p in others]
    source = f"files: {english[0].relative_to(folder)} and {len(others)} of other languages"
    return RealTexts(tokenized(english[0], ids), datasets, seed, source)


def _found(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"{folder}: found no {pattern}, expected one")
    return paths


def make_tokenizer(model: Path | None, data: Path | None) -> Any:
    """The tokenizer of a model folder, or multilingual BERT's from the vocabulary in `data`.

    Without data nothing is ever tokenised, so a stand-in with one piece is enough.
    """
    if data is None:
        pieces: Any = models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(pieces), unk_token="[UNK]")
    if model is not None:
        return AutoTokenizer.from_pretrained(model)
    vocabulary = str(_found(data, "mbert_vocab/vocab.txt")[0])
    tokenizer = Tokenizer(models.WordPiece.from_file(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(s, tokenizer.token_to_id(s)) for s in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=special
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
