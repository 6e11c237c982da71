"""`fastadv demo` and `fastadv env`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import contents

from fastadv import backends
from fastadv.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def demo(model: Path, output: Path, *more: str) -> list[str]:
    fixed = ["--model", str(model), "--output", str(output), "--steps", "2", "--batch_size", "2"]
    return ["demo", *fixed, *more]


@pytest.mark.parametrize(
    ("task", "languages"), [("classification", "en de es fr ja"), ("ner", "en de es")]
)
def test_reports_both_runs(
    task: str, languages: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(demo(model, tmp_path, "--task", task)) == 0
    printed = capsys.readouterr().out
    header = next(line for line in printed.splitlines() if line.split()[:1] == ["step"])
    assert header.split()[1:] == languages.split()
    for row in ("baseline", "adversarial"):
        assert f"\n{row} " in printed
    # Of named entities the commonest class scores nothing.
    assert ("\nalways " in printed) == (task == "classification")
    assert ("Median cosine" in printed) == (task == "classification")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_overwrites_only_when_told_and_only_its_own(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = demo(model, tmp_path, "--quiet", "--task", "ner", "--steps", "1")
    assert main(begun) == 0
    assert capsys.readouterr().err == ""
    before = contents(tmp_path)
    assert main(begun) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert contents(tmp_path) == before
    # Both forms: the flag, and the value that scripts may give it.
    assert main([*begun, "--overwrite"]) == 0
    assert main([*begun, "--overwrite", "true"]) == 0
    assert main([*begun, "--overwrite", "false"]) == 2
    (tmp_path / "baseline" / "metrics.jsonl").unlink()
    before = contents(tmp_path)
    assert main([*begun, "--overwrite"]) == 2
    assert contents(tmp_path) == before


def test_env_names_every_operation() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "fastadv", "env"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    ).stdout
    for name in ("torch", "transformers", *backends.OPERATIONS, "native", "triton"):
        assert name in found


def test_env_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["operations"]) == set(backends.OPERATIONS)
