"""Bad input: one clear line on standard error, exit status 2, and nothing lost."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import SMALL, call, refused, train

from fastadv.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
BROKEN = b"weather\tfine\nmusic\tM\xfcnchen\n"


# What each command reads, with the file's place in the arguments.
READS = {
    "train --train": "train --model MODEL --unlabeled de=de.txt --train FILE",
    "train --unlabeled": "train --model MODEL --train en.train --unlabeled de=FILE",
    "train --dev": "train --model MODEL --train en.train --unlabeled de=de.txt --dev FILE",
    "train --test": "train --model MODEL --train en.train --unlabeled de=de.txt --test de=FILE",
    "evaluate": "evaluate --model CLASSIFIER --test de=FILE",
    "predict": "predict --model CLASSIFIER --input FILE --output new.jsonl",
    "embed": "embed --model MODEL --input FILE --output new.npy",
    "align": "align --model MODEL --source de.txt --target FILE",
}


def filled(case: str, file: str, model: Path, classifier: Path) -> list[str]:
    places = {"MODEL": str(model), "CLASSIFIER": str(classifier)}
    arguments = [places.get(a, a.replace("FILE", file)) for a in READS[case].split()]
    return [*arguments, "--output", "run", *SMALL] if arguments[0] == "train" else arguments


@pytest.mark.parametrize("case", READS)
@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda path: None, "bad: found no file"),
        (lambda path: path.write_bytes(b""), "bad: found no"),
        (lambda path: path.write_bytes(b"\n \n"), "bad: found no"),
        (lambda path: path.mkdir(), "bad: found a folder"),
        (lambda path: path.write_bytes(BROKEN), "bad:2: found byte 0xfc"),
        (lambda path: path.write_bytes(BROKEN), "--encoding latin-1"),
        (lambda path: path.write_bytes(b"\0\1\2" * 50), "bad:1: found a NUL byte"),
    ],
    ids=["missing", "empty", "blank", "folder", "not UTF-8", "what to do", "binary"],
)
def test_files(
    case: str,
    make: Any,
    wanted: str,
    model: Path,
    classifier: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(corpus / "bad")
    if case == "align" and "found no" in wanted and (corpus / "bad").exists():
        wanted = "de.txt: found 5 lines, expected as many as"
    refused(capsys, filled(case, "bad", model, classifier), wanted, keeps=corpus)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--train", "de.txt"], ["de.txt:1: found 'der regen", "LABEL<TAB>text"]),
        (["--train", "one.train"], ["one.train: found the one label 'music'"]),
        (["--dev", "odd.dev"], ["odd.dev:2: ", "'sport'"]),
        (["--test", "de=odd.dev"], ["odd.dev:2: ", "'sport'"]),
        (["--test", "en.train"], ["--test is 'en.train', expected NAME=FILE"]),
        (["--unlabeled", "de=fr.txt"], ["--unlabeled names 'de' twice"]),
        (["--config.backend", "cuda"], ["cuda"]),
        (["--config.steps", "0"], ["steps is 0"]),
        (["--config.max_length", "100"], ["max_length is 100", "96 positions"]),
        (["--encoding", "it=latin-1"], ["--encoding names 'it'"]),
        (["--encoding", "ebcdic"], ["en.train: found the encoding 'ebcdic'"]),
        (["--format", "train=doc"], ["en.train: found the format 'doc'"]),
        (["--columns", "body"], ["--columns is 'body'"]),
        (["--tracker", "abacus"], ["--tracker is 'abacus'"]),
        (["--task", "ner"], ["en.train:1: "]),
        (["--task", "ner", "--train", "odd.conll"], ["odd.conll:3: "]),
        (["--model", "nowhere/at/all"], ["nowhere/at/all: found no such folder"]),
        (["--model", "de.txt"], ["de.txt: found a file"]),
        (["--output", "de.txt"], ["de.txt: found a file, expected a folder"]),
        (["--output", "de.txt/run"], ["de.txt"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_of_train(
    options: list[str],
    wanted: list[str],
    model: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (corpus / "one.train").write_text("music\ta song\nmusic\ta waltz\n")
    (corpus / "odd.dev").write_text("music\ta song\nsport\ta race\n")
    (corpus / "odd.conll").write_text("Anna B-PER\nin O\nOslo\n. O\n")
    refused(capsys, train(model, *options), *wanted, keeps=corpus)
    assert not (corpus / "run").exists()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"model: [x\n", "o.yaml:2: "),
        (b"model: x\nmodell: y\n", "o.yaml:2: found the option 'modell'"),
        (b"config:\n  steps: 3\n  stepss: 4\n", "o.yaml:3: found the option 'config.stepss'"),
        (b"config: 3\n", "o.yaml:1: found the option 'config'"),
        (b"config:\n  steps: many\n", "--config.steps: found many, expected int"),
        (b"just words\n", "o.yaml: found no mapping"),
        (b"", "o.yaml: found no mapping"),
        (b"model: x\ntrain: M\xfcller\n", "o.yaml:2: found byte 0xfc, expected UTF-8"),
        (None, "o.yaml: found no file of that name, expected a YAML file"),
    ],
)
def test_options_file(
    text: bytes | None,
    wanted: str,
    model: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (corpus / "o.yaml").write_bytes(text)
    refused(capsys, train(model, "--options", "o.yaml"), wanted, keeps=corpus)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "fastadv: found no command, expected one of train, "),
        (["fly"], "fastadv: found 'fly', expected one of train, "),
        (["train"], "fastadv train: found no --model"),
        (["train", "--config.steps", "many"], "--config.steps: found many, expected int"),
        (["train", "--config.lr_task", "fast"], "--config.lr_task: found fast, expected float or"),
        (["predict", "--modle", "x"], "fastadv predict: "),
        (["embed", "--model"], "--model: expected one argument"),
        (["env", "extra"], "extra"),
    ],
)
def test_usage(arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert wanted in printed.err and "--help)" in printed.err


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "embed", "align"])
@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "found no weights"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "weights"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "tokenizer"),
        (lambda folder: plant(folder), "cannot load"),
    ],
    ids=["no weights", "cut short", "no config", "broken config", "tokenizer", "pickle"],
)
def test_model_folders(
    command: str,
    damage: Any,
    wanted: str,
    model: Path,
    classifier: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = classifier if command in ("evaluate", "predict") else model
    shutil.copytree(source, corpus / "damaged")
    damage(corpus / "damaged")
    case = "train --dev" if command == "train" else command
    arguments = filled(case, "en.train", model, classifier)
    arguments[arguments.index("--model") + 1] = "damaged"
    if command == "align":
        arguments[arguments.index("--target") + 1] = "de.txt"
    refused(capsys, arguments, "damaged", wanted, keeps=corpus)
    assert not (corpus / "ran").exists()


class Planted:
    """What a hostile checkpoint holds: code that runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def plant(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Planted()}, folder / "pytorch_model.bin")


