"""The iterators of Algorithm 1."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from fastadv.batches.draws import Draws
from fastadv.batches.tokenization import TokenizedDataset, as_unlabeled, tokenize_documents
from fastadv.data import as_texts


def tokens(texts: list[str]) -> TokenizedDataset:
    return tokenize_documents(tiny.tiny_tokenizer(), as_texts(texts, "classification"), None, 32)


def draws(seed: int = 0, adversarial: bool = True) -> Draws:
    english = tokens([text for text, _ in tiny.ENGLISH])
    others = {"de": tokens(tiny.GERMAN), "fr": tokens(tiny.FRENCH)} if adversarial else {}
    return Draws(english, [as_unlabeled(english)] if adversarial else [], others, 4, seed)


def same(one, two) -> bool:
    return torch.equal(one.input_ids, two.input_ids) and torch.equal(one.cu_seqlens, two.cu_seqlens)


def test_a_resumed_iterator_draws_what_the_unbroken_one_would() -> None:
    whole = draws()
    history, positions = [], []
    for _ in range(12):
        positions.append(whole.positions)
        history.append((whole.task_batch(), whole.language_batch(), whole.language_batch()))
    for start in (0, 1, 5, 11):
        resumed = draws()
        resumed.positions = positions[start]
        for expected in history[start:]:
            got = (resumed.task_batch(), resumed.language_batch(), resumed.language_batch())
            assert all(same(a, b) for a, b in zip(got, expected, strict=True))


def test_d_and_g_draw_afresh_and_share_out_languages() -> None:
    both = draws()
    first, second = both.language_batch(), both.language_batch()
    assert not same(first, second)
    assert first.english.tolist() == [False] * 4 + [True] * 4
    assert both._others.languages == ("de", "fr")


def test_baseline_draws_the_same_task_batches() -> None:
    with_adversary, without = draws(), draws(adversarial=False)
    assert without.language_batch() is None
    for _ in range(8):
        with_adversary.language_batch()
        assert same(with_adversary.task_batch(), without.task_batch())


def test_seeds_and_streams_differ() -> None:
    one, two = draws(seed=0), draws(seed=1)
    assert not all(same(one.task_batch(), two.task_batch()) for _ in range(4))
    task = np.concatenate([one.task_batch().input_ids for _ in range(3)])
    english = [one.language_batch() for _ in range(3)]
    own = np.concatenate([b.input_ids[b.cu_seqlens[4] :] for b in english])
    assert task.shape != own.shape or not (task == own).all()


def test_fingerprint_tells_data_apart() -> None:
    english = tokens([text for text, _ in tiny.ENGLISH])
    shorter = tokens([text for text, _ in tiny.ENGLISH[:-1]])
    changed = tokens(["snow", *[text for text, _ in tiny.ENGLISH[1:]]])
    prints = [
        Draws(data, [], {}, 2, 0).fingerprint()["labeled"] for data in (english, shorter, changed)
    ]
    assert prints[0] != prints[1] and prints[0] != prints[2]
    assert draws().fingerprint().keys() == {"labeled", "english", "de", "fr"}


@pytest.mark.parametrize("size", [1, 3, 100])
def test_batches_larger_than_the_data(size: int) -> None:
    one = tokens(["rain"])
    batch = Draws(one, [one], {"de": one}, size, 0).language_batch()
    assert len(batch) == 2 * size
