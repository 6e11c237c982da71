"""What the parts of gpu_check.py leave behind, as results and as a line of its summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def parse_text(path: Path, output: str) -> dict[str, Any]:
    """What the part printed, by line."""
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
    """Median seconds, and what else the benchmark noted, by its name.

    Raises:
        ValueError: There is no measurement.
    """
    if not path.is_file():
        raise ValueError("found no benchmark report, expected one (is pytest-benchmark there?)")
    found = {
        row["fullname"]: {"median": row["stats"]["median"], **row["extra_info"]}
        for row in json.loads(path.read_text())["benchmarks"]
    }
    if not found:
        raise ValueError("found no measurement, expected some")
    return {"measurements": found}


def parse_step(path: Path, output: str) -> dict[str, Any]:
    """The result of step_time.py for one shape, as it is.

    Raises:
        ValueError: There is none, or it holds no time.
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
    notes = notes or found.get("error", "")
    return f"{name:<14}{found['status']:<11}{found['seconds']:>7.1f} s  {notes}".rstrip()
