from dataclasses import replace

import numpy as np
import pytest
import torch

from fastadv.batches.packing import IGNORE_INDEX, PackedBatch, concat, pack
from fastadv.batches.tokenized import TokenSequence

PAD = 9


def document(*ids: int, label: int | None = None) -> TokenSequence:
    return TokenSequence(np.array(ids, np.int32), label)


def window(ids: list[int], positions: list[int], labels: list[int] | None) -> TokenSequence:
    return TokenSequence(
        np.array(ids, np.int32),
        word_positions=np.array(positions, np.int32),
        word_labels=None if labels is None else np.array(labels, np.int64),
        word_indices=np.arange(len(positions), dtype=np.int32),
    )


def random_documents(seed: int, lengths: list[int]) -> list[list[TokenSequence]]:
    rng = np.random.default_rng(seed)
    return [[document(*rng.integers(10, 1000, n))] for n in lengths]


def test_documents_by_hand() -> None:
    batch = pack([[document(1, 5, 2, label=3)], [document(1, 2, label=0)]], english=[True, False])
    assert batch.input_ids.tolist() == [1, 5, 2, 1, 2]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.labels is not None and batch.labels.tolist() == [3, 0]
    assert batch.english is not None and batch.english.tolist() == [True, False]
    assert (len(batch), batch.num_tokens, batch.max_seqlen, batch.num_examples) == (2, 5, 3, 2)


def test_dtypes_and_types() -> None:
    batch = pack([[document(1, 2, label=0)]], english=[np.True_])
    assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.labels is not None and batch.labels.dtype == torch.int64
    assert batch.english is not None and batch.english.dtype == torch.bool
    assert type(batch.max_seqlen) is int and type(batch.num_examples) is int


def test_windows_of_one_sentence_count_once_and_share_its_language() -> None:
    sentence = [window([1, 5, 6, 2], [1, 2], [4, 0]), window([1, 6, 7, 2], [2], [5])]
    other = [window([1, 8, 2], [1], [0])]
    batch = pack([sentence, other], english=[True, False])
    assert (len(batch), batch.num_examples) == (3, 2)
    assert batch.english is not None and batch.english.tolist() == [True, True, False]
    none = IGNORE_INDEX
    expected = [none, 4, 0, none, none, none, 5, none, none, 0, none]
    assert batch.labels is not None and batch.labels.tolist() == expected
    assert batch.labels.dtype == torch.int64


def test_a_window_without_words_scores_nothing() -> None:
    batch = pack([[window([1, 2], [], [])], [window([1, 5, 2], [1], [7])]])
    assert batch.labels is not None
    assert batch.labels.tolist() == [IGNORE_INDEX] * 3 + [7, IGNORE_INDEX]


def test_unlabelled() -> None:
    batch = pack([[window([1, 5, 2], [1], None)], [window([1, 2], [], None)]])
    assert batch.labels is None and batch.english is None


def test_refuses_mixtures_and_nothing() -> None:
    with pytest.raises(ValueError, match="found 1 labelled sequences among 2"):
        pack([[document(1, label=0)], [document(1)]])
    with pytest.raises(ValueError, match="found 2 labelled sequences among 2"):
        pack([[document(1, label=0)], [window([1, 2], [0], [1])]])
    with pytest.raises(ValueError, match="found no sequence"):
        pack([])
    with pytest.raises(ValueError, match="found 1 entries in english, expected 2"):
        pack([[document(1)], [document(1)]], english=[True])


@pytest.mark.parametrize("lengths", [[1], [4, 1, 7], [3, 0, 2], [0, 0, 5], [1] * 6, [128, 1, 127]])
def test_padding_and_back(lengths: list[int]) -> None:
    batch = pack(random_documents(len(lengths), lengths))
    ids, mask = batch.pad(PAD)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == mask.shape == (len(lengths), max(lengths))
    assert mask.sum(dim=1).tolist() == lengths
    assert torch.equal(ids[mask.bool()], batch.input_ids)
    assert (ids[mask == 0] == PAD).all()
    for row, n in zip(mask, lengths, strict=True):
        assert row[:n].all() and not row[n:].any()
    # A tensor with a distinct number everywhere shows which place each index takes.
    padded = torch.arange(ids.numel() * 2).view(*ids.shape, 2)
    assert torch.equal(padded.flatten(0, 1)[batch.padded_indices()], padded[mask.bool()])


def test_padding_can_hold_the_pad_id_as_a_token() -> None:
    ids, mask = pack([[document(PAD, PAD)], [document(PAD)]]).pad(PAD)
    assert (ids == PAD).all()
    assert mask.tolist() == [[1, 1], [1, 0]]


def test_to_moves_every_tensor() -> None:
    batch = pack([[document(1, 2, label=1)]], english=[True]).to("meta")
    tensors = (batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.labels, batch.english)
    assert [t.device.type for t in tensors if t is not None] == ["meta"] * 5
    assert isinstance(batch, PackedBatch) and (batch.max_seqlen, batch.num_examples) == (2, 1)


def test_pin_memory_for_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("page-locked memory needs a GPU")
    batch = pack([[document(1, 2, label=1)]], english=[True]).pin_memory()
    tensors = (batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.labels, batch.english)
    assert all(t is not None and t.is_pinned() for t in tensors)


def test_the_batch_owns_its_memory() -> None:
    source = document(1, 5, 2)
    batch = pack([[source]])
    batch.input_ids.fill_(0)
    assert source.input_ids.tolist() == [1, 5, 2]


def test_concat_is_packing_together() -> None:
    examples = random_documents(3, [4, 1, 7, 2, 9])
    english = [True, False, False, True, False]
    for border in (1, 3, 4):
        first, second = (
            pack(examples[:border], english[:border]),
            pack(examples[border:], english[border:]),
        )
        found, expected = concat(first, second), pack(examples, english)
        assert found.rows is None
        for name, value in vars(replace(expected, rows=None)).items():
            other = getattr(found, name)
            if isinstance(value, torch.Tensor):
                assert other.dtype == value.dtype and torch.equal(other, value), name
            else:
                assert other == value, name


def test_concat_keeps_what_both_have() -> None:
    labeled = pack([[document(1, 5, 2, label=3)]])
    plain = pack([[document(1, 2)]], english=[True])
    both = concat(labeled, labeled).labels
    assert both is not None and both.tolist() == [3, 3]
    mixed = concat(labeled, plain)
    assert mixed.labels is None and mixed.english is None
    words = pack([[window([1, 5, 2], [1], [4])]])
    tagged = concat(words, words).labels
    assert tagged is not None and tagged.tolist() == [IGNORE_INDEX, 4, IGNORE_INDEX] * 2
