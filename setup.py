"""Builds the extension module fastadv._C; everything else is said in pyproject.toml.

FASTADV_CUDA=0 or 1 forces the CUDA part off or on; otherwise it is built when PyTorch was built
for CUDA and a toolkit is found, whether or not a GPU is visible.  TORCH_CUDA_ARCH_LIST overrides
the list of architectures.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
from setuptools import find_packages, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent
CXX_FLAGS = [
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-psabi",
]


def wants_cuda() -> bool:
    """Whether to build the CUDA part; SystemExit where it is forced and cannot be built."""
    forced = os.environ.get("FASTADV_CUDA", "")
    if forced not in ("", "0", "1"):
        raise SystemExit(f"FASTADV_CUDA is {forced!r}, expected 0 or 1")
    able = torch.version.cuda is not None and CUDA_HOME is not None
    if forced == "1" and not able:
        missing = (
            f"the installed PyTorch {torch.__version__} is built without CUDA"
            if torch.version.cuda is None
            else "no CUDA toolkit was found (set CUDA_HOME)"
        )
        raise SystemExit(f"FASTADV_CUDA=1, but {missing}")
    return able if forced == "" else forced == "1"


def cuda_archs() -> str:
    """TORCH_CUDA_ARCH_LIST, or the architectures from Ampere on that the toolkit knows."""
    version = tuple(int(part) for part in str(torch.version.cuda).split(".")[:2])
    known = "8.0;9.0;10.0+PTX" if version >= (12, 8) else "8.0;9.0+PTX"
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or known


def sources(*patterns: str) -> list[str]:
    """Source files, relative to this folder as setuptools wants them, in a fixed order."""
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


def facts(flags: list[str], archs: str) -> list[str]:
    """What build_info() tells, as macros that hold C string literals."""
    macros = {"FASTADV_CXX_FLAGS": " ".join(flags)}
    if archs:
        macros["FASTADV_CUDA_VERSION"] = str(torch.version.cuda)
        macros["FASTADV_CUDA_ARCHS"] = archs
    return [f'-D{name}="{value}"' for name, value in macros.items()]


def extension() -> CppExtension:
    """The one extension module, with or without CUDA."""
    cxx_flags = [*CXX_FLAGS]
    link_flags = []
    if platform.system() == "Linux":
        # at::parallel_for is a header: without OpenMP it runs on one thread, in silence.
        cxx_flags.append("-fopenmp")
        link_flags.append("-fopenmp")
    if not wants_cuda():
        return CppExtension(
            "fastadv._C",
            sources("csrc/*.cpp", "csrc/cpu/*.cpp"),
            include_dirs=[str(ROOT / "csrc")],
            extra_compile_args={"cxx": [*cxx_flags, *facts(cxx_flags, "")]},
            extra_link_args=link_flags,
        )
    archs = os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_archs()
    return CUDAExtension(
        "fastadv._C",
        sources("csrc/*.cpp", "csrc/cpu/*.cpp", "csrc/cuda/*.cu"),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={
            "cxx": [*cxx_flags, *facts(cxx_flags, archs)],
            "nvcc": ["-O3", "--expt-relaxed-constexpr", "-lineinfo"],
        },
        extra_link_args=link_flags,
    )


setup(
    packages=[*find_packages(include=["fastadv", "fastadv.*"]), "fastadv.kernels"],
    package_dir={"fastadv.kernels": "kernels"},
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension},
)
