"""Ctrl-C and SIGTERM: a checkpoint, one line with the command that resumes, and its status."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_helpers import command, environment, train

import fastadv.finetuner
import fastadv.run.fit
import fastadv.tasks.evaluation_set
import fastadv.tasks.inference
import fastadv.training.trainer
from fastadv.cli import main
from fastadv.cli.signals import raised_signals

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = ["--config.steps", "100000", "--config.eval_every", "0", "--config.checkpoint_every", "0"]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT as on a terminal: a shell's background jobs, such as a test run, begin without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_stopped_run_says_how_to_resume(
    number: signal.Signals, status: int, model: Path, corpus: Path
) -> None:
    arguments = train(model, *LONG, output="a run")
    metrics = corpus / "a run" / "metrics.jsonl"
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == status
    last = said.splitlines()[-1]
    assert last.startswith("fastadv train: stopped after step ")
    assert "Traceback" not in said
    _, _, again = last.partition("resume with: ")
    resumed = shlex.split(again)
    assert resumed == ["fastadv", *arguments, "--resume"]
    assert (corpus / "a run" / "run.yaml").exists()
    done = int(last.removeprefix("fastadv train: stopped after step ").split(",")[0])
    assert main([*resumed[1:], "--config.steps", str(done + 1), "--quiet"]) == 0


def interrupting(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int = signal.SIGINT
) -> None:
    """Sends the signal when something is called for the first time."""
    real: Callable[..., object] = getattr(owner, name)
    calls: list[None] = []

    def called(*arguments: object, **named: object) -> object:
        calls.append(None)
        if len(calls) == 1:
            os.kill(os.getpid(), number)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, called)


def test_while_loading_there_is_nothing_to_resume(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, fastadv.finetuner, "load_encoder")
    assert main(train(model)) == 130
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["fastadv train: stopped; nothing was done yet, the same command begins anew"]
    assert not (corpus / "run").exists()


@pytest.mark.parametrize(
    ("owner", "name", "step"),
    [
        (fastadv.training.trainer.Trainer, "step", 1),
        (fastadv.tasks.evaluation_set.EvaluationSet, "report", 2),
    ],
    ids=["in a step", "in an evaluation"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_step_or_an_evaluation_is_finished_first(
    owner: object,
    name: str,
    step: int,
    number: int,
    model: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupting(monkeypatch, owner, name, number)
    more = ["--dev", "en.train", "--config.eval_every", "2", "--config.steps", "50", "--quiet"]
    assert main(train(model, *more)) == 128 + number
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"fastadv train: stopped after step {step}, ")
    assert last.endswith(" --resume") and (corpus / "run" / "checkpoint.safetensors").exists()


def test_stopped_for_good_before_the_first_checkpoint(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object) -> None:
        raise KeyboardInterrupt("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(fastadv.run.fit.Run, "evaluate", lambda self: stop(self))
        assert main(train(model, "--dev", "en.train", *LONG, "--config.eval_every", "2")) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    begin, _, again = said.partition(" with: ")
    assert begin == "fastadv train: stopped; there is no checkpoint yet, begin anew"
    assert main([*shlex.split(again)[1:], "--config.steps", "1", "--quiet"]) == 0


def test_predict_leaves_no_half_file(
    classifier: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupting(monkeypatch, fastadv.tasks.inference, "pack", signal.SIGTERM)
    options = ["--input", "de.txt", "--output", "out.jsonl"]
    before = {*corpus.iterdir()}
    assert main(["predict", "--model", str(classifier), *options]) == 143
    assert capsys.readouterr().err == "fastadv predict: stopped\n"
    assert {*corpus.iterdir()} == before


def test_handlers_are_put_back(classifier: Path, corpus: Path) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert main(["predict", "--model", str(classifier), "--input", "de.txt"]) == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_ignored_signal_stays_ignored() -> None:
    """`nohup fastadv train &` in a script is not for Ctrl-C to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with raised_signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_second_signal_kills(corpus: Path, tmp_path: Path) -> None:
    """The first is being cleaned up after, forever; the second ends the process."""
    script = (
        "import os, signal, time\n"
        "from fastadv.cli.signals import raised_signals\n"
        "with raised_signals():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(60)\n"
    )
    done = subprocess.run([command()[0], "-c", script], timeout=50, env=environment())
    assert done.returncode == -signal.SIGINT
