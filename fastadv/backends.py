"""Which implementation of an operation runs.

An operation has up to three implementations: "torch" is the reference, plain PyTorch; "native" is
the extension `fastadv._C`, for CPU and CUDA through PyTorch's dispatcher; "triton" is
`fastadv.kernels`. The choice is made by, in this order: the argument `backend=`,
`use_backend(...)`, the environment variable FASTADV_BACKEND, and the table DEFAULTS. A backend
asked for by name that cannot run is an error; only the table's own choice falls back to the next
that can, and `python -m fastadv env` shows it. Matrix products with weights have no Triton kernel:
under "triton" the table decides.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

BACKENDS = ("torch", "native", "triton")

OPERATIONS = (
    "embedding_layer_norm",
    "linear",
    "varlen_attention",
    "dropout_add_layer_norm",
    "bias_gelu",
    "masked_mean_pool",
    "linear_bce",
    "cross_entropy",
    "adam",
    "embedding_adam",
)

# Matrix products: the libraries for CPU and GPU already do all that a Triton kernel could.
PRODUCTS = ("linear",)

# In order of preference, as measured by the benchmark named in each line. Numbers are medians of
# interleaved runs in bfloat16 on a CPU with AVX-512 and AMX (pooling and linear_bce on one thread;
# the others on two, while other programs ran). The CUDA lines are not measured yet: there one pass
# over the data comes before several.
DEFAULTS: dict[tuple[str, str], tuple[str, ...]] = {
    # bench_masked_mean_pool.py, 5760 x 768: 0.9 ms against 12, with backward 5 against 44.
    ("masked_mean_pool", "cpu"): ("native", "torch"),
    ("masked_mean_pool", "cuda"): ("native", "triton", "torch"),
    # bench_linear_bce.py, 64 x 768: 0.023 ms against 0.044, with backward 0.12 against 0.16.
    ("linear_bce", "cpu"): ("native", "torch"),
    ("linear_bce", "cuda"): ("native", "triton", "torch"),
    # bench_embedding_layer_norm.py, 640 x 768, dropout: 0.36 ms against 13.
    ("embedding_layer_norm", "cpu"): ("native", "torch"),
    ("embedding_layer_norm", "cuda"): ("triton", "torch"),
    # bench_linear.py, 2880 tokens, 768 to 3072: 6.5 ms against 7.7, gradient of the weight 9 to 13.
    ("linear", "cpu"): ("native", "torch"),
    ("linear", "cuda"): ("torch",),
    # bench_varlen_attention.py, 16 x 180, dropout: 6.3 ms against 76, with backward 27 to 117.
    ("varlen_attention", "cpu"): ("native", "torch"),
    ("varlen_attention", "cuda"): ("triton", "torch"),
    # bench_dropout_add_layer_norm.py, 640 x 768: 0.28 ms against 7.9, with backward 0.95 to 8.3.
    ("dropout_add_layer_norm", "cpu"): ("native", "torch"),
    ("dropout_add_layer_norm", "cuda"): ("triton", "torch"),
    # bench_bias_gelu.py, 640 x 3072: 0.53 ms against 1.19, with backward 1.6 to 7.1.
    ("bias_gelu", "cpu"): ("native", "torch"),
    ("bias_gelu", "cuda"): ("triton", "torch"),
    # bench_cross_entropy.py, 600 x 16384: 1.9 ms against 51, with backward 4.1 to 144.
    ("cross_entropy", "cpu"): ("native", "torch"),
    ("cross_entropy", "cuda"): ("triton", "torch"),
    # bench_adam.py, 14.2 M weights: 9.6 ms against 75.
    ("adam", "cpu"): ("native", "torch"),
    ("adam", "cuda"): ("triton", "torch"),
    # bench_embedding_adam.py, 2000 rows of 768: 1.3 ms against 13, up to 200 missed steps 5 to 595.
    ("embedding_adam", "cpu"): ("native", "torch"),
    ("embedding_adam", "cuda"): ("triton", "torch"),
}

CPU_LEVELS = ("portable", "avx2", "avx512")
"""What FASTADV_CPU_LEVEL may say: the widest instructions that the native CPU kernels use."""

_forced: str | None = None
_reasons: dict[tuple[str, str, str], str | None] = {}


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def _load_extension() -> tuple[ModuleType | None, str | None]:
    """The extension module and None, or None and the reason why there is none."""
    try:
        extension = importlib.import_module("fastadv._C")
    except ImportError as error:
        if importlib.util.find_spec("fastadv._C") is None:
            return None, "the extension fastadv._C is not built (pip install --no-build-isolation)"
        return None, f"the extension fastadv._C does not load: {error}"
    built = extension.build_info()["torch"]
    if _release(built) != _release(torch.__version__):
        return None, (
            f"the extension fastadv._C was built against PyTorch {built}, "
            f"and this is PyTorch {torch.__version__}: install fastadv again"
        )
    return extension, None


def _check_cpu_level() -> None:
    """Refuses a wrong value: the extension reads the variable when loaded and cannot complain."""
    level = os.environ.get("FASTADV_CPU_LEVEL")
    if level and level not in CPU_LEVELS:
        raise ValueError(f"FASTADV_CPU_LEVEL is {level!r}, expected one of {', '.join(CPU_LEVELS)}")


_check_cpu_level()
extension, extension_error = _load_extension()


def check_backend(name: str) -> str:
    """`name`, if it is the name of a backend; ValueError otherwise."""
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}, expected one of {', '.join(BACKENDS)}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Uses backend `name` for every operation within, in all threads of the process.

    Raises:
        ValueError: `name` is not "torch", "native" or "triton".
    """
    global _forced
    before, _forced = _forced, check_backend(name)
    try:
        yield
    finally:
        _forced = before


