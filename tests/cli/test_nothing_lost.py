"""What a refusal, a full disk or a damaged file leaves behind: all that was there."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import call, contents, refused, train

import fastadv.run.checkpoint
import fastadv.training.trainer
from fastadv.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_output_of_another_run(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = train(model, "--config.steps", "1", "--quiet")
    assert main(begun) == 0
    refused(capsys, begun, "run: found", "--resume", keeps=corpus)
    # Over other text, so not the same run either way.
    refused(capsys, [*begun, "--resume", "--unlabeled", "it=fr.txt"], "data", keeps=corpus)
    # A twin of an earlier run is in the way before anything is trained.
    shutil.move(corpus / "run", corpus / "new" / "baseline")
    refused(capsys, [*begun, "--output", "new", "--baseline"], "new/baseline", keeps=corpus)


def test_options_file_of_somebody_else(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "run").mkdir()
    (corpus / "run" / "run.yaml").write_text("mine: yes\n")
    refused(capsys, train(model), "run.yaml: found a file that fastadv did not", keeps=corpus)


def test_checkpoint_cut_short(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = train(model, "--config.steps", "4", "--config.checkpoint_every", "2", "--quiet")
    assert main(begun) == 0
    whole = contents(corpus / "run" / "last")
    checkpoint = corpus / "run" / "checkpoint.safetensors"
    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    capsys.readouterr()
    assert main([*begun, "--resume"]) == 0
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and "checkpoint.previous.safetensors" in printed
    assert contents(corpus / "run" / "last") == whole
    for path in (corpus / "run").glob("checkpoint*"):
        os.truncate(path, 100)
    refused(capsys, [*begun, "--resume"], "checkpoint", keeps=corpus)


def test_a_full_disk_keeps_the_last_checkpoint(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = train(model, "--config.steps", "1", "--quiet")
    assert main(begun) == 0
    before = contents(corpus / "run")

    def full(tensors: object, path: Path, metadata: object = None) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fastadv.run.checkpoint, "save_file", full)
    capsys.readouterr()
    assert main([*begun, "--resume", "--config.steps", "2"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "No space left on device" in said
    assert "checkpoint" in said
    after = contents(corpus / "run")
    assert {*after} == {*before}
    assert after["checkpoint.safetensors"] == before["checkpoint.safetensors"]
    monkeypatch.undo()
    os.chdir(corpus)
    assert main([*begun, "--resume", "--config.steps", "2"]) == 0


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_a_full_disk_under_an_output(
    command: str,
    model: Path,
    classifier: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = str(classifier if command == "predict" else model)
    arguments = [command, "--model", source, "--input", "de.txt", "--output", "/dev/full"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (f"fastadv {command}: /dev/full: No space left on device\n")


def test_a_full_disk_under_standard_output(classifier: Path, corpus: Path) -> None:
    with Path("/dev/full").open("w") as full:
        arguments = ["predict", "--model", str(classifier), "--input", "de.txt"]
        done = call(*arguments, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "fastadv predict: No space left on device\n"


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = train(model, "--config.steps", "2", "--quiet", "--config.checkpoint_every", "1")
    assert main(begun) == 0
    kept = contents(corpus / "run")["checkpoint.safetensors"]
    step = fastadv.training.trainer.Trainer.step

    def poisoned(self: fastadv.training.trainer.Trainer, *batches: Any) -> Any:
        with torch.no_grad():
            next(self.model.parameters()).fill_(float("nan"))
        return step(self, *batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastadv.training.trainer.Trainer, "step", poisoned)
        capsys.readouterr()
        assert main([*begun, "--resume", "--config.steps", "4"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "expected" in said and "the checkpoint of step 2 is kept" in said
    assert contents(corpus / "run")["checkpoint.safetensors"] == kept
    assert main([*begun, "--resume", "--config.steps", "3"]) == 0


def test_no_run_yaml_without_a_run(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a folder that was there, and below folders that were not."""
    (corpus / "there").mkdir()
    for output in ("there", "a/b/c"):
        refused(capsys, train(model, "--dev", "nowhere", output=output), "nowhere", keeps=corpus)
    assert not (corpus / "a").exists() and (corpus / "there").is_dir()
