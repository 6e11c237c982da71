"""`fastadv predict`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from cli_helpers import command, contents, environment

from fastadv import AdversarialFinetuner
from fastadv.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def test_documents(classifier: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", str(classifier), "--input", "de.txt"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = AdversarialFinetuner.from_pretrained(classifier).predict(tiny.GERMAN)
    assert [line["text"] for line in lines] == tiny.GERMAN
    for line, prediction in zip(lines, expected, strict=True):
        assert list(line) == ["text", "label", "probabilities"]
        assert line["label"] == prediction.label
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)
        # Equal up to how texts are batched together, in float32.
        assert line["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)


def test_labels_in_the_input_are_dropped(
    classifier: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--model", str(classifier), "--input", "en.train"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == [text for text, _ in tiny.ENGLISH]


def test_entities(tagger: Path, corpus: Path) -> None:
    options = ["--input", "en.conll", "--output", "out.jsonl", "--chunk_size", "3"]
    assert main(["predict", "--model", str(tagger), *options]) == 0
    lines = [json.loads(line) for line in (corpus / "out.jsonl").read_text().splitlines()]
    assert [tuple(line["words"]) for line in lines] == [words for words, _ in tiny.SENTENCES]
    for line in lines:
        assert len(line["tags"]) == len(line["words"])
        for entity in line["entities"]:
            assert line["text"][entity["start_char"] : entity["end_char"]] == entity["text"]
            assert " ".join(line["words"][entity["start"] : entity["end"]]) == entity["text"]


def test_a_file_is_written_whole_or_not_at_all(
    classifier: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "bad.txt").write_bytes(b"one text\nanother\nbroken \xff\n")
    (corpus / "out.jsonl").write_text("what was here before\n")
    before = contents(corpus)
    options = ["--input", "bad.txt", "--output", "out.jsonl", "--chunk_size", "1"]
    assert main(["predict", "--model", str(classifier), *options]) == 2
    assert "bad.txt:3" in capsys.readouterr().err
    assert contents(corpus) == before
    assert main(["predict", "--model", str(classifier), *options[2:], "--input", "de.txt"]) == 0
    assert len((corpus / "out.jsonl").read_text().splitlines()) == len(tiny.GERMAN)
    assert {*contents(corpus)} == {*before}


def test_streams_from_pipe_to_pipe(classifier: Path) -> None:
    """Results come while the input is still open."""
    options = ["--model", str(classifier), "--format", "lines", "--chunk_size", "2"]
    with subprocess.Popen(
        command("predict", *options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        for begin in (0, 2):
            process.stdin.write("\n".join(tiny.GERMAN[begin : begin + 2]) + "\n")
            process.stdin.flush()
            for text in tiny.GERMAN[begin : begin + 2]:
                assert json.loads(process.stdout.readline())["text"] == text
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""


def test_a_closed_pipe_ends_quietly(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("\n".join(tiny.GERMAN * 400))
    options = ["--model", str(classifier), "--input", str(tmp_path / "many.txt")]
    with subprocess.Popen(
        command("predict", *options, "--chunk_size", "50"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        # What a shell reports of `cat` in the same place.
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


def test_memory_does_not_grow_with_the_input(classifier: Path, tmp_path: Path) -> None:
    def peak(texts: int) -> int:
        """Bytes resident at most, of a process that labels so many texts of 4 kB."""
        path = tmp_path / "texts.txt"
        # Long in bytes, short in word pieces: the word is unknown.
        path.write_text("".join(f"{k} fog {'x' * 4000}\n" for k in range(texts)))
        options = ["--model", str(classifier), "--input", str(path), "--chunk_size", "128"]
        # Not getrusage: its peak begins with that of the process which started this one.
        script = (
            "import re, sys; from fastadv.cli import main; status = main(sys.argv[1:]);"
            "status_file = open('/proc/self/status').read();"
            "print(re.search(r'VmHWM:\\s*(\\d+) kB', status_file)[1], file=sys.stderr);"
            "sys.exit(status)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "predict", *options, "--output", os.devnull],
            capture_output=True,
            env=environment(),
            check=True,
            timeout=300,
        )
        return int(done.stderr) * 1024

    few, many = peak(1500), peak(10_000)
    # The 8,500 texts more are 34 MB as text alone, and as much again as JSON; the allocator's
    # own variation is a few MB.
    assert many - few < 17e6
