"""What the benchmarks of the operations share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastadv import backends

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def need(op: str, backend: str, device: str) -> None:
    """Skips where a backend cannot run, and Triton's interpreter, whose time says nothing."""
    if backend == "triton" and device == "cpu":
        pytest.skip("triton on a CPU is an interpreter")
    reason = backends.why_not(op, backend, device)
    if reason is not None:
        pytest.skip(reason)


def compiled_or_skip(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under torch.compile, afresh, so that no size is compiled for another's."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    torch.compiler.reset()
    return torch.compile(function)


def synchronised(step: Callable[[], None], device: str) -> Callable[[], None]:
    """`step`, ended when the device has done it."""

    def timed() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return timed
