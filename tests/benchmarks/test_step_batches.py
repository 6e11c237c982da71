"""What the whole-step benchmark runs over: texts, models, operations and bytes of a step."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from fastadv.batches.tokenization import TokenSequence

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def load() -> Any:
    return importlib.import_module


def sequences(*lengths: int) -> list[list[TokenSequence]]:
    return [[TokenSequence(np.arange(n, dtype=np.int32), label=0)] for n in lengths]


@pytest.mark.parametrize(("size", "millions"), [("mbert", 178), ("e5-small", 118)])
def test_model_sizes_are_those_of_the_originals(load: Any, size: str, millions: int) -> None:
    # As their pages at huggingface.co say, rounded.
    with torch.device("meta"):
        model = BertModel(BertConfig(**load("step.models").MODEL_SIZES[size]))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_operations_of_a_hand_computed_step(load: Any) -> None:
    batches = load("step.batches")
    config = SimpleNamespace(hidden_size=2, num_hidden_layers=3, intermediate_size=5)
    # A layer has 4*2*2 + 2*2*5 = 36 weights, three have 108: 216 operations a token. Attention:
    # 4 * 3 layers * 2 wide = 24 by the square of the length.
    assert batches.forward_flops(config, [1]) == 216 + 24
    assert batches.forward_flops(config, [2, 3]) == 216 * 5 + 24 * (4 + 9)
    draws = batches.StepDraws(
        sequences(4, 2), sequences(1), sequences(2), sequences(3), sequences(1)
    )
    units = 3 * (216 * 6 + 24 * 20) + (240 + 216 * 2 + 24 * 4) + 3 * (216 * 3 + 24 * 9 + 240)
    assert batches.step_flops(config, draws) == units
    assert (draws.useful_tokens, draws.padded_tokens) == (13, 15)
    # Pieces 0..3 in the T batch, 0..2 in the G batch.
    assert draws.rows() == (4, 3)


def test_floor_of_a_hand_computed_step(load: Any) -> None:
    models, batches = load("step.models"), load("step.batches")
    encoder = models.make_encoder("tiny", None, least_vocab=1)
    tokenizer = batches.make_tokenizer(None, None)
    shape, cpu = batches.SHAPES["ner"], torch.device("cpu")
    setup = models.make_setup(encoder, tokenizer, shape, cpu, "fp32", None)
    draws = batches.StepDraws(
        sequences(4, 2), sequences(1), sequences(2), sequences(3), sequences(1)
    )
    # 512 positions, 2 types and a normalisation are 16,512 weights; a layer has 8,544; the task
    # head 7 * 33. Pieces 0..3 in the T batch and 0..2 in the G batch are 7 rows of 32.
    weights = 2 * (16512 + 2 * 8544) + 231 + 7 * 32
    found = load("step.floor").floor(setup, [draws, draws], 1e6, 1e3)
    assert found.optimizer_bytes == 28 * weights
    assert found.flops == batches.step_flops(encoder.config, draws)
    assert found.seconds == found.flops / 1e6 + found.optimizer_bytes / 1e3


def test_eleven_units_where_all_five_batches_are_alike(load: Any) -> None:
    batches = load("step.batches")
    config = SimpleNamespace(hidden_size=8, num_hidden_layers=2, intermediate_size=16)
    draws = batches.StepDraws(*(sequences(5, 9) for _ in range(5)))
    assert batches.step_flops(config, draws) == 11 * batches.forward_flops(config, [5, 9])


@pytest.mark.parametrize(("name", "mean"), [("ner", 20), ("news", 180)])
def test_drawn_lengths_are_as_stated(load: Any, name: str, mean: float) -> None:
    batches = load("step.batches")
    lengths = batches.DrawnTexts(batches.SHAPES[name], 1000, seed=4).lengths(20000)
    # The mean of 20,000 has a standard error of 0.5% or less.
    assert lengths.mean() == pytest.approx(mean, rel=0.02)
    assert lengths.min() >= 3 and lengths.max() == batches.SHAPES[name].max_length


def test_draws_are_seeded_and_ids_in_range(load: Any) -> None:
    batches = load("step.batches")

    def drawn(seed: int) -> Any:
        return batches.DrawnTexts(batches.SHAPES["ner"], 50, seed).step(3).packed()

    first, again, other = drawn(1), drawn(1), drawn(2)
    for ours, theirs in zip(first, again, strict=True):
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert ours.input_ids.min() >= 1 and ours.input_ids.max() < 50
    assert not torch.equal(first[0].input_ids, other[0].input_ids)
    assert first[1].english.tolist() == [False] * 3 + [True] * 3


def test_real_texts_come_from_a_folder(load: Any, tmp_path: Path) -> None:
    batches = load("step.batches")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "rain", "fog", "nebel"]
    for name, text in {
        "mbert_vocab/vocab.txt": "\n".join(pieces),
        "debian_topics/en.train": "NET\train fog rain\nGAMES\tfog",
        "debian_topics/de.train": "NET\tnebel",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    tokenizer = batches.make_tokenizer(None, tmp_path)
    texts = batches.real_texts(tmp_path, batches.SHAPES["news"], tokenizer, seed=0)
    draws = texts.step(20)
    found = {(tuple(e[0].input_ids.tolist()), e[0].label) for e in draws.labeled}
    assert found == {((2, 4, 5, 4, 3), 2), ((2, 5, 3), 0)}
    assert {tuple(e[0].input_ids.tolist()) for e in draws.other_d} == {(2, 6, 3)}
    assert all(e[0].label is None for e in draws.english_g)
    with pytest.raises(ValueError, match=r"found no uner/.*, expected one"):
        batches.real_texts(tmp_path, batches.SHAPES["ner"], tokenizer, seed=0)
