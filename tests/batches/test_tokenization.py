import logging

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

from fastadv.batches.packing import IGNORE_INDEX, pack
from fastadv.batches.tokenization import (
    as_unlabeled,
    tokenize_documents,
    tokenize_sentences,
)
from fastadv.data import Document, Sentence, read_documents


def test_documents_are_what_the_tokenizer_says() -> None:
    rng = np.random.default_rng(0)
    texts = ["", " ", "ab", "\u200b", "ABC abc"]
    texts += ["".join(rng.choice([*LETTERS, " "], n)) for n in rng.integers(0, 60, 50)]
    for tokenizer in (wordpiece(), unigram()):
        found = tokenize_documents(tokenizer, [Document(t) for t in texts], None, 12)
        assert len(found) == len(texts) and found.labels is None
        for text, sequences in zip(texts, found, strict=True):
            expected = tokenizer(text, truncation=True, max_length=12)["input_ids"]
            assert [s.input_ids.tolist() for s in sequences] == [expected]
            assert sequences[0].label is None and sequences[0].word_positions is None
        assert found.lengths.tolist() == [len(s[0].input_ids) for s in found]
        assert found.lengths.max() == 12


def test_truncation_keeps_the_special_tokens() -> None:
    tokenizer = wordpiece()
    found = tokenize_documents(tokenizer, [Document("abc de fgh")], None, 5)
    assert pieces(tokenizer, found[0][0].input_ids) == "[CLS] ab ##c d [SEP]"


def test_document_labels() -> None:
    documents = [Document("a", "no"), Document("b", "yes"), Document("", "yes")]
    found = tokenize_documents(wordpiece(), documents, {"yes": 4, "no": 2}, 8)
    assert [found[i][0].label for i in range(3)] == [2, 4, 4]
    batch = pack(list(found))
    assert batch.labels is not None and batch.labels.tolist() == [2, 4, 4]
    unlabelled = tokenize_documents(wordpiece(), documents, None, 8)
    assert unlabelled[0][0].label is None


def test_columns_are_compact_and_given_as_views() -> None:
    found = tokenize_documents(wordpiece(), [Document("abc"), Document("d")], None, 8)
    assert found.input_ids.dtype == np.int32
    assert np.shares_memory(found[1][0].input_ids, found.input_ids)
    assert found[-1][0].input_ids.tolist() == found[1][0].input_ids.tolist()
    assert found[np.int64(1)][0].input_ids.tolist() == found[1][0].input_ids.tolist()
    with pytest.raises(IndexError):
        found[2]


def test_more_documents_than_a_batch_of_the_tokenizer() -> None:
    documents = [Document(LETTERS[n % 26] * (n % 5)) for n in range(5000)]
    found = tokenize_documents(wordpiece(), documents, None, 8)
    assert found.lengths.tolist() == [2 + n % 5 for n in range(5000)]
    sentences = [Sentence((d.text, "b")) for d in documents]
    found = tokenize_sentences(wordpiece(), sentences, None, 8, 0)
    assert found.lengths.tolist() == [3 + n % 5 for n in range(5000)]


def test_words_of_a_sentence() -> None:
    tokenizer = wordpiece()
    sentence = Sentence(("abc", "ba", "d"), ("B-X", "I-X", "O"))
    [window] = tokenize_sentences(tokenizer, [sentence], TAGS, 16, 2)[0]
    assert pieces(tokenizer, window.input_ids) == "[CLS] ab ##c b ##a d [SEP]"
    assert window.label is None
    assert window.word_positions is not None and window.word_positions.tolist() == [1, 3, 5]
    assert window.word_labels is not None and window.word_labels.tolist() == [1, 2, 0]
    assert window.word_indices is not None and window.word_indices.tolist() == [0, 1, 2]
    dtypes = (window.word_positions.dtype, window.word_labels.dtype, window.word_indices.dtype)
    assert dtypes == (np.int32, np.int64, np.int32)
    none = IGNORE_INDEX
    labels = pack([[window]]).labels
    assert labels is not None and labels.tolist() == [none, 1, none, 2, none, 0, none]


