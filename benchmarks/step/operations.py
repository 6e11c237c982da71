"""Which operations take one step's time: a step under PyTorch's profiler."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fastadv import backends
from step.machine import seconds

OVERHEAD = "python overhead"
REST = "everything else"

# These groups own whatever runs inside them, however they are implemented.
ENCLOSING = {
    "optimiser": r"^Optimizer\.step|^aten::_fused_adam|^fastadv::(embedding_)?adam",
    "matrix products": r"^fastadv::linear(_gelu)?(_backward\w*)?$",
    "copies and casts": r"^fastadv::linear_pack$",
    "attention": r"^aten::_?(scaled_dot_product|(flash|efficient|cudnn)_attention|(safe_)?softmax)"
    r"|flash_(fwd|bwd)|fmha|sdpa",
    "dropout": r"^aten::(native_)?dropout|^aten::bernoulli|fused_dropout|masked_scale",
}
# Operations by their own name: first PyTorch's names, then those of kernels on a GPU, which are
# looked up where an operation's name says nothing.
PLAIN = {
    "matrix products": r"^aten::(mm|addmm|bmm|baddbmm|addbmm|linear|matmul|_addmm_activation)$"
    r"|^aten::mkldnn_linear|^mkldnn::_linear|gemm|nvjet|cutlass|splitK",
    "layer norm": r"layer_norm|LayerNorm",
    "gelu": r"gelu|GeLU|Gelu",
    "embedding": r"^aten::embedding|embedding_backward|compute_grad_weight",
    "copies and casts": r"^aten::(copy_|to|_to_copy|clone|contiguous|cat)$"
    r"|Memcpy|copy_kernel|CatArray",
    "zero fills": r"^aten::(zero_|zeros|zeros_like|new_zeros|fill_|full|full_like|new_full)$"
    r"|Memset|FillFunctor",
    "adds and sums": r"^aten::(add|add_|sum|index_add|index_add_)$"
    r"|FunctorOnSelf_add|CUDAFunctor_add",
    "compiled graphs": r"CompiledFxGraph|^triton_|^cpp_fused|^graph_\d",
}


def operations(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds that `work` spends in each group of operations, the longest first.

    Times are the operations' own times, on the CPU or, where the data is there, on the GPU.
    Operations of the library keep their names, forward and backward separate, and include all that
    they call; others are grouped by `ENCLOSING` and `PLAIN`; operations in neither are `REST`. Last
    comes `OVERHEAD`: the rest of the wall-clock time, in which Python, autograd and the profiler
    itself run and a GPU waits.

    Matrix products inside attention count as attention only where PyTorch calls them in one
    operation; in its backward pass, or compiled, they count as matrix products. What is fused into
    a matrix product is part of it. "compiled graphs" is what torch.compile fused, and on a CPU the
    calls of its graphs.
    """
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with _named_triton(), profile(activities=activities) as profiler:
        wall = seconds(work, device)
    events = profiler.events()
    found: Counter[str] = Counter()
    for group, microseconds in (_on_gpu if gpu else _on_cpu)(events):
        if group is not None:
            found[group] += microseconds / 1e6
    ordered = {group: s for group, s in found.most_common() if s > 0}
    return ordered | {OVERHEAD: wall - sum(ordered.values())}


def group_of(*names: str) -> str | None:
    """The group of an operation; None for a frame around operations, whose own time is overhead.

    Args:
        names: The operation's own name, then the names of what it runs inside of, outwards.
    """
    for name in reversed(names):
        if (group := _enclosing(name)) is not None:
            return group
    return _plain(names[0])


@functools.cache
def _enclosing(name: str) -> str | None:
    for group, pattern in ENCLOSING.items():
        if re.search(pattern, name):
            return group
    return name.removeprefix("fastadv::") if name.startswith("fastadv::") else None


@functools.cache
def _plain(name: str) -> str | None:
    # An autograd node is named after what it calls; its own time is the time of calling it.
    if re.search(r"^(torch::)?autograd::|Backward\d*$", name):
        return None
    for group, pattern in PLAIN.items():
        if re.search(pattern, name):
            return group
    # Operations are called namespace::name; annotations and the like are not.
    return REST if "::" in name else None


def _chain(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent


def _on_cpu(events: Iterable[Any]) -> Iterator[tuple[str | None, float]]:
    for event in events:
        if event.device_type == DeviceType.CPU:
            yield group_of(*_chain(event)), event.self_cpu_time_total


def _on_gpu(events: Iterable[Any]) -> Iterator[tuple[str | None, float]]:
    """Every kernel once: under the operation that launched it, else under its own name."""
    alone: Counter[str] = Counter()
    for event in events:
        if event.device_type == DeviceType.CPU:
            group = group_of(*_chain(event))
            for kernel in event.kernels:
                alone[kernel.name] -= kernel.duration
                yield _of_kernel(group, kernel.name), kernel.duration
        elif not event.is_user_annotation:
            alone[event.name] += event.time_range.elapsed_us()
    for name, microseconds in alone.items():
        yield _of_kernel(None, name), microseconds


def _of_kernel(group: str | None, name: str) -> str:
    known = group is not None and group != REST
    return group if known else group_of(name) or REST  # type: ignore[return-value]


@contextmanager
def _named_triton() -> Iterator[None]:
    """Names the library's Triton functions after the native ones.

    PyTorch's dispatcher reports only native functions to the profiler, and Triton kernels share
    names.
    """
    with ExitStack() as stack:
        for operation in backends.OPERATIONS:
            try:
                module = importlib.import_module(f"fastadv.kernels.{operation}")
            except ImportError:
                continue
            for name, function in vars(module).copy().items():
                own = inspect.isfunction(function) and function.__module__ == module.__name__
                if own and not name.startswith("_"):
                    stack.enter_context(mock.patch.object(module, name, _named(name, function)))
        yield


def _named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def named(*args: Any, **options: Any) -> Any:
        # Unlike record_function, this makes an operation, to which kernels are attributed.
        with torch._C._profiler._RecordFunctionFast(f"fastadv::{name}"):
            return function(*args, **options)

    return named
