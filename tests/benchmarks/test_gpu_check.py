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

GPU = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "driver": "580.1", "memory": "80 GB"}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
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
    found |= {"ratio_b2": 1.1, "pairs": {"b0": [1.4], "b2": [1.1]}}
    line = check.summary_line("step ner", part | {"results": found})
    assert line.endswith("; b0 / library 1.40; b2 / library 1.10")
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
    assert sum(part.limit for part in parts) < 540 and check.BUDGET < 540
    files = [word for part in parts for word in part.command if word.endswith(".py")]
    assert files and all((check.ROOT / word).is_file() for word in files)


def test_parts_come_by_worth(check: ModuleType) -> None:
    parts = {part.name: part for part in check.parts()}
    names = list(parts)
    assert names[:5] == ["install", "environment", "tests", "step ner", "step news"]
    assert names[-4:] == ["memcheck", "racecheck", "step ner b1", "step news b1"]
    assert names[5:-4] and all(name.startswith("bench_") for name in names[5:-4])
    for shape in ("ner", "news"):
        for name, baselines in ((f"step {shape}", "b0,b2"), (f"step {shape} b1", "b1")):
            command = parts[name].command
            assert command[command.index("--baselines") + 1] == baselines
            assert command[command.index("--shape") + 1] == shape
    assert [part.name for part in parts.values() if part.optional] == ["memcheck", "racecheck"]


def test_finds_every_test_of_a_gpu(check: ModuleType, monkeypatch: Any, tmp_path: Path) -> None:
    found = check.gpu_tests()
    for name in ("benchmarks/test_step_flash", "training/test_equivalence", "ops/test_linear"):
        assert f"tests/{name}.py" in found
    (command,) = (part.command for part in check.parts() if part.name == "tests")
    assert set(found) < set(command) and "--continue-on-collection-errors" in command
    (tmp_path / "tests" / "ops").mkdir(parents=True)
    (tmp_path / "tests" / "ops" / "test_op.py").write_text("from op_checks import DEVICES\n")
    (tmp_path / "tests" / "test_new.py").write_text("def test_on_cuda(): pass\n")
    (tmp_path / "tests" / "test_other.py").write_text("def test_anywhere(): pass\n")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    assert check.gpu_tests() == ["tests/ops/test_op.py", "tests/test_new.py"]


def test_a_file_that_cannot_be_imported_stops_no_other(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_bad.py").write_text("import no_such_package\n")
    (tmp_path / "test_good.py").write_text("def test_on_cuda(): pass\n")
    command = [*check._pytest(), "--continue-on-collection-errors", "--junitxml={file}"]
    part = check.Part("tests", [*command, str(tmp_path)], 60, check.parse_junit)
    code, report = run(check, tmp_path / "results", part)
    found = report["parts"]["tests"]["results"]
    assert code == 1 and found["passed"] == 1 and len(found["failed"]) == 1


def test_the_clock_cuts_limits_and_skips_the_rest(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(check, "BUDGET", 3.0)
    monkeypatch.setattr(check, "LEAST", 0.5)
    code, report = run(
        check,
        tmp_path,
        check.Part("first", python("pass"), 30),
        check.Part("cut", python("import time; time.sleep(60)"), 30),
        check.Part("late", python("pass"), 30),
    )
    parts = report["parts"]
    assert code == 1 and parts["first"]["status"] == "passed"
    assert parts["cut"]["status"] == "timed out" and parts["cut"]["seconds"] < 4
    assert parts["late"]["status"] == "skipped"
    line = capsys.readouterr().out.partition("summary\n")[2].splitlines()[2]
    assert line.split() == ["late", "skipped", "0.0", "s", "no", "time", "left"]


def test_a_part_that_stretches_has_what_others_left(check: ModuleType, tmp_path: Path) -> None:
    sleep = python("import time; time.sleep(1)")
    code, report = run(
        check,
        tmp_path,
        check.Part("quick", python("pass"), 30),
        check.Part("own limit", sleep, 0.3),
        check.Part("stretches", sleep, 0.3, stretches=True),
    )
    found = [part["status"] for part in report["parts"].values()]
    assert code == 1 and found == ["passed", "timed out", "passed"]


def test_a_sanitizer_counts_only_where_it_ran_and_found_something(
    check: ModuleType, tmp_path: Path
) -> None:
    clean = "2 passed\n========= ERROR SUMMARY: 0 errors"
    race = "2 passed\n========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)"
    options = {"parse": check.parse_sanitizer, "optional": True}
    sleep = python("import time; time.sleep(60)")

    def outcome(command: list[str], limit: float = 30) -> tuple[int, str, str]:
        part = check.Part("memcheck", command, limit, **options)
        code, report = run(check, tmp_path, part)
        found = report["parts"]["memcheck"]
        return code, found["status"], check.summary_line("memcheck", found)

    code, status, line = outcome(python(f"print({clean!r})"))
    assert (code, status) == (0, "passed") and line.endswith("0 errors")
    assert outcome(["no-such-sanitizer"])[:2] == (0, "missing")
    assert outcome(sleep, 0.3)[:2] == (0, "timed out")
    code, status, line = outcome(python(f"print({race!r})"))
    assert (code, status) == (1, "failed") and "found 3 errors" in line
    assert outcome(python(f"print({race!r}); raise SystemExit(9)"))[:2] == (1, "failed")
    code, status, line = outcome(python("print('0 errors, all skipped')"))
    assert (code, status) == (1, "failed") and "found no test that passed" in line


def test_variables_of_a_part_reach_it(check: ModuleType, tmp_path: Path) -> None:
    code = "import os; print(os.environ['SOME_SETTING'])"
    own = {"environment": {"SOME_SETTING": "7"}}
    _, report = run(check, tmp_path, check.Part("a", python(code), 30, check.parse_text, **own))
    assert report["parts"]["a"]["results"] == {"lines": ["7"]}


def test_says_that_pytest_benchmark_is_missing(check: ModuleType, tmp_path: Path) -> None:
    command = [*check._pytest(), "-p", "no:benchmark", "--benchmark-only", str(tmp_path)]
    part = check.Part("bench_x", command, 60, check.parse_benchmarks)
    code, report = run(check, tmp_path / "results", part)
    found = report["parts"]["bench_x"]
    assert code == 1 and found["error"].startswith("found no pytest-benchmark")
    assert "found no pytest-benchmark" in check.summary_line("bench_x", found)


def test_names_do_not_run_into_their_status(check: ModuleType) -> None:
    for part in check.parts():
        line = check.summary_line(part.name, {"status": "passed", "seconds": 1.0, "results": {}})
        assert line.startswith(f"{part.name} ")
