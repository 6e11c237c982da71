"""What the machine is, its highest measured rates, and how much memory a piece of work takes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch

# Variables of the C library that change how often memory is returned and faulted in again.
ALLOCATOR_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF")


def describe(device: torch.device) -> dict[str, str | int]:
    """What the machine is."""
    facts: dict[str, str | int] = {
        "architecture": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def versions(device: torch.device) -> dict[str, str | None]:
    """The versions of what runs on the machine; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("fastadv", "torch", "transformers", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__
    if device.type == "cuda":
        found["cuda"] = torch.version.cuda
    return found


def allocator_environment() -> dict[str, str]:
    """The variables of `ALLOCATOR_VARIABLES` that are set; they affect all systems alike."""
    return {n: v for n, v in sorted(os.environ.items()) if n.startswith(ALLOCATOR_VARIABLES)}


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    if names.is_file():
        for line in names.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of `work`, including the device's part."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 9) -> float:
    """Floating-point operations per second of a large square matrix product, the best of several.

    The fastest, because a floor is what the machine can do at best. The size fills the device: 8192
    keeps a large GPU busy for a millisecond or more.
    """
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = [seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(repeats)]
    return 2 * size**3 / min(times)


def copy_bandwidth(device: torch.device, repeats: int = 9) -> float:
    """Bytes per second of copies far larger than any cache, the fastest of several.

    Read and written bytes are both counted.
    """
    count = 2**30 if device.type == "cuda" else 2**28
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(repeats)]
    return 2 * count / min(times)


class Memory:
    """Bytes that a piece of work takes.

    On a GPU this is what PyTorch allocated there. On a CPU it is the process's resident memory,
    whose peak Linux lets a process reset: a coarse measure, too coarse for a small model. Elsewhere
    it is unknown.
    """

    # Printed with the numbers.
    METHODS: ClassVar[dict[str, str]] = {
        "cuda": "allocated by PyTorch on the GPU",
        "cpu": "resident set of the process: /proc/self/status VmRSS, VmHWM after a reset",
    }

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.known = device.type == "cuda" or Path("/proc/self/clear_refs").exists()

    def held(self) -> int:
        """Bytes in use, after returning what is free."""
        gc.collect()
        if not self.known:
            return 0
        if self.device.type == "cuda":
            synchronize(self.device)
            return torch.cuda.memory_allocated(self.device)
        # The allocator keeps freed pages, which would then be counted for another system.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")

    def extra(self, work: Callable[[], object]) -> int:
        """The most bytes that `work` had in use at once, beyond what was held before it."""
        before = self.held()
        if not self.known:
            work()
            return 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - before
        Path("/proc/self/clear_refs").write_text("5")
        work()
        return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
