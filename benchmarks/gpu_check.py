"""Builds, tests and measures everything on a machine with an NVIDIA GPU: `make gpu-check`.

Uses the Python that runs it, in which torch for CUDA, transformers, triton, pytest and nvcc are
already installed; downloads nothing. Each part has a time limit, and all parts together have nine
minutes. A part that fails or is missing does not stop the next, and after every part
benchmarks/results/<gpu>.json holds what is known. The most valuable parts come first.

Only the standard library is used here, so that a broken installation can still be reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_results import (
    ROOT,
    commit,
    find_gpu,
    parse_benchmarks,
    parse_junit,
    parse_sanitizer,
    parse_step,
    parse_text,
    slug,
    summary_line,
    versions,
)

RESULTS = ROOT / "benchmarks" / "results"
# How much of a part's output is kept, in characters.
TAIL = 6000
# Seconds for everything, and the fewest seconds left in which a part is started.
BUDGET = 538.0
LEAST = 5.0

# The statuses of an optional part that do not count as a failure.
_NOT_FAILED = ("passed", "missing", "timed out", "skipped")

Parser = Callable[[Path, str], dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """One thing to do.

    Attributes:
        name: The name of the part.
        command: Program and arguments; "{file}" in them is where it writes what `parse` reads.
        limit: Seconds until it is stopped.
        parse: Makes results of that file (which may not exist) and the output; raises ValueError
            where they do not say that all is well.
        stretches: The part may also use the time that the parts before it left over.
        optional: The part fails only if it ran and failed, not if it is missing or ran too long.
        environment: Environment variables for this part.
    """

    name: str
    command: Sequence[str]
    limit: float
    parse: Parser = field(default=lambda path, output: {})
    stretches: bool = False
    optional: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def main(results: Path = RESULTS, make_parts: Callable[[], list[Part]] | None = None) -> int:
    """0 if every part passed, 1 if one failed, 2 where there is no NVIDIA GPU."""
    end = time.monotonic() + BUDGET
    gpu = find_gpu()
    if gpu is None:
        print("There is no NVIDIA GPU here (nvidia-smi finds none), so nothing was checked.")
        return 2
    # Triton must compile for the card, even if this shell sets its interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TORCH_CUDA_ARCH_LIST": gpu["capability"], "PYTHONUNBUFFERED": "1"}
    environment.setdefault("MAX_JOBS", str(os.cpu_count() or 2))
    results.mkdir(parents=True, exist_ok=True)
    target = results / f"{slug(gpu['name'])}.json"
    facts = {"gpu": gpu, "versions": versions(), "commit": commit()}
    passed = run_parts((make_parts or parts)(), facts, target, environment, end)
    print(f"\nResults: {target}")
    return 0 if passed else 1


def parts() -> list[Part]:
    """Everything, the most valuable first; the limits sum to 538 seconds."""
    python = sys.executable
    install = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    install += ["--disable-pip-version-check", "-e", "."]
    report = "from fastadv.environment import report; print(report())"
    # Tests that run on the card have "cuda" in their names; "install" has just done the compile
    # check.
    tests = [*_pytest(), "--continue-on-collection-errors", "-k", "cuda and not test_cuda_compile"]
    return [
        Part("install", install, 100),
        Part("environment", [python, "-c", report], 12, parse_text),
        Part("tests", [*tests, "--junitxml={file}", *gpu_tests()], 105, parse_junit),
        *(_step_part(f"step {shape}", shape, "b0,b2", 65) for shape in ("ner", "news")),
        *_bench_parts(),
        *_sanitizer_parts(),
        # Compiling takes minutes, so these come last: a stop loses nothing else, and the second may
        # find what the first has compiled.
        *(_step_part(f"step {shape} b1", shape, "b1", 26) for shape in ("ner", "news")),
    ]


def gpu_tests() -> list[str]:
    """The operations' test files and all others that name "cuda", relative to the repository."""
    # The operations' tests get their devices from a shared module.
    paths = [
        p
        for p in ROOT.glob("tests/**/test_*.py")
        if p.parent.name == "ops" or "cuda" in p.read_text()
    ]
    return sorted(str(p.relative_to(ROOT)) for p in paths)


def _pytest() -> list[str]:
    # Plugins may be missing: without them their settings in pyproject.toml only cause warnings, and
    # the part's limit replaces the limit of each test.
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]