@pytest.mark.parametrize("nothing", NO_PIECE)
def test_words_without_a_piece_are_counted_and_not_scored(nothing: str) -> None:
    tokenizer = wordpiece()
    sentence = Sentence((nothing, "a", nothing, nothing, "b", nothing), ("O",) * 4 + ("B-X", "O"))
    found = tokenize_sentences(tokenizer, [sentence, Sentence((nothing,), ("B-X",))], TAGS, 16, 2)
    [window], [empty] = found
    assert pieces(tokenizer, window.input_ids) == "[CLS] a b [SEP]"
    assert window.word_indices is not None and window.word_indices.tolist() == [1, 4]
    assert window.word_labels is not None and window.word_labels.tolist() == [0, 1]
    assert found.num_words is not None and found.num_words.tolist() == [6, 1]
    assert pieces(tokenizer, empty.input_ids) == "[CLS] [SEP]"
    assert empty.word_labels is not None and len(empty.word_labels) == 0
    labels = pack([[empty]]).labels
    assert labels is not None and labels.tolist() == [IGNORE_INDEX] * 2


def test_a_word_of_several_parts_is_scored_once() -> None:
    tokenizer = wordpiece()
    [window] = tokenize_sentences(tokenizer, [Sentence(("a b", "c"))], None, 16, 2)[0]
    assert pieces(tokenizer, window.input_ids) == "[CLS] a b c [SEP]"
    assert window.word_indices is not None and window.word_indices.tolist() == [0, 1]
    assert window.word_positions is not None and window.word_positions.tolist() == [1, 3]


def test_unigram_words_may_begin_with_a_lone_mark() -> None:
    tokenizer = unigram()
    sentence = Sentence(("the", ",", "☃", "", "hat"), ("O", "O", "B-X", "I-X", "B-X"))
    [window] = tokenize_sentences(tokenizer, [sentence], TAGS, 32, 4)[0]
    tokens = tokenizer.convert_ids_to_tokens(window.input_ids.tolist())
    assert tokens[0] == "<s>" and tokens[-1] == "</s>"
    assert window.word_positions is not None and window.word_indices is not None
    assert window.word_indices.tolist() == [0, 1, 2, 4]
    firsts = [tokens[p] for p in window.word_positions]
    assert all(first.startswith("▁") for first in firsts)
    # The snowman is not in the vocabulary: its mark stands alone, and <unk> belongs to it.
    place = int(window.word_positions[2])
    assert tokens[place : place + 2] == ["▁", "<unk>"]
    assert window.word_labels is not None and window.word_labels.tolist() == [0, 0, 1, 1]


def test_unigram_long_sentences_keep_their_special_tokens() -> None:
    tokenizer = unigram()
    windows = tokenize_sentences(tokenizer, sentences_of("the cat sat on " * 9), None, 10, 3)[0]
    assert len(windows) > 2
    for window in windows:
        assert window.input_ids[0] == 0 and window.input_ids[-1] == 2
        assert not np.isin(window.input_ids[1:-1], [0, 2]).any()


def test_as_unlabeled() -> None:
    sentences = [Sentence(tuple("cdefghi"), ("O",) * 7), Sentence(("a",), ("B-X",))]
    found = tokenize_sentences(wordpiece(), sentences, TAGS, 6, 2)
    bare = as_unlabeled(found)
    assert (len(found), len(bare)) == (2, 4)
    assert bare.lengths.tolist() == [6, 6, 5, 3] and found.lengths.tolist() == [17, 3]
    assert all(len(unit) == 1 and unit[0].word_positions is None for unit in bare)
    assert np.shares_memory(bare.input_ids, found.input_ids)
    batch = pack(list(bare))
    assert batch.labels is None and batch.num_examples == len(batch) == 4
    documents = tokenize_documents(wordpiece(), [Document("a", "x")], {"x": 0}, 8)
    assert as_unlabeled(documents)[0][0].label is None


