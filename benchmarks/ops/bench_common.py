"""What the benchmarks of the operations share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastadv import backends

# Steps in one graph, and bytes written between two of them: more than any GPU's cache holds.
CALLS, FLUSHED_BYTES = 20, 256 << 20

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def need(op: str, backend: str, device: str) -> None:
    """Skips where a backend cannot run, and Triton's interpreter, whose time means nothing."""
    if backend == "triton" and device == "cpu":
        pytest.skip("triton on a CPU is an interpreter")
    reason = backends.why_not(op, backend, device)
    if reason is not None:
        pytest.skip(reason)


def compiled_or_skip(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under torch.compile, compiled anew so that no size runs code for another."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    torch.compiler.reset()
    return torch.compile(function)


def synchronised(step: Callable[[], None], device: str) -> Callable[[], None]:
    """`step`, which returns only when the device has finished it."""

    def timed() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return timed


def median_seconds(benchmark: Any, step: Callable[[], object], device: str) -> float:
    """Seconds of a step that was just benchmarked.

    On a CPU this is the benchmark's median. On a GPU that median is mostly launches, so the time is
    taken from a graph of many steps, with the caches flushed before each, minus the time of a graph
    of the flushes alone; it is noted as "device_seconds". Where a step cannot be captured, it is
    the benchmark's median too.
    """
    if device == "cuda":
        try:
            seconds = _device_seconds(step)
        except RuntimeError as error:
            benchmark.extra_info["not captured"] = str(error).splitlines()[0]
        else:
            benchmark.extra_info["device_seconds"] = seconds
            return seconds
    median: float = benchmark.stats.stats.median
    return median


def _device_seconds(step: Callable[[], object], rounds: int = 7) -> float:
    room = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")

    def graph_of(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                room.zero_()
                work()
        return graph

    def seconds(graph: torch.cuda.CUDAGraph) -> float:
        found = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        return sorted(found)[rounds // 2]

    step()
    torch.cuda.synchronize()
    return (seconds(graph_of(step)) - seconds(graph_of(lambda: None))) / CALLS
