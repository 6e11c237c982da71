"""A pretraining run in pieces, killed and gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_pretraining import prepared, settings

from fastadv.pretraining.config import PretrainConfig
from fastadv.pretraining.run import PretrainingRun, read_settings, write_settings
from fastadv.run.checkpoint import load_checkpoint, previous_of, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

KILLS = 10


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict], dict[str, torch.Tensor]]:
    """Checkpoint, records without rates, and saved weights."""
    tensors, _ = load_checkpoint(folder / "checkpoint.safetensors")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        for name in [n for n in record if n.endswith("_per_second")]:
            del record[name]
    return tensors, records, load_file(folder / "last" / "model.safetensors")


def same(one: Path, other: Path) -> None:
    for a, b in zip(outcome(one), outcome(other), strict=True):
        if isinstance(a, list):
            assert a == b
        else:
            assert a.keys() == b.keys()  # type: ignore[union-attr]
            assert all(torch.equal(a[n], b[n]) for n in a)  # type: ignore[call-overload]


@pytest.mark.parametrize("adversary", ["none", "source", "all"])
def test_pieces_equal_the_whole(tmp_path: Path, adversary: str) -> None:
    config = settings(adversary=adversary, dropout=0.1, short_steps=2)
    whole, pieces = (prepared(tmp_path / n, config) for n in ("whole", "pieces"))
    assert PretrainingRun(whole, True, "cpu").go()
    calls = 0
    # No time is left after one step: each call takes one.
    while not PretrainingRun(pieces, True, "cpu").go(seconds=0.0):
        calls += 1
    assert calls == config.steps - 1
    same(whole, pieces)
    # Going on with a run that is done does nothing.
    before = (whole / "metrics.jsonl").read_bytes()
    assert PretrainingRun(whole, True, "cpu").go()
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_killed_ten_times(tmp_path: Path) -> None:
    config = settings(steps=400, checkpoint_every=3, eval_every=100, decay_steps=50)
    whole, killed = (prepared(tmp_path / n, config) for n in ("whole", "killed"))
    command = [sys.executable, "-m", "fastadv.pretraining", "--device", "cpu", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(whole)], env=environment, check=True)
    chance = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen([*command, str(killed)], env=environment)
        done = steps_done(killed)
        while process.poll() is None and steps_done(killed) == done:
            time.sleep(0.01)
        # Somewhere between two checkpoints, or in the middle of writing one.
        time.sleep(chance.uniform(0.0, 0.1))
        assert process.poll() is None, "the run ended before it was killed often enough"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run([*command, str(killed)], env=environment, check=True)
    same(whole, killed)


def steps_done(folder: Path) -> float:
    """Changes with every checkpoint."""
    path = folder / "checkpoint.safetensors"
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings()
    whole, damaged = (prepared(tmp_path / n, config) for n in ("whole", "damaged"))
    PretrainingRun(whole, True, "cpu").go()
    for _ in range(3):
        PretrainingRun(damaged, True, "cpu").go(seconds=0.0)
    path = damaged / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert previous_of(path).exists()
    assert PretrainingRun(damaged, True, "cpu").go()
    assert "resuming from the one before it" in capsys.readouterr().err
    same(whole, damaged)


def test_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepared(tmp_path, settings(adversary="source"))
    PretrainingRun(folder, False, "cpu").go()
    records = outcome(folder)[1]
    assert [(r["kind"], r["step"]) for r in records] == [
        ("train", 2), ("eval", 3), ("train", 4), ("train", 6), ("eval", 6),
    ]  # fmt: skip
    assert set(records[1]["held_out"]) == {"en", "de", "fr"}
    mean = sum(records[1]["held_out"].values()) / 3
    assert records[1]["mean"] == pytest.approx(mean)
    assert 0 <= records[0]["discriminator_accuracy"] <= 1
    said = capsys.readouterr().err
    assert "step 2/6: loss " in said and "tokens/s" in said and "min left" in said
    assert "step 3: held-out loss" in said and "  D " in said


def test_it_learns(tmp_path: Path) -> None:
    config = settings(
        steps=300, eval_every=0, checkpoint_every=0, warmup_steps=10, decay_steps=20, lr=5e-3
    )
    folder = prepared(tmp_path, config)
    run = PretrainingRun(folder, True, "cpu")
    before = run.pretrainer.held_out_losses()
    run.go()
    after = outcome(folder)[1][-1]["held_out"]
    # Neighbours say which word it is. Frequencies alone, which it begins with, give `before`.
    assert sum(after.values()) < 0.7 * sum(before.values())


def test_looking_changes_nothing(tmp_path: Path) -> None:
    often = prepared(tmp_path / "often", settings(eval_every=1, checkpoint_every=0))
    never = prepared(tmp_path / "never", settings(eval_every=0, checkpoint_every=0))
    for folder in (often, never):
        PretrainingRun(folder, True, "cpu").go()
    a, b = (load_file(f / "last" / "model.safetensors") for f in (often, never))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_another_corpus_or_other_settings_are_refused(tmp_path: Path) -> None:
    folder = prepared(tmp_path, settings())
    PretrainingRun(folder, True, "cpu").go(seconds=0.0)
    with pytest.raises(ValueError, match=r"lr was 0\.001 in that run and is 0\.1 now"):
        PretrainingRun(folder, True, "cpu", settings(lr=0.1))
    run = PretrainingRun(folder, True, "cpu", settings(steps=8))
    assert run.go() and run.trainer.step_count == 8
    ids = run.pretrainer.corpus.input_ids["en"]
    ids[0] ^= 1
    run.pretrainer.corpus.save(folder / "corpus.npz")
    with pytest.raises(ValueError, match=r"over another corpus\.npz"):
        PretrainingRun(folder, True, "cpu", settings(steps=8))


def test_a_setting_that_a_checkpoint_lacks_was_its_default(tmp_path: Path) -> None:
    """As in a checkpoint from before the setting was added."""
    whole, older = (prepared(tmp_path / n, settings(exponent=0.7)) for n in ("whole", "older"))
    assert PretrainingRun(whole, True, "cpu").go()
    PretrainingRun(older, True, "cpu").go(seconds=0.0)
    path = older / "checkpoint.safetensors"
    tensors, state = load_checkpoint(path)
    assert state["config"].pop("exponent") == PretrainConfig().exponent == 0.7
    save_checkpoint(path, tensors, state)
    with pytest.raises(ValueError, match=r"exponent was 0\.7 in that run and is 0\.5 now"):
        PretrainingRun(older, True, "cpu", settings(exponent=0.5))
    assert PretrainingRun(older, True, "cpu").go()
    same(whole, older)


def test_a_loss_that_is_no_number_keeps_the_checkpoint(tmp_path: Path) -> None:
    folder = prepared(tmp_path, settings())
    PretrainingRun(folder, True, "cpu").go(seconds=0.0)
    before = (folder / "checkpoint.safetensors").read_bytes()
    run = PretrainingRun(folder, True, "cpu")
    run.pretrainer.model.task_head.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        run.go()
    assert (folder / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask_rate": 0.0}, "mask_rate is 0.0, expected a number between 0 and 1"),
        ({"hidden_size": 31}, "hidden_size is 31, expected a multiple of num_heads, 2"),
        ({"max_length": 41}, "max_length is 41, expected 10 to max_positions, 40"),
        ({"tokens_per_batch": 10}, "tokens_per_batch is 10, expected at least max_length, 24"),
        ({"adversary": "both"}, "adversary is 'both', expected 'none', 'source' or 'all'"),
        ({"exponent": 2.0}, "exponent is 2.0"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"final_lr": 1.5}, "final_lr is 1.5"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_settings_without_sense_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**change)


def test_rates_rise_stay_and_fall() -> None:
    config = PretrainConfig(steps=100, warmup_steps=10, decay_steps=20, final_lr=0.1)
    assert config.rate(0) == pytest.approx(0.1) and config.rate(9) == pytest.approx(1.0)
    assert config.rate(50) == 1.0 and config.rate(80) == pytest.approx(1.0)
    assert config.rate(90) == pytest.approx(0.55)
    assert config.rate(99) == pytest.approx(0.145)


def test_settings_files(tmp_path: Path) -> None:
    config = settings(adversary="all", max_grad_norm=None)
    write_settings(tmp_path, config)
    assert read_settings(tmp_path) == config
    path = tmp_path / "pretrain.json"
    for text, said in (("{", "expected the settings"), ('{"stepz": 1}', "found stepz")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_settings(tmp_path)
    with pytest.raises(ValueError, match="expected the settings"):
        read_settings(tmp_path / "nowhere")


def test_the_core_command_says_how_it_ended(tmp_path: Path) -> None:
    folder = prepared(tmp_path, settings())
    command = [sys.executable, "-m", "fastadv.pretraining", str(folder), "--device", "cpu"]

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False)

    first = call("--seconds", "0", "--quiet")
    assert first.returncode == 3 and "step 1 of 6, the same command resumes it" in first.stdout
    second = call("--quiet")
    assert second.returncode == 0 and "step 6 of 6" in second.stdout
    (folder / "corpus.npz").write_bytes(b"no corpus")
    third = call()
    assert third.returncode == 2 and len(third.stderr.splitlines()) == 1
    assert "corpus.npz: expected a corpus" in third.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("adversary", ["none", "all"])
def test_steps_on_a_gpu_are_those_of_the_cpu(tmp_path: Path, adversary: str) -> None:
    config = settings(adversary=adversary, steps=20, checkpoint_every=0)
    here, there = (prepared(tmp_path / n, config) for n in ("cpu", "cuda"))
    PretrainingRun(here, True, "cpu").go()
    PretrainingRun(there, True, "cuda").go()
    a, b = outcome(here)[1], outcome(there)[1]
    for one, other in zip(a, b, strict=True):
        if one["kind"] == "eval":
            # Float32 sums in another order, over twenty steps of Adam.
            assert one["mean"] == pytest.approx(other["mean"], rel=1e-3)
