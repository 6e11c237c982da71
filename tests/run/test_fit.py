"""What happens to a run when something goes wrong in the middle of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from fastadv import AdversarialFinetuner, FinetuneConfig, Stopped
from fastadv.records.history import History
from fastadv.run import fit as fit_module
from fastadv.run import loop as loop_module
from fastadv.run.checkpoint import load_checkpoint, previous_of

pytestmark = pytest.mark.usefixtures("one_thread")
CHECKPOINT = "checkpoint.safetensors"


def finetuner(**changes: object) -> AdversarialFinetuner:
    settings = {"steps": 8, "batch_size": 3, "max_length": 32, "log_every": 2, "eval_every": 4}
    config = FinetuneConfig(**(settings | {"checkpoint_every": 2} | changes))
    return AdversarialFinetuner(
        tiny.tiny_bert(),
        "classification",
        tiny.LABELS,
        config,
        tokenizer=tiny.tiny_tokenizer(),
        device="cpu",
    )


def fit(tuner: AdversarialFinetuner, output: Path | None, **options: Any) -> History:
    return tuner.fit(
        tiny.ENGLISH,
        {"de": tiny.GERMAN},
        dev=tiny.ENGLISH,
        output_dir=output,
        **{"quiet": True, **options},
    )


def after(tuner: AdversarialFinetuner, step: int, act: Callable[[], None]) -> None:
    """Lets something happen at the end of one step, before the loop sees what it computed."""
    original = tuner.trainer.step

    def stepped(*batches: Any) -> Any:
        losses = original(*batches)
        if tuner.trainer.step_count == step:
            act()
        return losses

    tuner.trainer.step = stepped  # type: ignore[method-assign]


def poison(tuner: AdversarialFinetuner) -> None:
    with torch.no_grad():
        tuner.model.task_head.weight[0, 0] = float("nan")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("step", [4, 5])
def test_weights_gone_wrong_stop_the_run_and_keep_the_good_checkpoint(
    step: int, tmp_path: Path
) -> None:
    """After step 4 its loss is still finite, and only the weights tell; after step 5 the loss of
    step 6 tells."""
    tuner = finetuner()
    after(tuner, step, lambda: poison(tuner))
    with pytest.raises(FloatingPointError, match=r"expected .*numbers?: lower the") as stopped:
        fit(tuner, tmp_path)
    good = 2 if step == 4 else 4
    assert f"the checkpoint of step {good} is kept" in str(stopped.value)
    assert len(str(stopped.value).splitlines()) == 1
    tensors, state = load_checkpoint(tmp_path / CHECKPOINT)
    assert state["step"] == good
    assert all(torch.isfinite(t).all() for t in tensors.values())
    for model in tmp_path.glob("*/model.safetensors"):
        assert all(torch.isfinite(t).all() for t in load_file(model).values())


def test_before_the_first_checkpoint_it_says_so(tmp_path: Path) -> None:
    tuner = finetuner()
    after(tuner, 1, lambda: poison(tuner))
    with pytest.raises(FloatingPointError, match="no checkpoint was written before it"):
        fit(tuner, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_full_disk_stops_the_run_which_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(finetuner(), tmp_path / "whole")
    tuner = finetuner()
    run = tmp_path / "run"
    saved = loop_module.save_checkpoint
    with monkeypatch.context() as patch:

        def save(*arguments: Any) -> None:
            if tuner.trainer.step_count == 6:
                raise OSError(f"{run / CHECKPOINT}: cannot write the checkpoint: disk full")
            saved(*arguments)

        patch.setattr(loop_module, "save_checkpoint", save)
        with pytest.raises(OSError, match="disk full; stopped at step 6, the checkpoint of step 4"):
            fit(tuner, run)
    fit(finetuner(), run, resume=True)
    assert_same(tmp_path / "whole", run)


def assert_same(one: Path, other: Path) -> None:
    ours, _ = load_checkpoint(one / CHECKPOINT)
    theirs, _ = load_checkpoint(other / CHECKPOINT)
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []
    steps = [
        [(r["kind"], r["step"]) for r in map(json.loads, (f / "metrics.jsonl").open())]
        for f in (one, other)
    ]
    assert steps[0] == steps[1]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(finetuner(), tmp_path / "whole")
    run = tmp_path / "run"
    tuner = finetuner()
    after(tuner, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        fit(tuner, run)
    newest = run / CHECKPOINT
    whole = newest.read_bytes()
    newest.unlink()
    newest.write_bytes(whole[: len(whole) // 2])
    assert load_checkpoint(previous_of(newest))[1]["step"] == 6
    capsys.readouterr()
    fit(finetuner(), run, resume=True)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "resuming from the one before it" in said
    assert_same(tmp_path / "whole", run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step(
    number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tuner = finetuner()
    before = signal.getsignal(number)
    after(tuner, 3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="stopped after step 3, a checkpoint is in") as stopped:
        fit(tuner, tmp_path, quiet=False)
    found = stopped.value
    assert (found.signal, found.step, found.output_dir) == (number, 3, tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 3
    assert "stopping after this step" in capfd.readouterr().err
    assert signal.getsignal(number) == before
    tuner = finetuner()
    after(tuner, 1, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="stopped after step 1, nothing was saved"):
        fit(tuner, None)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    tuner = finetuner()

    def twice() -> None:
        # Not os.kill: two of one kind that wait for another thread at once are one.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    after(tuner, 3, twice)
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(tuner, tmp_path)
    assert not isinstance(stopped.value, Stopped)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 2


@pytest.mark.parametrize("what", ["best", "last", "metrics.jsonl", CHECKPOINT])
def test_what_a_folder_holds_is_not_overwritten(what: str, tmp_path: Path) -> None:
    fit(finetuner(steps=2, eval_every=1), tmp_path)
    for path in tmp_path.iterdir():
        if path.name != what:
            path.rename(tmp_path.with_name(f"{tmp_path.name}-{path.name}"))
    before = contents(tmp_path)
    assert before
    with pytest.raises(ValueError, match=f"found {what} of another run"):
        fit(finetuner(), tmp_path)
    assert contents(tmp_path) == before


def test_a_file_where_the_folder_belongs(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ValueError, match="run: found a file, expected a folder for the run"):
            fit(finetuner(), tmp_path / "run", resume=resume)
    assert (tmp_path / "run").read_text() == "mine"


def test_what_needs_a_folder_says_so() -> None:
    with pytest.raises(ValueError, match="resume needs an output_dir"):
        fit(finetuner(), None, resume=True)
    with pytest.raises(ValueError, match="trackers need an output_dir"):
        fit(finetuner(), None, trackers=["tensorboard"])


def test_warnings_are_said_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `diagnose` finds at a record is shown when it is new, in resumed runs too."""
    seen: list[int] = []

    def diagnose(records: list[dict[str, Any]], config: object, guessing: float) -> list[str]:
        assert all(r["kind"] == "train" for r in records)
        seen.append(records[-1]["step"])
        return ["the discriminator sleeps"] if records[-1]["step"] >= 4 else []

    monkeypatch.setattr(fit_module, "diagnose", diagnose)
    fit(finetuner(steps=6), tmp_path)
    assert seen == [2, 4, 6]
    assert capsys.readouterr().err.splitlines() == ["warning: step 4: the discriminator sleeps"]
    history = fit(finetuner(steps=8), tmp_path, resume=True)
    assert capsys.readouterr().err == ""
    warnings = [r for r in history.records if r["kind"] == "warning"]
    assert warnings == [{"kind": "warning", "step": 4, "message": "the discriminator sleeps"}]