def why_not(op: str, backend: str, device: torch.device | str) -> str | None:
    """Why `backend` cannot run operation `op` on `device`, in words; None if it can.

    Raises:
        ValueError: Unknown operation or backend.
    """
    if op not in OPERATIONS:
        raise ValueError(f"operation is {op!r}, expected one of {', '.join(OPERATIONS)}")
    return _why_not(op, check_backend(backend), torch.device(device).type)


# The result depends on nothing that changes while a process lives.
@torch.compiler.assume_constant_result
def _why_not(op: str, backend: str, device_type: str) -> str | None:
    key = (op, backend, device_type)
    if key not in _reasons:
        find = {"torch": _no_torch, "native": _no_native, "triton": _no_triton}[backend]
        _reasons[key] = find(op, device_type)
    return _reasons[key]


def _no_torch(op: str, device_type: str) -> str | None:
    return None


def _no_native(op: str, device_type: str) -> str | None:
    if extension_error is not None:
        return extension_error
    if device_type not in ("cpu", "cuda"):
        return f"there is no native kernel for device {device_type!r}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastadv::{op}", device_type.upper()):
        return f"the extension fastadv._C was built without {device_type.upper()}"
    return None


def _no_triton(op: str, device_type: str) -> str | None:
    if op in PRODUCTS:
        return "products have no triton kernel, PyTorch's are used with those of triton"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type == "cpu" and not interpreted:
        return "triton runs on a CPU only in its interpreter (TRITON_INTERPRET=1)"
    if device_type not in ("cpu", "cuda"):
        return f"there is no triton kernel for device {device_type!r}"
    try:
        importlib.import_module(f"fastadv.kernels.{op}")
    except ImportError as error:
        return f"fastadv.kernels.{op} does not load: {error}"
    return None


def resolve(op: str, device: torch.device | str, backend: str | None = None) -> str:
    """The backend that runs operation `op` on `device`.

    Raises:
        ValueError: Unknown operation or backend.
        RuntimeError: A backend asked for by name cannot run; says why.
    """
    name = backend or _forced or os.environ.get("FASTADV_BACKEND") or None
    device_type = device.type if isinstance(device, torch.device) else torch.device(device).type
    if name == "triton" and op in PRODUCTS:
        name = None
    if name is not None:
        reason = why_not(op, name, device_type)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} cannot run {op} on {device_type}: {reason}")
        return name
    for candidate in DEFAULTS.get((op, device_type), ("torch",)):
        if _why_not(op, candidate, device_type) is None:
            return candidate
    return "torch"


def kernels(op: str, backend: str) -> Any:
    """Where the raw functions of operation `op` are: `torch.ops.fastadv` for "native", the module
    `fastadv.kernels.<op>` for "triton".
    """
    if backend == "native":
        return torch.ops.fastadv
    return importlib.import_module(f"fastadv.kernels.{op}")