def test_no_examples() -> None:
    documents = tokenize_documents(wordpiece(), [], {"x": 0}, 8)
    sentences = tokenize_sentences(wordpiece(), [], TAGS, 8, 2)
    for found in (documents, sentences, as_unlabeled(sentences)):
        assert len(found) == 0 and found.lengths.tolist() == [] and list(found) == []


def test_each_text_is_tokenised_once_and_quietly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = wordpiece()
    tokenizer.model_max_length = 4
    seen: list[str] = []
    call = type(tokenizer).__call__

    def counting(self: PreTrainedTokenizerFast, text: list[list[str]], **options: object) -> object:
        seen.extend("".join(words) for words in text if len("".join(words)) > 1)
        return call(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    sentences = sentences_of(*(f"{'a ' * 30}{letter}" for letter in LETTERS))
    with caplog.at_level(logging.WARNING):
        tokenize_sentences(tokenizer, sentences, None, 8, 2)
    assert seen == ["".join(s.words) for s in sentences]
    assert not caplog.records


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = wordpiece()
    backend = tokenizer.backend_tokenizer
    tokenize_documents(tokenizer, [Document("abcdef")], None, 4)
    assert backend.truncation is None and backend.padding is None
    backend.enable_truncation(7, stride=2)
    backend.enable_padding(length=5, pad_id=3, pad_token="[SEP]")
    before = backend.to_str()
    found = tokenize_documents(tokenizer, [Document("z" * 20)], None, 12)
    assert found.lengths.tolist() == [12]
    tokenize_sentences(tokenizer, sentences_of("a b"), None, 12, 2)
    assert backend.to_str() == before


def test_refuses_labels() -> None:
    documents = [Document("a", "yes"), Document("b", "maybe")]
    message = "example 1: found the label 'maybe', expected one of yes, no"
    with pytest.raises(ValueError, match=message):
        tokenize_documents(wordpiece(), documents, {"yes": 0, "no": 1}, 8)
    with pytest.raises(ValueError, match="example 0: found no label, expected one of yes"):
        tokenize_documents(wordpiece(), [Document("a")], {"yes": 0}, 8)
    sentences = [Sentence(("a",), ("O",)), Sentence(("a",), ("B-Y",))]
    with pytest.raises(
        ValueError, match="example 1: found the label 'B-Y', expected one of O, B-X"
    ):
        tokenize_sentences(wordpiece(), sentences, TAGS, 8, 2)
    with pytest.raises(ValueError, match="example 0: found no label"):
        tokenize_sentences(wordpiece(), sentences_of("a"), TAGS, 8, 2)


def test_refuses_lengths_and_slow_tokenizers() -> None:
    with pytest.raises(ValueError, match="max_length of 2, expected at least 3: 2 special tokens"):
        tokenize_documents(wordpiece(), [], None, 2)
    for overlap in (-1, 6):
        with pytest.raises(ValueError, match=f"overlap of {overlap}, expected 0 to 5 pieces"):
            tokenize_sentences(wordpiece(), [], None, 8, overlap)

    class Slow:
        is_fast = False

    for tokenizer in (Slow(), object()):
        with pytest.raises(ValueError, match="expected a fast one"):
            tokenize_documents(tokenizer, [], None, 8)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected a fast one"):
            tokenize_sentences(tokenizer, [], None, 8, 2)  # type: ignore[arg-type]


def test_mbert_documents() -> None:
    tokenizer = mbert()
    texts = ["München", "東京 is Tokyo"]
    found = tokenize_documents(tokenizer, [Document(t) for t in texts], None, 32)
    assert pieces(tokenizer, found[0][0].input_ids) == "[CLS] München [SEP]"
    assert pieces(tokenizer, found[1][0].input_ids) == "[CLS] 東 京 is Tokyo [SEP]"
    documents = read_documents(shared_data("debian_topics", "ja.test"))[:100]
    found = tokenize_documents(tokenizer, documents, None, 64)
    for document, [sequence] in zip(documents, found, strict=True):
        expected = tokenizer(document.text, truncation=True, max_length=64)["input_ids"]
        assert sequence.input_ids.tolist() == expected
