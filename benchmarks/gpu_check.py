"""Builds, tests and measures everything on a machine with an NVIDIA GPU: `make gpu-check`.

Uses the Python that runs it, with torch for CUDA, transformers, triton, pytest and nvcc already
there; downloads nothing. Each part has a time limit of its own, a part that fails or is missing
does not stop the next, and after every part benchmarks/results/<gpu>.json holds what is known.
Only the standard library is used here, so that a broken installation can still be reported.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
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

from gpu_results import parse_benchmarks, parse_junit, parse_step, parse_text, summary_line

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# What is kept of what a part printed.
TAIL = 6000

Parser = Callable[[Path, str], dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """One thing to do.

    Attributes:
        name: Of the part.
        command: Program and arguments; "{file}" in them is where it writes what `parse` reads.
        limit: Seconds until it is stopped.
        parse: From that file (which may not exist) and the output to results; raises ValueError
            where they do not say that all is well.
    """

    name: str
    command: Sequence[str]
    limit: float
    parse: Parser = field(default=lambda path, output: {})


def main(results: Path = RESULTS, make_parts: Callable[[], list[Part]] | None = None) -> int:
    """0 if every part passed, 1 if one failed, 2 where there is no NVIDIA GPU."""
    gpu = find_gpu()
    if gpu is None:
        print("There is no NVIDIA GPU here (nvidia-smi finds none), so nothing was checked.")
        return 2
    # Triton compiles, and sees the card; whatever this shell says about its interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TORCH_CUDA_ARCH_LIST": gpu["capability"], "PYTHONUNBUFFERED": "1"}
    environment.setdefault("MAX_JOBS", str(os.cpu_count() or 2))
    results.mkdir(parents=True, exist_ok=True)
    target = results / f"{slug(gpu['name'])}.json"
    facts = {"gpu": gpu, "versions": versions(), "commit": commit()}
    passed = run_parts((make_parts or parts)(), facts, target, environment)
    print(f"\nResults: {target}")
    return 0 if passed else 1


def parts() -> list[Part]:
    """Everything, in the order of what depends on what; the limits sum to 531 seconds."""
    python = sys.executable
    # Plugins that may be missing: without them their settings in pyproject.toml are only warned
    # of, and the limit here takes the place of the one for each test.
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    # Compiling B1 takes minutes that are not there: it is for whoever runs step_time.py by itself.
    step = [python, "benchmarks/step_time.py", "--json", "{file}", "--device", "cuda"]
    step += ["--baselines", "b0"]
    install = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    tests = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("tests/ops/test_*.py"))
    others = ("equivalence", "isolation", "packing", "environment")
    tests += [f"tests/test_{name}.py" for name in others]
    benches = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("benchmarks/bench_*.py"))
    # The encoder's is no pytest benchmark: for whoever runs it by itself.
    benches = [name for name in benches if not name.endswith(("_common.py", "_encoder.py"))]
    # What runs on the card has "cuda" in its name; the compile check is what "install" just did.
    on_card = "cuda and not test_cuda_compile"
    report = "from fastadv.environment import report; print(report())"
    return [
        Part("install", [*install, "--disable-pip-version-check", "-e", "."], 100),
        Part("environment", [python, "-c", report], 15, parse_text),
        Part("tests", [*pytest, "-k", on_card, "--junitxml={file}", *tests], 125, parse_junit),
        # A file a part: pytest-benchmark writes its results at the end only.
        *(
            Part(
                Path(bench).stem,
                [*pytest, "-k", "cuda", "--benchmark-only", "--benchmark-json={file}", bench],
                19,
                parse_benchmarks,
            )
            for bench in benches
        ),
        Part("step ner", [*step, "--shape", "ner"], 60, parse_step),
        Part("step news", [*step, "--shape", "news"], 60, parse_step),
    ]


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
    """Of Python and of what is compared; None where a package is missing."""
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
    # Without optional locks `status` only reads: someone may be committing.
    git = ["git", "--no-optional-locks"]
    head = _output([*git, "rev-parse", "HEAD"])
    if head is None:
        return None
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    return head.strip() + ("+" if changed else "")


def slug(name: str) -> str:
    """A GPU's name as a file's: "NVIDIA H100 80GB HBM3" is "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "gpu"


def run_parts(
    todo: Sequence[Part], facts: Mapping[str, Any], target: Path, environment: Mapping[str, str]
) -> bool:
    """Runs every part, writes `target` after each, prints a table; whether all passed."""
    report: dict[str, Any] = {**facts, "parts": {}}
    for part in todo:
        print(f"\n== {part.name}", flush=True)
        found = run_part(part, environment)
        report["parts"][part.name] = found
        _write(target, report)
        if found["status"] != "passed":
            print(found["tail"])
        print(summary_line(part.name, found), flush=True)
    print("\nsummary")
    for name, found in report["parts"].items():
        print(summary_line(name, found))
    return all(found["status"] == "passed" for found in report["parts"].values())


def run_part(part: Part, environment: Mapping[str, str]) -> dict[str, Any]:
    """Status ("passed", "failed", "timed out" or "missing"), seconds, results and output's end."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "results", Path(folder) / "output"
        command = [word.replace("{file}", str(file)) for word in part.command]
        status, code = _run(command, log, part.limit, environment)
        output = log.read_text(errors="replace")
        found: dict[str, Any] = {"status": status, "exit": code}
        try:
            # Also of a part that failed: how many tests did pass is worth knowing.
            found["results"] = part.parse(file, output)
        except (ValueError, KeyError, OSError, SyntaxError) as error:
            # SyntaxError is how ElementTree says that a report was cut off.
            found["results"], found["error"] = {}, str(error)
            found["status"] = "failed" if status == "passed" else status
        found["seconds"] = round(time.monotonic() - start, 1)
        # A part that passed has said what matters in its results.
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
    # The whole session: compilers and workers would go on using the machine.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _write(target: Path, report: Mapping[str, Any]) -> None:
    # Whoever stops this half-way finds the last whole file.
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(target)


def _output(command: Sequence[str]) -> str | None:
    """What a short command prints; None if it fails, is missing, or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.stdout.strip() else None


if __name__ == "__main__":
    sys.exit(main())
