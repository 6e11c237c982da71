"""Batches by a budget of word pieces: what must hold for any lengths, and on random ones."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.batches.draws import Draws
from fastadv.batches.packing import PackedBatch
from fastadv.batches.sampling import MixedSampler, Sampler
from fastadv.batches.sizes import Side, draw_within, similar_lengths
from fastadv.batches.tokenization import TokenizedDataset, as_unlabeled
from fastadv.run.checkpoint import load_checkpoint
from fastadv.run.loss_meter import LossMeter
from fastadv.training.trainer import StepLosses

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = range(20)


def dataset(lengths: list[list[int]], start: int = 0, labelled: bool = False) -> TokenizedDataset:
    """One list of windows an example; every piece holds the number of its example, from `start`."""
    windows = [n for example in lengths for n in example]
    owners = [start + k for k, example in enumerate(lengths) for n in example for _ in range(n)]
    sizes = [len(example) for example in lengths]
    return TokenizedDataset(
        np.array(owners, np.int32),
        np.cumsum([0, *windows]),
        np.cumsum([0, *sizes]),
        labels=np.zeros(len(lengths), np.int64) if labelled else None,
    )


def random_lengths(random: np.random.Generator, most: int = 12) -> list[list[int]]:
    count = int(random.integers(1, 15))
    return [random.integers(1, most, random.integers(1, 4)).tolist() for _ in range(count)]


def examples(batch: PackedBatch, labeled: TokenizedDataset) -> list[int]:
    """The numbers of the examples in a task batch, each of which has all its windows there."""
    firsts = batch.input_ids[batch.cu_seqlens[:-1].long()].tolist()
    found, place = [], 0
    while place < len(firsts):
        found.append(firsts[place])
        windows = len(labeled[firsts[place]])
        assert firsts[place : place + windows] == [firsts[place]] * windows
        place += windows
    assert len(found) == batch.num_examples
    return found


def random_draws(seed: int, **changes: Any) -> Draws:
    """Draws over texts of random lengths; the examples of each data set count from thousands."""
    random = np.random.default_rng(seed)
    labeled = dataset(random_lengths(random), 0)
    others = {
        name: as_unlabeled(dataset([[n] for n in random.integers(1, 20, 7)], 1000 * k))
        for k, name in enumerate(("de", "fr", "zh"), 2)
    }
    settings = {"tokens_per_batch": int(random.integers(1, 60))} | changes
    return Draws(labeled, [as_unlabeled(labeled)], others, 4, seed, **settings)


def steps(draws: Draws, count: int) -> Iterator[tuple[Any, Any, Any]]:
    for _ in range(count):
        yield draws.task_batch(), draws.language_batch(), draws.language_batch()


@pytest.mark.parametrize("seed", SEEDS)
def test_one_side_takes_what_fits_and_nothing_else(seed: int) -> None:
    random = np.random.default_rng(seed)
    pieces = random.integers(0, 30, random.integers(1, 12))
    budget = int(random.integers(1, 60))
    side = Side(Sampler(len(pieces), seed, "x"), lambda i: int(pieces[i]))
    order = Sampler(len(pieces), seed, "x").draw(500).tolist()
    start = 0
    for _ in range(20):
        (batch,) = draw_within(budget, side)
        stop = start + len(batch)
        assert batch == order[start:stop] and side.sampler.position == stop
        # A text without a piece takes the room of one.
        taken = [max(1, pieces[i]) for i in order[start : stop + 1]]
        assert len(batch) == 1 or sum(taken[:-1]) <= budget
        assert len(batch) >= 1 and sum(taken) > budget
        start = stop


def test_by_hand() -> None:
    lengths = {"a": [9, 2, 2, 5, 1, 4], "b": [1, 1, 6, 1, 1, 1]}

    class Stream:
        def __init__(self, name: str) -> None:
            self.name, self.position = name, 0

        def draw(self, n: int) -> list[tuple[str, int]]:
            self.position += n
            return [(self.name, k % 6) for k in range(self.position - n, self.position)]

    def sides(*names: str) -> list[Side]:
        return [Side(Stream(n), lambda drawn: lengths[drawn[0]][drawn[1]]) for n in names]

    def sizes(budget: int, count: int, *names: str) -> list[int]:
        made = sides(*names)
        return [len(draw_within(budget, *made)[0]) for _ in range(count)]

    # 9 is over the budget and alone; 2 + 2 leaves no room for 5; 5 + 1; 4 and then 9 does not fit.
    assert sizes(6, 4, "a") == [1, 2, 2, 1]
    # Either side holds the other up: 1 + 6 of b do not fit, then 6 + 1, then 1 + 4 + 9 of a.
    assert sizes(6, 5, "a", "b") == [1, 1, 1, 2, 1]
    # Exactly full: 9 of a, then its 2 + 2 + 5.
    assert sizes(9, 2, "a", "b") == [1, 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_budget_holds_for_the_task_batch_with_all_windows(seed: int) -> None:
    draws = random_draws(seed)
    order = Sampler(len(draws.labeled), seed, "task").draw(1000)
    start = 0
    for batch, _, _ in steps(draws, 15):
        stop = start + batch.num_examples
        assert examples(batch, draws.labeled) == order[start:stop].tolist()
        assert batch.num_tokens <= draws.tokens_per_batch or batch.num_examples == 1
        after = draws.labeled.lengths[order[stop]]
        assert batch.num_tokens + after > draws.tokens_per_batch
        start = stop


@pytest.mark.parametrize("seed", SEEDS)
def test_budget_holds_for_each_side_which_are_equal_in_number(seed: int) -> None:
    draws = random_draws(seed)
    for _, first, second in steps(draws, 15):
        for batch in (first, second):
            sizes = batch.cu_seqlens.diff()
            assert int(batch.english.sum()) * 2 == len(batch)
            for side in (batch.english, ~batch.english):
                assert sizes[side].sum() <= draws.tokens_per_batch or len(batch) == 2
    positions = draws.positions
    assert positions["english"] == positions["others"]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_epoch_holds_every_example_once(seed: int) -> None:
    draws = random_draws(seed)
    size, drawn = len(draws.labeled), list[int]()
    while len(drawn) < 3 * size:
        drawn += examples(draws.task_batch(), draws.labeled)
    for epoch in range(3):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


@pytest.mark.parametrize("seed", SEEDS)
def test_languages_have_equal_shares_over_any_steps(seed: int) -> None:
    draws = random_draws(seed)
    drawn: list[int] = []
    for _, first, second in steps(draws, 15):
        for batch in (first, second):
            others = batch.input_ids[batch.cu_seqlens[:-1].long()][~batch.english]
            drawn += (others // 1000).tolist()
    for start in range(0, len(drawn), 3):
        for stop in (start + 5, start + 17, len(drawn)):
            counts = collections.Counter(drawn[start:stop])
            shares = [counts[k] for k in (2, 3, 4)]
            assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_resumes_at_every_step(seed: int) -> None:
    draws, positions = random_draws(seed), []
    history = []
    for _ in range(10):
        positions.append(draws.positions)
        history += list(steps(draws, 1))
    for start in range(10):
        resumed = random_draws(seed)
        resumed.positions = positions[start]
        for expected, got in zip(history[start:], steps(resumed, 10 - start), strict=True):
            for one, other in zip(expected, got, strict=True):
                assert torch.equal(one.input_ids, other.input_ids)
                assert torch.equal(one.cu_seqlens, other.cu_seqlens)


def test_resumes_at_every_position() -> None:
    pieces = [3, 9, 1, 4, 4, 2, 7]

    def batches(position: int) -> Iterator[list[int]]:
        side = Side(Sampler(7, 5, "x"), lambda i: pieces[i])
        side.sampler.position = position
        while True:
            yield [int(i) for i in draw_within(10, side)[0]]

    order = Sampler(7, 5, "x").draw(40).tolist()
    for position in range(20):
        flat = [i for batch in islice(batches(position), 5) for i in batch]
        assert flat == order[position : position + len(flat)]


def test_without_a_budget_nothing_changes() -> None:
    draws = random_draws(3, tokens_per_batch=None)
    task, english = (
        Sampler(len(draws.labeled), 3, "task"),
        Sampler(len(draws.english), 3, "english"),
    )
    others = MixedSampler(dict.fromkeys(("de", "fr", "zh"), 7), 3, "others")
    for labeled, *adversarial in steps(draws, 5):
        wanted = [draws.labeled[int(i)] for i in task.draw(4)]
        assert labeled.num_examples == 4
        ids = np.concatenate([w.input_ids for example in wanted for w in example])
        assert labeled.input_ids.tolist() == ids.tolist()
        for batch in adversarial:
            wanted = [draws.others[name][i] for name, i in others.draw(4)]
            wanted += [data[k] for data, k in (draws.english[int(i)] for i in english.draw(4))]
            ids = np.concatenate([w.input_ids for example in wanted for w in example])
            assert batch.input_ids.tolist() == ids.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_similar_lengths(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 50, random.integers(1, 200))
    size = int(random.integers(1, 40))
    batches = list(similar_lengths(lengths, size))
    assert np.concatenate(batches).tolist() == np.argsort(-lengths, kind="stable").tolist()
    most = size * max(1, lengths.max())
    for batch, after in zip(batches, [*batches[1:], None], strict=True):
        longest = max(1, lengths[batch].max())
        assert len(batch) * longest <= most
        assert after is None or (len(batch) + 1) * longest > most
    assert len(batches[0]) == min(size, len(lengths))


def test_similar_lengths_of_nothing_and_by_hand() -> None:
    assert list(similar_lengths(np.zeros(0, np.int64), 3)) == []
    # Texts without a piece count as if they had one.
    assert [len(batch) for batch in similar_lengths(np.zeros(3, np.int64), 2)] == [2, 1]
    assert [len(batch) for batch in similar_lengths(np.array([1, 2, 1, 0]), 1)] == [1, 2, 1]
    found = [batch.tolist() for batch in similar_lengths(np.array([2, 9, 2, 4, 3, 2, 9]), 1)]
    # Nine tokens a batch: two of 4 or less, four of 2.
    assert found == [[1], [6], [3, 4], [0, 2, 5]]


def finetuner(**changes: Any) -> AdversarialFinetuner:
    settings = {"max_length": 16, "window_overlap": 4, "log_every": 2, "tokens_per_batch": 30}
    config = FinetuneConfig(precision="fp32", **settings | changes)
    return AdversarialFinetuner(
        tiny.tiny_bert(), "ner", tiny.TAGS, config, tokenizer=tiny.tiny_tokenizer(), device="cpu"
    )


def fit(folder: Path, count: int) -> tuple[dict[str, torch.Tensor], Any]:
    data = {"de": tiny.GERMAN, "fr": tiny.FRENCH}
    history = finetuner(steps=count).fit(
        tiny.SENTENCES, data, output_dir=folder, resume=True, quiet=True
    )
    return load_checkpoint(folder / "checkpoint.safetensors")[0], history


def test_a_run_by_tokens_stops_and_goes_on(tmp_path: Path) -> None:
    unbroken, history = fit(tmp_path / "whole", 6)
    fit(tmp_path / "parts", 3)
    parts, _ = fit(tmp_path / "parts", 6)
    names = [n for n in unbroken if not n.startswith("run.")]
    assert [n for n in names if not torch.equal(unbroken[n], parts[n])] == []
    for record in history.records:
        # Two sides of 30 pieces at most, texts of 3 or more, over two steps.
        assert 4 <= record["discriminator_texts"] <= 40
    with pytest.raises(ValueError, match="tokens_per_batch was 30 in that run and is 31 now"):
        finetuner(tokens_per_batch=31).load_checkpoint(tmp_path / "whole/checkpoint.safetensors")


@pytest.mark.parametrize("wrong", [0, -3])
def test_a_budget_below_one_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"tokens_per_batch is {wrong}, expected a whole number"):
        FinetuneConfig(tokens_per_batch=wrong)


def test_accuracy_is_a_share_of_texts_and_losses_are_means_of_steps() -> None:
    meter = LossMeter(torch.device("cpu"))
    draws = random_draws(0)
    labeled = draws.task_batch()
    sizes = []
    for loss in (1.0, 2.0):
        batch = draws.language_batch()
        while len(batch) in sizes:
            batch = draws.language_batch()
        sizes.append(len(batch))
        values = [torch.tensor(v) for v in (loss, loss, loss, loss - 1)]
        meter.add(StepLosses(*values), labeled, batch, batch)
    means = meter.take()
    assert means["loss_task"] == means["loss_generator"] == 1.5
    assert means["discriminator_texts"] == sum(sizes)
    assert means["discriminator_accuracy"] == pytest.approx(sizes[1] / sum(sizes))
