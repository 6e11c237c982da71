"""`fastadv pretrain` from text files to a model."""

from __future__ import annotations

import json
import lzma
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_helpers import call, command, contents, environment
from transformers import AutoModelForMaskedLM

SENTENCE = {
    "en": "rain falls on the harbour while a slow song ends and the wind turns",
    "de": "regen fällt auf den hafen und ein langsames lied endet wenn der wind dreht",
}
SMALL = [
    *("--config.vocabulary_size", "120"),
    *("--config.hidden_size", "32"),
    *("--config.num_layers", "1"),
    *("--config.num_heads", "2"),
    *("--config.intermediate_size", "48"),
    *("--config.max_positions", "40"),
    *("--config.max_length", "24"),
    *("--config.short_length", "10"),
    *("--config.tokens_per_batch", "64"),
    *("--config.adversary_tokens", "64"),
    *("--config.precision", "fp32"),
    *("--config.log_every", "1"),
    *("--config.checkpoint_every", "1"),
]
TEXTS = ["--text", "en=en.txt", "--text", "de=de.txt.xz"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for language, sentence in SENTENCE.items():
        words = sentence.split()
        lines = [" ".join(words[i % 5 :] + words[: i % 7]) for i in range(60)]
        Path(f"{language}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    Path("de.txt.xz").write_bytes(lzma.compress(Path("de.txt").read_bytes()))
    return tmp_path


def pretrain(*more: str) -> subprocess.CompletedProcess[str]:
    return call("pretrain", *TEXTS, "--output", "run", *SMALL, *more)


def test_from_text_to_a_model_that_finetunes() -> None:
    done = pretrain("--config.steps", "4", "--adversarial")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "model run/last\n"
    assert "training the vocabulary" in done.stderr and "word pieces" in done.stderr
    AutoModelForMaskedLM.from_pretrained("run/last")
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert "loss_generator" in records[0]
    assert json.loads(Path("run/pretrain.json").read_text())["adversary"] == "source"
    Path("en.train").write_text("A\train falls on the harbour\nB\ta slow song ends\n" * 4)
    tuned = call(
        "train", "--model", "run/last", "--train", "en.train", "--output", "tuned",
        "--config.adversarial", "false", "--config.steps", "1", "--config.max_length", "16",
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr


def test_in_pieces_and_prepared_first() -> None:
    first = pretrain("--config.steps", "3", "--prepare_only")
    assert first.returncode == 0 and first.stdout == "prepared run\n"
    assert {p.name for p in Path("run").iterdir()} == {
        "corpus.npz", "tokenizer", "pretrain.json", "run.yaml",
    }  # fmt: skip
    second = pretrain("--config.steps", "3", "--seconds", "0")
    assert second.returncode == 0 and "stopped after step 1 of 3" in second.stdout
    # What was prepared is not made again.
    assert "vocabulary" not in second.stderr
    third = pretrain("--config.steps", "3", "--resume")
    assert third.returncode == 0 and third.stdout == "model run/last\n"
    # The options that were kept start another run.
    again = call("pretrain", "--options", "run/run.yaml", "--output", "other", "--quiet")
    assert again.returncode == 0 and again.stderr == ""
    a, b = (Path(n, "last/model.safetensors").read_bytes() for n in ("run", "other"))
    assert a == b


def test_a_signal_keeps_a_checkpoint() -> None:
    arguments = ["pretrain", *TEXTS, "--output", "run", *SMALL, "--config.steps", "100000"]
    process = subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, text=True, env=environment()
    )
    while not Path("run/checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "resume with: fastadv pretrain" in said and "--resume" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "en"], "--text is 'en', expected LANG=FILE"),
        ([], "found no --text, expected LANG=FILE at least once"),
        (["--text", "en=nothing.txt"], "nothing.txt: No such file or directory"),
        (["--text", "en=bad.txt"], "bad.txt:2: found byte 0xfc, expected UTF-8"),
        (["--text", "en=empty.txt"], "empty.txt: found no text of en, expected some"),
        (["--text", "en=en.txt", "--config.vocabulary_size", "10"], "vocabulary_size"),
        (["--text", "en=en.txt", "--config.mask_rate", "2"], "mask_rate is 2"),
        (["--text", "en=en.txt", "--adversarial"], "found one language with an adversary"),
        (["--text", "en=en.txt", "--tokenizer", "nowhere"], "nowhere"),
        (["--text", "en=cut.txt.xz"], "cut.txt.xz:"),
    ],
)
def test_mistakes(arguments: list[str], said: str, folder: Path) -> None:
    Path("bad.txt").write_bytes(b"fine\nr\xfcben\n")
    Path("empty.txt").write_text("\n\n")
    Path("cut.txt.xz").write_bytes(Path("de.txt.xz").read_bytes()[:-30])
    done = call("pretrain", "--output", "out", "--quiet", *SMALL, *arguments)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not Path("out/run.yaml").exists()


def test_another_run_is_not_written_over() -> None:
    assert pretrain("--config.steps", "1").returncode == 0
    before = contents(Path("run"))
    done = pretrain("--config.steps", "2")
    assert done.returncode == 2 and "of another run, expected a new folder" in done.stderr
    other = pretrain("--config.steps", "2", "--resume", "--config.lr", "0.5")
    assert other.returncode == 2 and "lr was 0.001 in that run" in other.stderr
    assert contents(Path("run")) == before
