"""The GPU check's own logic, with parts that stand in for real ones."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
GPU = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "driver": "580.1", "memory": "80 GB"}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("gpu_check")
    monkeypatch.setattr(module, "find_gpu", lambda: GPU)
    monkeypatch.setattr(module, "versions", lambda: {"torch": "2.11.0+cu130"})
    monkeypatch.setattr(module, "commit", lambda: "0123abcd")
    return module


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def run(check: ModuleType, folder: Path, *parts: Any) -> tuple[int, dict[str, Any]]:
    code = check.main(folder, lambda: list(parts))
    return code, json.loads((folder / "nvidia-h100-80gb-hbm3.json").read_text())


def test_goes_on_past_parts_that_fail_hang_or_are_missing(
    check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alive = tmp_path / "alive"
    # The child of the part that hangs must be ended with it, or it writes the file.
    child = f"import time; time.sleep(2); open({str(alive)!r}, 'w')"
    hang = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    code, report = run(
        check,
        tmp_path / "results",
        check.Part("good", python("print('fine')"), 30, check.parse_text),
        check.Part("bad", python("print('why'); raise SystemExit(3)"), 30),
        check.Part("slow", python(hang), 0.5),
        check.Part("absent", ["no-such-program-here"], 30),
        check.Part("last", python("pass"), 30),
    )
    assert code == 1
    assert time.monotonic() - start < 20
    parts = report["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "good": "passed",
        "bad": "failed",
        "slow": "timed out",
        "absent": "missing",
        "last": "passed",
    }
    assert parts["good"]["results"] == {"lines": ["fine"]}
    assert parts["bad"]["exit"] == 3 and "why" in parts["bad"]["tail"]
    assert "no-such-program-here cannot be run" in parts["absent"]["tail"]
    assert report["gpu"] == GPU and report["commit"] == "0123abcd"
    assert report["versions"] == {"torch": "2.11.0+cu130"}
    table = capsys.readouterr().out.partition("summary\n")[2].splitlines()
    assert [line.split()[0] for line in table[:5]] == list(parts)
    time.sleep(max(0.0, 4 - (time.monotonic() - start)))
    assert not alive.exists()


def test_is_content_where_every_part_passes(check: ModuleType, tmp_path: Path) -> None:
    code, report = run(check, tmp_path, check.Part("only", python("pass"), 30))
    assert code == 0 and report["parts"]["only"]["tail"] == ""


def test_writes_after_every_part(check: ModuleType, tmp_path: Path) -> None:
    # The second part finds the first one's results in the file, and not its own.
    target = tmp_path / "nvidia-h100-80gb-hbm3.json"
    reads = f"import json; print(list(json.load(open({str(target)!r}))['parts']))"
    code, report = run(
        check,
        tmp_path,
        check.Part("first", python("pass"), 30),
        check.Part("second", python(reads), 30, check.parse_text),
    )
    assert code == 0
    assert report["parts"]["second"]["results"] == {"lines": ["['first']"]}


def test_triton_compiles_for_the_card_that_is_there(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code = (
        "import os; print(os.environ.get('TRITON_INTERPRET'), os.environ['TORCH_CUDA_ARCH_LIST'])"
    )
    _, report = run(check, tmp_path, check.Part("env", python(code), 30, check.parse_text))
    assert report["parts"]["env"]["results"] == {"lines": ["None 9.0"]}


def test_counts_tests(check: ModuleType, tmp_path: Path) -> None:
    suite = tmp_path / "test_suite.py"
    suite.write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert 0\n"
        "def test_c(): pytest.skip('no time')\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError\n"
        "def test_d(broken): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml={file}"]
    part = check.Part("tests", [*command, str(suite)], 60, check.parse_junit)
    code, report = run(check, tmp_path / "results", part)
    found = report["parts"]["tests"]["results"]
    assert code == 1 and found["passed"] == 1 and found["skipped"] == {"no time": 1}
    assert [name.split("::")[1] for name in found["failed"]] == ["test_b", "test_d"]


@pytest.mark.parametrize("parser", ["parse_junit", "parse_benchmarks", "parse_step"])
def test_a_part_that_left_no_report_failed(check: ModuleType, tmp_path: Path, parser: str) -> None:
    part = check.Part("silent", python("pass"), 30, getattr(check, parser))
    code, report = run(check, tmp_path, part)
    assert code == 1 and report["parts"]["silent"]["status"] == "failed"
    assert report["parts"]["silent"]["error"].startswith("found no ")


def test_a_report_cut_off_is_no_report(check: ModuleType, tmp_path: Path) -> None:
    for text, parser in (("<testsuites><testcase", "parse_junit"), ('{"ben', "parse_benchmarks")):
        write = python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", "{file}", text)
        part = check.Part("cut", write, 30, getattr(check, parser))
        code, report = run(check, tmp_path, part)
        assert code == 1 and report["parts"]["cut"]["status"] == "failed"


def test_takes_medians_from_the_benchmarks(check: ModuleType, tmp_path: Path) -> None:
    row = {"fullname": "bench_x.py::test_y", "stats": {"median": 0.5}, "extra_info": {"GB/s": 7}}
    path = tmp_path / "report"
    path.write_text(json.dumps({"benchmarks": [row]}))
    found = check.parse_benchmarks(path, "")
    assert found == {"measurements": {"bench_x.py::test_y": {"median": 0.5, "GB/s": 7}}}
    path.write_text(json.dumps({"benchmarks": []}))
    with pytest.raises(ValueError, match="found no measurement"):
        check.parse_benchmarks(path, "")


def test_summarises_the_step(check: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "report"
    found = {
        "shape": "ner",
        "step_seconds": {"library": 0.5, "b0": 0.7},
        "floor_fraction": 0.25,
        "ratio_b0": 1.4,
        "ratio_b1": None,
        "pairs": {"b0": [1.4]},
    }
    path.write_text(json.dumps(found))
    part = {"status": "passed", "seconds": 3.0, "results": check.parse_step(path, "")}
    line = check.summary_line("step ner", part)
    assert line.endswith("0.5 s a step, 25.0% of the floor; b0 / library 1.40")
    path.write_text(json.dumps({"shape": "ner", "checks": {}}))
    with pytest.raises(ValueError, match="found no times"):
        check.parse_step(path, "")


def test_without_a_gpu_it_says_so_and_writes_nothing(
    check: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(check, "find_gpu", lambda: None)
    assert check.main(tmp_path / "results", list) == 2
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_asks_the_driver_what_the_gpu_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("gpu_check")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.find_gpu() is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0, 580.1, 81559 MiB'\n")
    program.chmod(0o755)
    assert module.find_gpu() == GPU | {"memory": "81559 MiB"}
    program.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert module.find_gpu() is None


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 4090 (Ti)", "nvidia-geforce-rtx-4090-ti"),
        ("../", "gpu"),
    ],
)
def test_slug(check: ModuleType, name: str, file: str) -> None:
    assert check.slug(name) == file


def test_limits_leave_room_in_nine_minutes_and_files_exist(check: ModuleType) -> None:
    parts = check.parts()
    assert sum(part.limit for part in parts) < 540
    files = [word for part in parts for word in part.command if word.endswith(".py")]
    assert files and all((check.ROOT / word).is_file() for word in files)