def test_trackers_get_every_record_and_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Any, ...]] = []
    logged: list[dict[str, Any]] = []
    closed: list[bool] = []

    class Recorder:
        def log(self, record: dict[str, Any]) -> None:
            logged.append(record)

        def close(self) -> None:
            closed.append(True)

    def open_tracker(*arguments: Any) -> Recorder:
        opened.append(arguments)
        return Recorder()

    monkeypatch.setattr(fit_module, "open_tracker", open_tracker)
    history = fit(finetuner(), tmp_path, trackers=["wandb"])
    [(name, folder, run, config, step)] = opened
    assert (name, folder, run, step) == ("wandb", tmp_path, tmp_path.name, 0)
    assert config["lr_task"] == 2e-6
    assert logged == history.records and closed == [True]
    tuner = finetuner(steps=12)
    after(tuner, 9, lambda: poison(tuner))
    with pytest.raises(FloatingPointError):
        fit(tuner, tmp_path, resume=True, trackers=["wandb"])
    assert opened[1][4] == 8 and closed == [True, True]


def test_a_signal_in_the_last_step_ends_a_finished_run(tmp_path: Path) -> None:
    tuner = finetuner(steps=3)
    after(tuner, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped after step 3"):
        fit(tuner, tmp_path)
    assert (tmp_path / "last" / "model.safetensors").exists()
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 3
