"""The whole-step benchmark: its count of operations, its check, and what it reports."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fastadv.trainer
from fastadv.tokenization import TokenSequence

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = ("--model", "tiny", "--shape", "ner", "--batch-size", "2", "--steps", "2", "--device", "cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def step_time(load: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("step_time")
    # The machine's rates take a second and more to measure.
    monkeypatch.setattr(module, "matrix_rate", lambda device, dtype: 1e12)
    monkeypatch.setattr(module, "copy_bandwidth", lambda device: 1e9)
    return module


def sequences(*lengths: int) -> list[list[TokenSequence]]:
    return [[TokenSequence(np.arange(n, dtype=np.int32), label=0)] for n in lengths]


def test_reports_what_it_measured(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "step_time.py"), *TINY, "--json", str(target)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "ratio B0 / library" in done.stdout and "equals the reference" in done.stdout
    report = json.loads(target.read_text())
    assert report["settings"]["batch_size"] == 2 and report["machine"]["torch"] == torch.__version__
    found = report["shapes"]["ner"]
    assert all(check["passed"] for check in found["checks"])
    assert 0 < found["useful_tokens"] < found["padded_tokens"]
    assert 0 < found["floor_matrix_seconds"] < found["floor_seconds"]
    for system in ("library", "B0"):
        row = found["systems"][system]
        assert len(row["runs"]) == 2 and min(row["runs"]) <= row["seconds"] <= max(row["runs"])
        # Rounded apart by nothing but float64.
        assert row["useful_tflops"] == pytest.approx(found["tflop"] / row["seconds"])
        assert row["fraction_of_floor"] == pytest.approx(found["floor_seconds"] / row["seconds"])
    runs = [found["systems"][name]["runs"] for name in ("B0", "library")]
    pairs = [theirs / ours for theirs, ours in zip(*runs, strict=True)]
    assert found["ratios"]["B0"]["pairs"] == pytest.approx(pairs)


def test_prints_no_ratio_where_the_generator_loss_is_wrong(
    step_time: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Labels not flipped: the loss of D, which is a plausible number.
    def unflipped(h: Any, english: Any, *rest: Any, **options: Any) -> Any:
        return right(h, ~english, *rest, **options)

    right = fastadv.trainer.generator_loss
    monkeypatch.setattr(fastadv.trainer, "generator_loss", unflipped)
    assert step_time.main(TINY) == 1
    printed = capsys.readouterr().out
    assert "DIFFERS FROM" in printed and "ratio" not in printed and "seconds" not in printed


@pytest.mark.parametrize("phase", ["task", "discriminator", "generator"])
def test_an_update_left_out_fails_the_check(
    step_time: ModuleType, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    class Forgetful(step_time.Library):
        def step(self, batches: Any) -> object:
            self._tuner.trainer.optimizers[phase].step = lambda gradients: None
            return super().step(batches)

    monkeypatch.setattr(step_time, "SYSTEMS", (Forgetful, step_time.Padded))
    assert step_time.main(TINY) == 1


def test_a_gradient_left_out_or_not_a_number_fails_the_check(load: Any) -> None:
    worst = load("step_check")._worst
    one, loss = torch.ones(3), torch.tensor(1.0)
    expected = {"task": (loss, {"w": one})}
    assert worst(expected, expected) == 0
    assert worst({"task": (loss, {})}, expected) > 0.9
    nan = worst({"task": (loss, {"w": one * float("nan")})}, expected)
    assert not load("step_check").Check("x", 0.0, nan, 0.0, None).passed


def test_operations_of_a_hand_computed_step(load: Any) -> None:
    batches = load("step_batches")
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


def test_eleven_units_where_all_five_batches_are_alike(load: Any) -> None:
    batches = load("step_batches")
    config = SimpleNamespace(hidden_size=8, num_hidden_layers=2, intermediate_size=16)
    draws = batches.StepDraws(*(sequences(5, 9) for _ in range(5)))
    assert batches.step_flops(config, draws) == 11 * batches.forward_flops(config, [5, 9])


@pytest.mark.parametrize(("name", "mean"), [("ner", 20), ("news", 180)])
def test_drawn_lengths_are_as_stated(load: Any, name: str, mean: float) -> None:
    batches = load("step_batches")
    lengths = batches.DrawnTexts(batches.SHAPES[name], 1000, seed=4).lengths(20000)
    # The mean of 20,000 has a standard error of 0.5% or less.
    assert lengths.mean() == pytest.approx(mean, rel=0.02)
    assert lengths.min() >= 3 and lengths.max() == batches.SHAPES[name].max_length


def test_draws_are_seeded_and_ids_in_range(load: Any) -> None:
    batches = load("step_batches")

    def drawn(seed: int) -> Any:
        return batches.DrawnTexts(batches.SHAPES["ner"], 50, seed).step(3).packed()

    first, again, other = drawn(1), drawn(1), drawn(2)
    for ours, theirs in zip(first, again, strict=True):
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert ours.input_ids.min() >= 1 and ours.input_ids.max() < 50
    assert not torch.equal(first[0].input_ids, other[0].input_ids)
    assert first[1].english.tolist() == [False] * 3 + [True] * 3


def test_real_texts_come_from_a_folder(load: Any, tmp_path: Path) -> None:
    batches = load("step_batches")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "rain", "fog", "nebel"]
    for name, text in {
        "mbert_vocab/vocab.txt": "\n".join(pieces),
        "debian_topics/en.train": "NET\train fog rain\nGAMES\tfog",
        "debian_topics/de.train": "NET\tnebel",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    tokenizer = batches.make_tokenizer("tiny", tmp_path)
    texts = batches.real_texts(tmp_path, batches.SHAPES["news"], tokenizer, seed=0)
    draws = texts.step(20)
    found = {(tuple(e[0].input_ids.tolist()), e[0].label) for e in draws.labeled}
    assert found == {((2, 4, 5, 4, 3), 2), ((2, 5, 3), 0)}
    assert {tuple(e[0].input_ids.tolist()) for e in draws.other_d} == {(2, 6, 3)}
    assert all(e[0].label is None for e in draws.english_g)
    with pytest.raises(ValueError, match=r"found no uner/.*, expected one"):
        batches.real_texts(tmp_path, batches.SHAPES["ner"], tokenizer, seed=0)
