"""What gpu_check.py knows about the machine, and results made of what its parts leave behind."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]


def find_gpu() -> dict[str, str] | None:
    """Name, compute capability, driver and memory of the first NVIDIA GPU; None without one."""
    fields = ("name", "compute_cap", "driver_version", "memory.total")
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    printed = _output(query)
    if printed is None:
        return None
    values = [value.strip() for value in printed.splitlines()[0].split(",")]
    if len(values) != len(fields):
        return None
    return dict(zip(("name", "capability", "driver", "memory"), values, strict=True))


def versions() -> dict[str, str | None]:
    """The versions of Python and of the compared packages; None where a package is missing."""
    code = (
        "import importlib.metadata as m, json, platform\n"
        "found = {'python': platform.python_version()}\n"
        "for name in ('torch', 'triton', 'transformers', 'numpy', 'pytest'):\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: found[name] = None\n"
        "try:\n"
        "    import torch\n"
        "    found |= {'torch': torch.__version__, 'cuda': torch.version.cuda}\n"
        "except ImportError: pass\n"
        "print(json.dumps(found))"
    )
    printed = _output([sys.executable, "-c", code])
    found: dict[str, str | None] = json.loads(printed.splitlines()[-1]) if printed else {}
    compiler = _output(["nvcc", "--version"])
    found["nvcc"] = compiler.splitlines()[-1] if compiler else None
    return found


def commit() -> str | None:
    """The commit checked out, with "+" if files differ from it; None outside a repository."""
    # Without optional locks `status` only reads: a commit may be in progress.
    git = ["git", "--no-optional-locks"]
    head = _output([*git, "rev-parse", "HEAD"])
    if head is None:
        return None
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    return head.strip() + ("+" if changed else "")


def slug(name: str) -> str:
    """A GPU's name as a file name: "NVIDIA H100 80GB HBM3" becomes "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "gpu"


def _output(command: Sequence[str]) -> str | None:
    """What a short command prints; None if it fails, is missing or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.stdout.strip() else None


def parse_text(path: Path, output: str) -> dict[str, Any]:
    """What the part printed, line by line."""
    return {"lines": output.splitlines()}


def parse_junit(path: Path, output: str) -> dict[str, Any]:
    """Counts of tests, names of those that failed, and why others were skipped.

    Raises:
        ValueError: There is no report, or no test ran.
    """
    if not path.is_file():
        raise ValueError("found no junit report, expected one")
    failed: list[str] = []
    skipped: dict[str, int] = {}
    count = 0
    for case in ElementTree.parse(path).iter("testcase"):
        count += 1
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif (skip := case.find("skipped")) is not None:
            reason = skip.get("message") or "no reason given"
            skipped[reason] = skipped.get(reason, 0) + 1
    passed = count - len(failed) - sum(skipped.values())
    if not passed and not failed:
        raise ValueError(f"found {count} tests of which none ran, expected some that do")
    return {"passed": passed, "failed": failed, "skipped": skipped}


def parse_benchmarks(path: Path, output: str) -> dict[str, Any]:
    """Median seconds and what else each benchmark noted, by the benchmark's name.

    Raises:
        ValueError: There is no measurement, or nothing to measure with.
    """
    if re.search("unrecognized arguments:.*--benchmark", output):
        raise ValueError("found no pytest-benchmark, expected it beside pytest")
    if not path.is_file():
        raise ValueError("found no benchmark report, expected one")
    found = {
        row["fullname"]: {"median": row["stats"]["median"], **row["extra_info"]}
        for row in json.loads(path.read_text())["benchmarks"]
    }
    if not found:
        raise ValueError("found no measurement, expected some")
    return {"measurements": found}


def parse_sanitizer(path: Path, output: str) -> dict[str, Any]:
    """What compute-sanitizer counted: errors, or hazards.

    Raises:
        ValueError: No test passed, there is no such count, or it is not zero.
    """
    if not re.search(r"\d+ passed", output):
        raise ValueError("found no test that passed under compute-sanitizer, expected some")
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", output)
    if not counts:
        raise ValueError("found no summary of compute-sanitizer, expected one")
    errors = sum(map(int, counts))
    if errors:
        raise ValueError(f"found {errors} errors of compute-sanitizer, expected none")
    return {"sanitizer_errors": errors}


def parse_step(path: Path, output: str) -> dict[str, Any]:
    """The result of step_time.py for one shape, unchanged.

    Raises:
        ValueError: There is no result, or it holds no time.
    """
    if not path.is_file():
        raise ValueError("found no report of step_time.py, expected one")
    report: dict[str, Any] = json.loads(path.read_text())
    if "step_seconds" not in report:
        raise ValueError("found no times in the report of step_time.py, expected some")
    return report


def summary_line(name: str, found: Mapping[str, Any]) -> str:
    """Name, status, seconds and the gist of a part."""
    results, notes = found["results"], ""
    if "failed" in results:
        counts = results["passed"], len(results["failed"]), sum(results["skipped"].values())
        notes = "{} tests passed, {} failed, {} skipped".format(*counts)
    elif "measurements" in results:
        notes = f"{len(results['measurements'])} measurements"
    elif "step_seconds" in results:
        own = results["step_seconds"]["library"]
        notes = f"{own:.4g} s a step, {results['floor_fraction']:.1%} of the floor" + "".join(
            f"; {baseline} / library {results[f'ratio_{baseline}']:.2f}"
            for baseline in results["pairs"]
        )
    elif "sanitizer_errors" in results:
        notes = f"{results['sanitizer_errors']} errors"
    notes = notes or found.get("error", "")
    return f"{name:<30}{found['status']:<11}{found['seconds']:>7.1f} s  {notes}".rstrip()
