"""Documents and sentences as word-piece ids, cut once and kept in a few flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadv.batches.tokenized import TokenizedDataset, TokenSequence, as_unlabeled
from fastadv.batches.windows import scoring_windows, window_borders
from fastadv.data.records import Document, Sentence, place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "TokenSequence",
    "TokenizedDataset",
    "as_unlabeled",
    "tokenize_documents",
    "tokenize_sentences",
]

# The tokenizer keeps some hundred bytes per piece until its results are read: batches bound that.
_BATCH = 2048
_IDS_ONLY: dict[str, Any] = {
    "padding": False,
    "return_attention_mask": False,
    "return_token_type_ids": False,
    "verbose": False,
}


def tokenize_documents(
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[Document],
    label_ids: Mapping[str, int] | None,
    max_length: int,
) -> TokenizedDataset:
    """Cut documents into word-pieces and keep the first `max_length`, special tokens included.

    Args:
        tokenizer: A fast tokenizer of transformers.
        documents: The documents.
        label_ids: The id of each class; None leaves the data set unlabelled.
        max_length: The longest sequence in tokens, special ones included.

    Raises:
        ValueError: The tokenizer is not a fast one, `max_length` leaves no room for more than the
            special tokens, or a label is missing or unknown.
    """
    _capacity(tokenizer, max_length)
    labels = None
    if label_ids is not None:
        found = (_label_id(d.label, place(d, n), label_ids) for n, d in enumerate(documents))
        labels = np.fromiter(found, np.int64, len(documents))
    ids: list[np.ndarray] = []
    with _state_restored(tokenizer):
        for start in range(0, len(documents), _BATCH):
            encoded = tokenizer(
                [document.text for document in documents[start : start + _BATCH]],
                truncation=True,
                max_length=max_length,
                **_IDS_ONLY,
            )
            ids.extend(np.array(row, np.int32) for row in encoded["input_ids"])
    return TokenizedDataset(
        input_ids=_joined(ids, np.int32),
        token_offsets=_offsets(ids),
        example_offsets=np.arange(len(ids) + 1),
        labels=labels,
    )


def tokenize_sentences(
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[Sentence],
    label_ids: Mapping[str, int] | None,
    max_length: int,
    overlap: int,
) -> TokenizedDataset:
    """Cut the words of sentences into pieces, and sentences that are too long into windows.

    A sentence of at most `max_length` tokens, special ones included, is one window. A longer one
    gets windows of `max_length` tokens, the last perhaps shorter, which overlap by `overlap`
    pieces. Each word is scored by its first piece in one window: the one with the most context on
    the word's nearer side. A word that gives no piece (a control character, say) is scored nowhere,
    but `num_words` counts it, so that it can be given O.

    Args:
        tokenizer: A fast tokenizer of transformers.
        sentences: The sentences.
        label_ids: The id of each tag; None leaves the data set unlabelled.
        max_length: The longest window in tokens, special ones included.
        overlap: Word-pieces that neighbouring windows share, fewer than a window holds without the
            special tokens.

    Raises:
        ValueError: The tokenizer is not a fast one, `max_length` leaves no room for more than the
            special tokens, `overlap` does not fit, or a tag is missing or unknown.
    """
    capacity = _capacity(tokenizer, max_length)
    if not 0 <= overlap < capacity:
        raise ValueError(f"found an overlap of {overlap}, expected 0 to {capacity - 1} pieces")
    with _state_restored(tokenizer):
        columns = _Columns(*_special_tokens(tokenizer), capacity, overlap)
        for start in range(0, len(sentences), _BATCH):
            batch = sentences[start : start + _BATCH]
            encoded = tokenizer(
                [list(sentence.words) for sentence in batch],
                is_split_into_words=True,
                add_special_tokens=False,
                truncation=False,
                **_IDS_ONLY,
            )
            for place, sentence in enumerate(batch):
                number = start + place
                pieces = np.array(encoded["input_ids"][place], np.int32)
                word_ids = np.array(encoded.word_ids(place), np.int32)
                columns.add(pieces, word_ids, _tag_ids(sentence, number, label_ids))
    sizes = np.fromiter((len(s.words) for s in sentences), np.int32, len(sentences))
    return columns.dataset(sizes, labelled=label_ids is not None)


class _Columns:
    """Collects the windows of sentences for a TokenizedDataset."""

    def __init__(self, prefix: np.ndarray, suffix: np.ndarray, capacity: int, overlap: int) -> None:
        self._prefix, self._suffix = prefix, suffix
        self._capacity, self._overlap = capacity, overlap
        self._ids: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._indices: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._windows: list[int] = []

    def add(self, pieces: np.ndarray, word_ids: np.ndarray, labels: np.ndarray | None) -> None:
        """Take the pieces of a sentence, the word of each, and the label of each word."""
        firsts = np.flatnonzero(np.diff(word_ids, prepend=-1))
        words = word_ids[firsts]
        borders = window_borders(len(pieces), self._capacity, self._overlap)
        window = np.zeros(len(firsts), np.int64)
        if len(borders) > 1:
            window = scoring_windows(firsts, np.append(firsts[1:], len(pieces)), borders)
        for number, (begin, end) in enumerate(borders):
            here = window == number
            self._ids.append(np.concatenate([self._prefix, pieces[begin:end], self._suffix]))
            self._positions.append(firsts[here] - begin + len(self._prefix))
            self._indices.append(words[here])
            if labels is not None:
                self._labels.append(labels[words[here]])
        self._windows.append(len(borders))

    def dataset(self, num_words: np.ndarray, labelled: bool) -> TokenizedDataset:
        return TokenizedDataset(
            input_ids=_joined(self._ids, np.int32),
            token_offsets=_offsets(self._ids),
            example_offsets=np.cumsum([0, *self._windows]),
            num_words=num_words,
            word_offsets=_offsets(self._indices),
            word_positions=_joined(self._positions, np.int32),
            word_indices=_joined(self._indices, np.int32),
            word_labels=_joined(self._labels, np.int64) if labelled else None,
        )


def _offsets(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *map(len, arrays)])


def _joined(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)


def _label_id(label: str | None, where: str, label_ids: Mapping[str, int]) -> int:
    if label is None or label not in label_ids:
        found = "no label" if label is None else f"the label {label!r}"
        known = ", ".join(label_ids)
        raise ValueError(f"{where}: found {found}, expected one of {known}")
    return label_ids[label]


def _tag_ids(
    sentence: Sentence, number: int, label_ids: Mapping[str, int] | None
) -> np.ndarray | None:
    """(words,) int64 labels of the words of a sentence."""
    if label_ids is None:
        return None
    tags = sentence.tags if sentence.tags is not None else (None,) * len(sentence.words)
    where = place(sentence, number)
    return np.array([_label_id(tag, where, label_ids) for tag in tags], np.int64)


def _capacity(tokenizer: PreTrainedTokenizerFast, max_length: int) -> int:
    """The word-pieces that fit into `max_length` tokens together with the special ones."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"found the tokenizer {type(tokenizer).__name__}, expected a fast one "
            "(PreTrainedTokenizerFast), which knows the word of each piece"
        )
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise ValueError(
            f"found a max_length of {max_length}, expected at least {special + 1}: "
            f"{special} special tokens and a word-piece"
        )
    return max_length - special


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray]:
    """What the tokenizer puts before and after a text, such as [CLS] and [SEP]."""
    for word in ("a", "1", "."):
        encoded = tokenizer([word], is_split_into_words=True, verbose=False)
        inside = [place for place, owner in enumerate(encoded.word_ids()) if owner is not None]
        if inside:
            ids = np.array(encoded["input_ids"], np.int32)
            return ids[: inside[0]], ids[inside[-1] + 1 :]
    raise ValueError(
        f"found the tokenizer {type(tokenizer).__name__} that gives no piece for 'a', '1' or '.', "
        "expected one that does"
    )


@contextmanager
def _state_restored(tokenizer: PreTrainedTokenizerFast) -> Iterator[None]:
    """Leave the tokenizer as it was: a call writes its truncation into what is saved later."""
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.no_truncation()
        backend.no_padding()
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
