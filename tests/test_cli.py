"""The command line, run in process on tiny models and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from fastadv.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["--config.max_length", "32", "--config.batch_size", "3", "--config.log_every", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_folder(tmp_path_factory.mktemp("model"), max_position_embeddings=96)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = "".join(f"{label}\t{text}\n" for text, label in tiny.ENGLISH)
    (tmp_path / "en.train").write_text(lines)
    (tmp_path / "de.txt").write_text("\n".join(tiny.GERMAN))
    (tmp_path / "fr.txt").write_text("\n".join(tiny.FRENCH))
    columns = [
        "".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True))
        for words, tags in tiny.SENTENCES
    ]
    (tmp_path / "en.conll").write_text("\n".join(columns))
    return tmp_path


def train(model: Path, corpus: Path, *more: str) -> list[str]:
    return [
        "train",
        "--model",
        str(model),
        "--unlabeled",
        f"de={corpus / 'de.txt'}",
        "--unlabeled",
        f"fr={corpus / 'fr.txt'}",
        "--output",
        str(corpus / "run"),
        "--quiet",
        *SMALL,
        *more,
    ]


def test_train_then_evaluate(model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(corpus / "en.train")
    options = ["--train", file, "--dev", file, "--test", f"en={file}", "--config.steps", "4"]
    assert main(train(model, corpus, *options, "--config.eval_every", "2")) == 0
    printed = capsys.readouterr().out
    assert "accuracy, step" in printed and "step 4 (last)" in printed
    run = corpus / "run"
    assert sorted(p.name for p in run.iterdir()) == [
        "best",
        "checkpoint.safetensors",
        "curves.png",
        "last",
        "metrics.jsonl",
    ]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert main(["evaluate", "--model", str(run / "last"), "--test", f"en={file}"]) == 0
    last = f"{records[-1]['test']['en']['accuracy']:.4f}"
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["accuracy"] and row.split() == ["en", last]
    # A finished run resumes to nothing more, a longer one goes on.
    assert main(train(model, corpus, *options, "--resume")) == 0
    assert main(train(model, corpus, *options[:-1], "6", "--resume")) == 0
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 6


def test_train_ner_without_adversary(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(corpus / "en.conll")
    options = ["--task", "ner", "--train", file, "--test", f"en={file}", "--config.steps", "2"]
    assert main(train(model, corpus, *options, "--config.adversarial", "false")) == 0
    assert "f1, step 2" in capsys.readouterr().out
    card = json.loads((corpus / "run" / "last" / "fastadv.json").read_text())
    assert card["labels"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert main(["evaluate", "--model", str(corpus / "run/last"), "--test", f"en={file}"]) == 0
    assert "precision" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train", "nowhere"], "nowhere: found no file"),
        (["--train", "de.txt"], "de.txt:1: found 'der regen"),
        (["--train", "en.train", "--test", "en.train"], "expected NAME=FILE"),
        (["--train", "en.train", "--unlabeled", "de=fr.txt"], "names 'de' twice"),
        (["--train", "en.train", "--config.backend", "cuda"], "cuda"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    options: list[str],
    message: str,
    model: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(corpus)
    assert main(train(model, corpus, *options)) == 1
    errors = capsys.readouterr().err
    assert message in errors and errors.startswith("fastadv train: ")
    assert len(errors.splitlines()) == 1
    assert not (corpus / "run").exists()


def test_misuse_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["train"], ["train", "--config.steps", "many"], ["fly"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_help_cites_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    assert "(paper, 3.2, 3.3)" in " ".join(capsys.readouterr().out.split())


def test_demo_reports_both_runs(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, languages in (("classification", "en de es fr ja"), ("ner", "en de es")):
        output = str(tmp_path / task)
        options = ["--model", str(model), "--task", task, "--steps", "2", "--output", output]
        assert main(["demo", *options, "--batch_size", "2"]) == 0
        printed = capsys.readouterr().out
        assert (
            languages.split()
            == printed[printed.index("step  ") :].split()[1:][: len(languages.split())]
        )
        for row in ("baseline", "adversarial"):
            assert f"\n{row} " in printed
        assert ("Median cosine" in printed) == (task == "classification")
        assert (tmp_path / task / "curves.png").stat().st_size > 10_000


def test_env_names_every_operation() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "fastadv", "env"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    ).stdout
    for name in ("torch", "transformers", "masked_mean_pool", "linear_bce", "native", "triton"):
        assert name in found
