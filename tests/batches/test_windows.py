from collections.abc import Callable, Sequence
from itertools import chain, pairwise

import numpy as np
import pytest
from data_helpers import (
    LETTERS,
    NO_PIECE,
    TAGS,
    mbert,
    pieces,
    sentences_of,
    shared_data,
    unigram,
    wordpiece,
)
from transformers import PreTrainedTokenizerFast

from fastadv.batches.tokenization import TokenSequence, tokenize_sentences
from fastadv.batches.windows import scoring_windows, window_borders
from fastadv.data import Sentence, read_conll


def test_windows_by_hand() -> None:
    tokenizer = wordpiece()
    # Seven pieces in windows of four that overlap by two: c d e f, e f g h, g h i.
    windows = tokenize_sentences(tokenizer, sentences_of("c d e f g h i"), None, 6, 2)[0]
    assert [pieces(tokenizer, w.input_ids[1:-1]) for w in windows] == [
        "c d e f",
        "e f g h",
        "g h i",
    ]
    scored = [w.word_indices.tolist() for w in windows if w.word_indices is not None]
    # e has 1 piece on its nearer side in the first window and 0 in the second; f 0 and 1. g has 1
    # in the second and 0 in the third; h 0 and 1.
    assert scored == [[0, 1, 2], [3, 4], [5, 6]]
    places = [w.word_positions.tolist() for w in windows if w.word_positions is not None]
    assert places == [[1, 2, 3], [2, 3], [2, 3]]


def test_a_word_cut_off_goes_to_the_window_that_has_it_whole() -> None:
    tokenizer = wordpiece()
    windows = tokenize_sentences(tokenizer, sentences_of("c d ghi e"), None, 6, 2)[0]
    expected = ["c d g ##h", "g ##h ##i e"]
    assert [pieces(tokenizer, w.input_ids[1:-1]) for w in windows] == expected
    scored = [w.word_indices.tolist() for w in windows if w.word_indices is not None]
    assert scored == [[0, 1], [2, 3]]


def test_a_word_longer_than_a_window_is_scored_where_it_begins() -> None:
    windows = tokenize_sentences(wordpiece(), sentences_of("d " + "z" * 20 + " e"), None, 6, 1)[0]
    scored = [w.word_indices.tolist() for w in windows if w.word_indices is not None]
    assert scored[0] == [0, 1] and list(chain.from_iterable(scored)) == [0, 1, 2]
    assert all(len(w.input_ids) <= 6 for w in windows)


def check_windows(
    tokenizer: PreTrainedTokenizerFast,
    words: Sequence[str],
    windows: list[TokenSequence],
    capacity: int,
    overlap: int,
) -> None:
    """Hold the windows of one sentence against plain loops over its pieces."""
    by_word = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in words]
    flat = [p for part in by_word for p in part]
    spans = []
    for number, window in enumerate(windows):
        ids = window.input_ids.tolist()
        begin = number * (capacity - overlap)
        inner = ids[1:-1]
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
        assert len(inner) <= capacity and inner == flat[begin : begin + len(inner)]
        spans.append((begin, begin + len(inner)))
    assert spans[-1][1] == len(flat)
    assert all(len_ == capacity for len_ in (end - begin for begin, end in spans[:-1]))
    assert all(a[1] - b[0] == overlap for a, b in pairwise(spans))
    assert (len(windows) == 1) == (len(flat) <= capacity)
    scored = {}
    for number, window in enumerate(windows):
        assert window.word_indices is not None and window.word_positions is not None
        for word, place in zip(window.word_indices, window.word_positions, strict=True):
            assert word not in scored, "scored twice"
            scored[int(word)] = (number, spans[number][0] + int(place) - 1)
    assert sorted(scored) == [n for n, part in enumerate(by_word) if part]
    first = 0
    for word, part in enumerate(by_word):
        if part:
            number, place = scored[word]
            assert place == first
            nearer = {
                n: min(first - begin, end - (first + len(part)))
                for n, (begin, end) in enumerate(spans)
                if begin <= first < end
            }
            assert nearer[number] == max(nearer.values())
        first += len(part)


