"""Every CUDA file compiles for every architecture we ship, and for Turing, where nvcc is.

No GPU is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# Turing, 75, has no bfloat16 of its own: CUDA's headers make up for it.
ARCHITECTURES = ("75", "80", "90a", "100")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


def includes() -> list[str]:
    paths = [*include_paths(), sysconfig.get_paths()["include"], str(ROOT / "csrc")]
    return [f"-I{path}" for path in paths]


def test_there_is_something_to_compile() -> None:
    assert {file.stem for file in FILES} >= {"linear_bce", "masked_mean_pool"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_compiles(file: Path, tmp_path: Path) -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc is not found")
    # PyTorch's own flags for extensions hide the operators of the 16-bit types.
    hidden = ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")
    command = [
        nvcc, "-c", str(file), "-o", str(tmp_path / "out.o"), "-O3", "-std=c++20",
        "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC", "-Xptxas", "-v", "--threads", "2",
        *(f"-D__CUDA_NO_{name}__" for name in hidden),
        *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES),
        *includes(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "csrc" not in "".join(x for x in done.stderr.splitlines() if "warning" in x)
    usage = kernels(done.stderr)
    assert {architecture for _, architecture in usage} == {f"sm_{a}" for a in ARCHITECTURES}
    print(f"\n{'kernel':24}{'architecture':12}{'registers':>12}{'spilled':>12}")
    for (name, architecture), (registers, spilled) in usage.items():
        print(f"{name:24}{architecture:12}{registers:12}{spilled:12}")
    # A block of 256 threads at full occupancy of two blocks may use 128 registers a thread.
    assert max(registers for registers, _ in usage.values()) <= 128
    # A few bytes of one unaligned double path; more would be a kernel that lost its registers.
    assert max(spilled for _, spilled in usage.values()) <= 64


def kernels(log: str) -> dict[tuple[str, str], tuple[int, int]]:
    """For each kernel and architecture, registers and spilled bytes, the most over types."""
    usage: dict[tuple[str, str], tuple[int, int]] = {}
    key, spilled = ("", ""), 0
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            inner = re.search(r"\d+([a-z_]+_kernel)", found[1])
            key = inner[1] if inner else found[1], found[2]
        elif found := re.search(r"(\d+) bytes spill stores", line):
            spilled = int(found[1])
        elif found := re.search(r"Used (\d+) registers", line):
            before = usage.get(key, (0, 0))
            usage[key] = max(before[0], int(found[1])), max(before[1], spilled)
    assert usage, "nvcc printed no use of registers"
    order = [f"sm_{a}" for a in ARCHITECTURES]
    return {k: usage[k] for k in sorted(usage, key=lambda k: (k[0], order.index(k[1])))}


def test_torch_is_told_apart_from_a_cuda_build() -> None:
    """On a build of PyTorch for CUDA the extension must hold the kernels, if nvcc was there."""
    if torch.version.cuda is None:
        pytest.skip("this PyTorch is built without CUDA")
    from fastadv import backends

    if backends.extension is None or backends.extension.build_info()["cuda"] is None:
        pytest.skip("the extension was built without CUDA")
    for op in backends.OPERATIONS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastadv::{op}", "CUDA")