def _step_part(name: str, shape: str, baselines: str, limit: float) -> Part:
    command = [sys.executable, "benchmarks/step_time.py", "--json", "{file}", "--device", "cuda"]
    command += ["--shape", shape, "--baselines", baselines]
    return Part(name, command, limit, parse_step, stretches=True)


def _bench_parts() -> list[Part]:
    """One file per part: pytest-benchmark writes its results only at the end."""
    paths = sorted(ROOT.glob("benchmarks/ops/bench_*.py"))
    paths = [p for p in paths if p.stem != "bench_common"]
    command = [*_pytest(), "-k", "cuda", "--benchmark-only", "--benchmark-json={file}"]
    limit = 99 / len(paths)
    return [
        Part(p.stem, [*command, str(p.relative_to(ROOT))], limit, parse_benchmarks, stretches=True)
        for p in paths
    ]


def _sanitizer_parts() -> list[Part]:
    """The native kernels on inputs small enough to check every access."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    files = [name for name in gpu_tests() if "/ops/" in name]
    files = [name for name in files if "def test_by_hand" in (ROOT / name).read_text()]
    tests = [*_pytest(), "-k", "cuda and test_by_hand and not triton", *files]
    # PyTorch's cache hands out parts of larger allocations, whose bounds no checker knows.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Part(
            tool,
            [program, "--tool", tool, "--error-exitcode", "9", *tests],
            20,
            parse_sanitizer,
            stretches=True,
            optional=True,
            environment=environment,
        )
        for tool in ("memcheck", "racecheck")
    ]


def run_parts(
    todo: Sequence[Part],
    facts: Mapping[str, Any],
    target: Path,
    environment: Mapping[str, str],
    end: float,
) -> bool:
    """Runs every part until `end` (of time.monotonic), writes `target` after each, prints a table.

    Returns whether all parts passed; an optional part counts only if it failed.
    """
    report: dict[str, Any] = {**facts, "parts": {}}
    start, promised, passed = time.monotonic(), 0.0, True
    for part in todo:
        print(f"\n== {part.name}", flush=True)
        promised += part.limit
        limit = max(part.limit, start + promised - time.monotonic() if part.stretches else 0.0)
        found = run_part(part, environment, min(limit, end - time.monotonic()))
        report["parts"][part.name] = found
        _write(target, report)
        passed &= found["status"] in (("passed",) if not part.optional else _NOT_FAILED)
        if found["status"] != "passed":
            print(found["tail"])
        print(summary_line(part.name, found), flush=True)
    print("\nsummary")
    for name, found in report["parts"].items():
        print(summary_line(name, found))
    return passed


def run_part(part: Part, environment: Mapping[str, str], limit: float) -> dict[str, Any]:
    """Status ("passed", "failed", "timed out", "missing", or "skipped" where no time is left for
    it), seconds, results and the end of the output.
    """
    start = time.monotonic()
    if limit < min(LEAST, part.limit):
        reason = "no time left"
        return {"status": "skipped", "error": reason, "results": {}, "seconds": 0.0, "tail": ""}
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "results", Path(folder) / "output"
        command = [word.replace("{file}", str(file)) for word in part.command]
        status, code = _run(command, log, limit, {**environment, **part.environment})
        output = log.read_text(errors="replace")
        found: dict[str, Any] = {"status": status, "exit": code}
        try:
            # For a failed part too: it is worth knowing how many tests passed.
            found["results"] = part.parse(file, output)
        except (ValueError, KeyError, OSError, SyntaxError) as error:
            # ElementTree raises SyntaxError for a truncated report.
            found["results"], found["error"] = {}, str(error)
            found["status"] = "failed" if status == "passed" else status
        found["seconds"] = round(time.monotonic() - start, 1)
        # The results of a part that passed say what matters.
        found["tail"] = "" if found["status"] == "passed" else output[-TAIL:]
    return found


def _run(
    command: Sequence[str], log: Path, limit: float, environment: Mapping[str, str]
) -> tuple[str, int | None]:
    with log.open("w") as stream:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            stream.write(f"{command[0]} cannot be run: {error}\n")
            return "missing", None
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _end(process)
            return "timed out", None
        except BaseException:
            _end(process)
            raise
    return ("passed" if code == 0 else "failed"), code


def _end(process: subprocess.Popen[bytes]) -> None:
    # Ends the whole session: compilers and workers would otherwise keep using the machine.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _write(target: Path, report: Mapping[str, Any]) -> None:
    # If this is stopped half-way, the last complete file stays.
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(target)


if __name__ == "__main__":
    sys.exit(main())