def test_windows_of_random_sentences() -> None:
    tokenizer = wordpiece()
    rng = np.random.default_rng(11)
    for _ in range(60):
        capacity = int(rng.integers(1, 14))
        overlap = int(rng.integers(0, capacity))
        sentences = []
        for _ in range(6):
            lengths = rng.integers(1, rng.choice([2, 4, 20]), int(rng.integers(0, 40)))
            words = ["".join(rng.choice(list(LETTERS), n)) for n in lengths]
            words = [str(rng.choice(NO_PIECE)) if rng.random() < 0.05 else w for w in words]
            tags = rng.choice(list(TAGS), len(words)).tolist()
            sentences.append(Sentence(tuple(words), tuple(tags)))
        found = tokenize_sentences(tokenizer, sentences, TAGS, capacity + 2, overlap)
        for index, sentence in enumerate(sentences):
            check_windows(tokenizer, sentence.words, found[index], capacity, overlap)
            for window in found[index]:
                assert window.word_labels is not None and window.word_indices is not None
                assert sentence.tags is not None
                tags = [sentence.tags[i] for i in window.word_indices]
                assert window.word_labels.tolist() == [TAGS[tag] for tag in tags]
        assert found.num_words is not None
        assert found.num_words.tolist() == [len(s.words) for s in sentences]


@pytest.mark.parametrize("make", [wordpiece, unigram])
@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 8])
def test_each_word_once_for_every_overlap(
    make: Callable[[], PreTrainedTokenizerFast], capacity: int
) -> None:
    tokenizer = make()
    rng = np.random.default_rng(capacity)
    for overlap in range(capacity):
        sentences = [Sentence(()), Sentence(tuple(NO_PIECE)), *sentences_of("the", "the cat")]
        for lost in (0, 0.1, 0.5, 0.9):
            for _ in range(4):
                lengths = rng.integers(1, 7, int(rng.integers(1, 30)))
                words = ["".join(rng.choice(list("atehcbsr"), n)) for n in lengths]
                words = [str(rng.choice(NO_PIECE)) if rng.random() < lost else w for w in words]
                sentences.append(Sentence(tuple(words)))
        found = tokenize_sentences(tokenizer, sentences, None, capacity + 2, overlap)
        for index, sentence in enumerate(sentences):
            check_windows(tokenizer, sentence.words, found[index], capacity, overlap)


def test_each_word_once_in_the_longest_sentence_of_the_corpora() -> None:
    tokenizer = wordpiece()
    rng = np.random.default_rng(2)
    words = ["".join(rng.choice(list(LETTERS), n)) for n in rng.integers(1, 9, 1238)]
    words[::97] = [NO_PIECE[0]] * len(words[::97])
    tags = tuple(rng.choice(list(TAGS), len(words)).tolist())
    found = tokenize_sentences(tokenizer, [Sentence(tuple(words), tags)], TAGS, 128, 32)
    check_windows(tokenizer, words, found[0], 126, 32)
    scored = [
        (int(word), int(label))
        for window in found[0]
        if window.word_indices is not None and window.word_labels is not None
        for word, label in zip(window.word_indices, window.word_labels, strict=True)
    ]
    expected = [(n, TAGS[tag]) for n, tag in enumerate(tags) if n % 97]
    assert scored == expected


def test_window_borders_at_the_edges() -> None:
    assert window_borders(0, 4, 2).tolist() == [[0, 0]]
    assert window_borders(4, 4, 2).tolist() == [[0, 4]]
    assert window_borders(5, 4, 2).tolist() == [[0, 4], [2, 5]]
    assert window_borders(6, 4, 2).tolist() == [[0, 4], [2, 6]]
    assert window_borders(3, 1, 0).tolist() == [[0, 1], [1, 2], [2, 3]]


def test_of_two_windows_alike_the_earlier_one_scores() -> None:
    # Piece 3 has 1 after it in 0..5 and 1 before it in 2..7; piece 4 has 0 and 2.
    borders = np.array([[0, 5], [2, 7]])
    assert scoring_windows(np.array([3, 4]), np.array([4, 5]), borders).tolist() == [0, 1]


@pytest.mark.parametrize(
    "name", ["Chinese-GSDSIMP/zh_gsdsimp-ud-test.iob2", "Danish-DDT/da_ddt-ud-test.iob2"]
)
def test_mbert_sentences(name: str) -> None:
    tokenizer = mbert()
    sentences = read_conll(shared_data("uner", *name.split("/")))[:200]
    capacity, overlap = 20, 6
    found = tokenize_sentences(tokenizer, sentences, None, capacity + 2, overlap)
    assert len(found.token_offsets) - 1 > len(found)
    for index, sentence in enumerate(sentences):
        check_windows(tokenizer, sentence.words, found[index], capacity, overlap)
