"""Small scripts around class shares, on made-up files."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "class_shares"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_equal_classes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    lines = [f"{'A' if n % 3 else 'B'}\ttext {n}" for n in range(900)]
    for name, count in (("en.train", 900), ("en.dev", 30), ("de.train", 90)):
        (source / name).write_text("\n".join(lines[:count]) + "\n")
    (source / "de.test.ids").write_text("not a corpus\n")
    printed = run("equal_classes.py", source, target)
    assert printed.splitlines() == ["de.train 60", "en.dev 20", "en.train 500"]
    for name, each in (("en.train", 250), ("en.dev", 10), ("de.train", 30)):
        chosen = (target / name).read_text().splitlines()
        assert Counter(line[0] for line in chosen) == {"A": each, "B": each}
        assert len({*chosen}) == len(chosen) and {*chosen} <= {*lines}
        assert chosen != sorted(chosen)
    before = (target / "en.train").read_text()
    run("equal_classes.py", source, target)
    assert (target / "en.train").read_text() == before


def test_entities(tmp_path: Path) -> None:
    (tmp_path / "en").write_text("Anna B-PER\nleft O\nOslo B-LOC\n\nrain O\n\n")
    (tmp_path / "de").write_text("Anna B-PER\nging O\n\nBerta B-PER\nX B-OTH\n\n")
    files = [f"{name}={tmp_path / name}" for name in ("en", "de")]
    rows = [line.split() for line in run("entities.py", *files, "--drop", "OTH").splitlines()]
    assert rows[0][:2] == ["LOC", "PER"]
    assert rows[1] == ["en", "0.50", "0.50", "0.500", "0.50", "0.00", "0.00"]
    # Types move by half; of the sets of types, no sentence of one has one of the other.
    assert rows[2] == ["de", "0.00", "1.00", "0.500", "0.00", "0.50", "1.00"]
