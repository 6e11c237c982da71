"""Calls of the command, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastadv.cli import main

# What every run here has in common: small, and with something said at each step.
SMALL = [
    *("--config.max_length", "32"),
    *("--config.batch_size", "3"),
    *("--config.log_every", "1"),
    *("--config.precision", "fp32"),
]
LANGUAGES = ["--unlabeled", "de=de.txt", "--unlabeled", "fr=fr.txt"]


def train(model: Path, *more: str, file: str = "en.train", output: str = "run") -> list[str]:
    """A `train` command; `more` may override any of it."""
    fixed = ["--model", str(model), "--train", file, "--output", output]
    return ["train", *fixed, *LANGUAGES, *SMALL, *more]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastadv", *arguments]


def environment(**more: str) -> dict[str, str]:
    """One thread, nothing asked of the hub, and output buffered as it usually is."""
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": ""}
    return {**os.environ, **fixed, **more}


def call(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        command(*arguments), text=True, env=environment(), timeout=180, check=False, **pipes
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], *wanted: str, keeps: Path
) -> None:
    """The command refuses, says `wanted` in one line, and leaves every file as it was."""
    before = contents(keeps)
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith(f"fastadv {arguments[0]}: ")
    assert "expected" in lines[0] or "cannot" in lines[0]
    for words in wanted:
        assert words in lines[0]
    assert contents(keeps) == before
