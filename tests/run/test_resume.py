"""Stop and resume equals never stopping, bit for bit on the CPU, in another process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.run.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

# Runs in a fresh interpreter: nothing of the first process can help it.
SCRIPT = """
import json, sys
from pathlib import Path
from typing import Any
import tiny, torch
from fastadv import AdversarialFinetuner, FinetuneConfig
torch.set_num_threads(1)
task, folder, output, steps, changes = json.loads(sys.argv[1])
labels = tiny.LABELS if task == "classification" else tiny.TAGS
train = tiny.ENGLISH if task == "classification" else tiny.SENTENCES
config = FinetuneConfig(**{"steps": steps, "batch_size": 3, "max_length": 16, "window_overlap": 4,
                           "eval_every": 2, "log_every": 2, "checkpoint_every": 1, **changes})
tuner = AdversarialFinetuner(Path(folder), task, labels, config, device="cpu")
tuner.fit(train, {"de": tiny.GERMAN, "fr": tiny.FRENCH}, dev=train, test={"train": train},
          output_dir=output, resume=True, quiet=True)
"""


def start(task: str, model: Path, output: Path, steps: int, **changes: object) -> subprocess.Popen:
    arguments = json.dumps([task, str(model), str(output), steps, changes])
    path = os.pathsep.join([str(Path(tiny.__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, arguments],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, **changes: object) -> None:
    process = start(*arguments, **changes)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def outcome(output: Path) -> tuple[dict[str, torch.Tensor], list[dict], dict]:
    tensors, state = load_checkpoint(output / "checkpoint.safetensors")
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for rate in ("examples_per_second", "tokens_per_second"):
            record.pop(rate, None)
    # Not the number of bytes: rates have more digits or fewer.
    state["run"].pop("metrics_length")
    return tensors, records, state


def assert_same_run(one: Path, other: Path) -> None:
    tensors, records, state = outcome(one)
    other_tensors, other_records, other_state = outcome(other)
    assert tensors.keys() == other_tensors.keys()
    assert [n for n in tensors if not torch.equal(tensors[n], other_tensors[n])] == []
    assert records == other_records
    assert {**state, "config": None} == {**other_state, "config": None}
    for name in ("best", "last"):
        ours = load_file(one / name / "model.safetensors")
        theirs = load_file(other / name / "model.safetensors")
        assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("task", ["classification", "ner"])
def test_three_and_three_steps_equal_six(task: str, model: Path, tmp_path: Path) -> None:
    run(task, model, tmp_path / "whole", 6)
    run(task, model, tmp_path / "parts", 3)
    run(task, model, tmp_path / "parts", 6)
    assert_three_and_three_equal_six(tmp_path)


def test_the_same_without_bfloat16_products(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the processor has none, or oneDNN may not use them."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    run("classification", model, tmp_path / "whole", 6)
    run("classification", model, tmp_path / "parts", 3)
    run("classification", model, tmp_path / "parts", 6)
    assert_three_and_three_equal_six(tmp_path)


def assert_three_and_three_equal_six(tmp_path: Path) -> None:
    # The first part evaluated its own last step, 3, which the whole run had no reason to.
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 2, 3, 3, 4, 4, 6, 6]
    tensors, _, _ = outcome(tmp_path / "whole")
    others, _, _ = outcome(tmp_path / "parts")
    names = [n for n in tensors if not n.startswith("run.")]
    assert [n for n in names if not torch.equal(tensors[n], others[n])] == []


ESTIMATES = {"class_shares": {"de": "estimate", "fr": {"music": 1.0}}, "shares_every": 7}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (signal.SIGTERM, {}),
        (signal.SIGKILL, {}),
        (signal.SIGTERM, ESTIMATES),
        (signal.SIGKILL, ESTIMATES),
    ],
)
def test_a_stopped_run_resumes_as_if_it_never_stopped(
    name: signal.Signals, changes: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    changes = {"eval_every": 50, **changes}
    run("classification", model, tmp_path / "whole", 200, **changes)
    output = tmp_path / "stopped"
    process = start("classification", model, output, 200, **changes)
    deadline = time.monotonic() + 120
    metrics = output / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 10:
            process.send_signal(name)
            break
        time.sleep(0.005)
    process.communicate()
    assert process.returncode != 0, "the run ended before it was stopped"
    _, state = load_checkpoint(output / "checkpoint.safetensors")
    assert 0 < state["step"] < 200
    run("classification", model, output, 200, **changes)
    assert_same_run(tmp_path / "whole", output)


def hand_driven(model: Path) -> AdversarialFinetuner:
    config = FinetuneConfig(max_length=32, seed=4)
    return AdversarialFinetuner(model, labels=tiny.LABELS, config=config, device="cpu")


def drive(tuner: AdversarialFinetuner, steps: range) -> list[float]:
    english = [text for text, _ in tiny.ENGLISH]
    losses = []
    for step in steps:
        draw = tuner.collate(tiny.GERMAN[step % 3 :], english[step % 5 :])
        losses.append(tuner.step(tuner.collate(tiny.ENGLISH), draw, draw).task)
    return losses


def test_hand_driven_steps_resume_exactly(model: Path, tmp_path: Path) -> None:
    whole = hand_driven(model)
    expected = drive(whole, range(6))
    first = hand_driven(model)
    drive(first, range(3))
    first.save_checkpoint(tmp_path / "c.safetensors")
    second = hand_driven(model)
    second.load_checkpoint(tmp_path / "c.safetensors")
    assert drive(second, range(3, 6)) == expected[3:]
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dropout_is_on_and_depends_on_the_step_alone(model: Path) -> None:
    one, two = hand_driven(model), hand_driven(model)
    torch.manual_seed(1)
    first = drive(one, range(2))
    torch.manual_seed(2)
    assert drive(two, range(2)) == first
    still = AdversarialFinetuner(
        model, labels=tiny.LABELS, config=FinetuneConfig(max_length=32, seed=4, dropout=0.0)
    )
    assert drive(still, range(1)) != first[:1]


@pytest.mark.parametrize("encoder", ["packed", "padded"])
def test_dropout_differs_by_seed_step_and_pass(encoder: Any, model: Path) -> None:
    """Packed, it is drawn from the batch's seed; padded, from PyTorch's generator at that seed."""
    drawn: list[Any] = []
    for seed in (0, 1):
        config = FinetuneConfig(max_length=32, seed=seed, encoder=encoder)
        tuner = AdversarialFinetuner(model, labels=tiny.LABELS, config=config, device="cpu")
        for step in (0, 1, 2):
            tuner.trainer.step_count = step
            for encoder_pass in ("task", "languages"):
                before, batch = torch.get_rng_state(), tuner.collate(tiny.ENGLISH[:2])
                with tuner.trainer._dropout_of(encoder_pass, batch) as seeded:
                    assert int(seeded.seed) == tuner.trainer.seed_of(encoder_pass, step)
                    if encoder == "packed":
                        drawn.append(int(seeded.seed))
                        assert torch.equal(torch.get_rng_state(), before)
                    else:
                        drawn.append(tuple(torch.rand(4).tolist()))
                assert torch.equal(torch.get_rng_state(), before)
                assert batch.seed is None
    assert len(set(drawn)) == len(drawn) == 12


def test_another_setting_is_refused(model: Path, tmp_path: Path) -> None:
    tuner = hand_driven(model)
    tuner.save_checkpoint(tmp_path / "c.safetensors")
    other = AdversarialFinetuner(
        model, labels=tiny.LABELS, config=FinetuneConfig(max_length=32, seed=5), device="cpu"
    )
    with pytest.raises(ValueError, match=r"seed was 4 in that run and is 5 now"):
        other.load_checkpoint(tmp_path / "c.safetensors")


def test_a_setting_that_a_checkpoint_lacks_was_its_default(model: Path, tmp_path: Path) -> None:
    """As in a checkpoint from before the setting was added."""
    whole, first = hand_driven(model), hand_driven(model)
    expected = drive(whole, range(4))
    drive(first, range(2))
    first.save_checkpoint(tmp_path / "c.safetensors")
    tensors, state = load_checkpoint(tmp_path / "c.safetensors")
    assert state["config"].pop("relaxation") == 0.0
    save_checkpoint(tmp_path / "old.safetensors", tensors, state)
    second = hand_driven(model)
    second.load_checkpoint(tmp_path / "old.safetensors")
    assert drive(second, range(2, 4)) == expected[2:]
    config = FinetuneConfig(max_length=32, seed=4, relaxation=0.5)
    other = AdversarialFinetuner(model, labels=tiny.LABELS, config=config, device="cpu")
    with pytest.raises(ValueError, match=r"relaxation was 0\.0 in that run and is 0\.5 now"):
        other.load_checkpoint(tmp_path / "old.safetensors")
    # What has no default must be there; what nobody knows must not.
    for change, message in (
        ({"lr_task": None}, "lr_task was None in that run"),
        ({"flavour": "sweet"}, "flavour was 'sweet' in that run and is None now"),
    ):
        config = {k: v for k, v in (state["config"] | change).items() if v is not None}
        save_checkpoint(tmp_path / "old.safetensors", tensors, state | {"config": config})
        with pytest.raises(ValueError, match=message):
            hand_driven(model).load_checkpoint(tmp_path / "old.safetensors")


@pytest.mark.parametrize("choice", ["packed", "padded"])
def test_checkpoints_hold_either_encoder(choice: str, model: Path, tmp_path: Path) -> None:
    def build(encoder: str) -> AdversarialFinetuner:
        config = FinetuneConfig(max_length=32, seed=4, encoder=encoder)
        return AdversarialFinetuner(model, labels=tiny.LABELS, config=config, device="cpu")

    whole, first, second = build(choice), build(choice), build(choice)
    expected = drive(whole, range(4))
    drive(first, range(2))
    first.save_checkpoint(tmp_path / "c.safetensors")
    second.load_checkpoint(tmp_path / "c.safetensors")
    assert drive(second, range(2, 4)) == expected[2:]
    other = build("padded" if choice == "packed" else "packed")
    with pytest.raises(ValueError, match=f"encoder was '{choice}' in that run"):
        other.load_checkpoint(tmp_path / "c.safetensors")


def test_other_data_and_an_occupied_folder_are_refused(model: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(steps=2, batch_size=2, max_length=32)

    def fit(german: list[str], **options: object) -> None:
        tuner = AdversarialFinetuner(model, labels=tiny.LABELS, config=config, device="cpu")
        tuner.fit(tiny.ENGLISH, {"de": german}, output_dir=tmp_path, quiet=True, **options)

    fit(tiny.GERMAN)
    with pytest.raises(
        ValueError, match=r"found checkpoint.safetensors of another run, expected a new"
    ):
        fit(tiny.GERMAN)
    with pytest.raises(ValueError, match=r"was over other data \(de\)"):
        fit(tiny.GERMAN[:-1], resume=True)