def test_the_planted_pickle_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Planted()))
    assert (tmp_path / "ran").exists()


def test_a_run_is_no_model(model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train(model, "--config.steps", "1", "--quiet")) == 0
    for command in ("predict", "embed"):
        arguments = [command, "--model", "run", "--input", "de.txt"]
        refused(capsys, arguments, "run: found a run", "run/last", keeps=corpus)
    arguments = ["predict", "--model", str(model), "--input", "de.txt"]
    refused(capsys, arguments, "fastadv.json", keeps=corpus)


def test_pairs_of_different_numbers(
    model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["align", "--model", str(model), "--source", "de.txt", "--target", "fr.txt"]
    refused(capsys, arguments, "5 lines", "3", keeps=corpus)


@pytest.mark.parametrize("output", ["nowhere/x.jsonl", "."])
def test_outputs_that_cannot_be(
    output: str, classifier: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", "--model", str(classifier), "--input", "de.txt", "--output", output]
    refused(capsys, arguments, output, keeps=corpus)


def test_chunks_of_nothing(
    classifier: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--chunk_size", "--batch_size"):
        arguments = ["predict", "--model", str(classifier), "--input", "de.txt", option, "0"]
        refused(capsys, arguments, "is 0", keeps=corpus)


def test_a_mistake_of_our_own_is_not_hidden(
    model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTADV_TRACEBACK", "1")
    with pytest.raises(ValueError, match="found no file"):
        main(train(model, file="nowhere"))


def test_one_line_through_a_process_too(corpus: Path) -> None:
    done = call("train", "--model", "nowhere/at/all", "--train", "en.train", "--output", "run")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "fastadv train: nowhere/at/all: found no such folder, expected a Hugging Face model\n"
    )
