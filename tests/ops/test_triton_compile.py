"""Every Triton kernel compiles for every architecture, at BERT's sizes; no GPU is needed.

By hand, for a table of what each kernel needs: python tests/ops/test_triton_compile.py 90 bfloat16
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
TOKENS, HIDDEN, INNER, HEADS, VOCABULARY = 64, 768, 3072, 12, 119547
KERNELS = {
    "adam": {"_adam_kernel", "_begin_kernel"},
    "bias_gelu": {"_forward_kernel", "_backward_kernel"},
    "cross_entropy": {"_forward_kernel", "_backward_kernel"},
    "dropout_add_layer_norm": {"_forward_kernel", "_backward_kernel"},
    "embedding_adam": {"_update_kernel", "_catch_up_kernel"},
    "embedding_layer_norm": {
        "_forward_kernel",
        "_backward_kernel",
        "_segments_kernel",
        "_sums_kernel",
    },
    "linear_bce": {"_loss_kernel", "_grad_input_kernel", "_grad_params_kernel"},
    "masked_mean_pool": {"_mean_kernel", "_grad_kernel"},
    "short_attention": {"forward_kernel", "backward_kernel"},
    "varlen_attention": {"_forward_kernel", "_backward_q_kernel", "_backward_kv_kernel"},
}
# What tells a kernel's variants apart.
SHOWN = ("D", "THRESHOLD", "M", "N", "ROWS")
# Given 90 or 100, Triton compiles for sm_90a or sm_100a, whose products of whole warp groups the
# plain architectures lack.  float16 is for GPUs without bfloat16, but before sm_80 Triton 3.6 makes
# no use of tensor cores (on sm_75 attention spills thousands of bytes), so that sm_80 is checked.
TARGETS = [
    (80, "bfloat16"),
    (80, "float16"),
    (90, "bfloat16"),
    (90, "float32"),
    (90, "float64"),
    (100, "bfloat16"),
]


@pytest.mark.parametrize(("architecture", "dtype"), TARGETS)
def test_compiles(architecture: int, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    # Whether Triton compiles or interprets is settled when it is imported, so: another process.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(architecture), dtype, "json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    print(f"\nsm_{architecture}, {dtype}", table(compiled), sep="\n")
    for module, names in KERNELS.items():
        assert {k["kernel"] for k in compiled if k["module"] == module} == names
    if dtype in ("bfloat16", "float16"):
        # What a block of an H100 may ask for is 227 KiB, and that of a GeForce 99.
        assert max(kernel["shared"] for kernel in compiled) <= 99 * 1024
        # Kernels that want all 255 registers spill up to 40 bytes on sm_80 under Triton 3.6 (keys
        # and values of attention), 88 under 3.9 (the embedding's backward). Too large a tile spills
        # hundreds.
        assert max(kernel["spilled"] for kernel in compiled) <= 128


def table(compiled: list[dict[str, Any]]) -> str:
    """One line a kernel under the names of what is known of it."""
    rows = [list(compiled[0]), *([str(x) for x in kernel.values()] for kernel in compiled)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Words to the left, numbers to the right.
    words = len(widths) - 4
    lines = [
        "  ".join(x.ljust(w) if i < words else x.rjust(w) for i, (x, w) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join(lines)


def compile_everything(architecture: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Calls every function on CPU tensors, and compiles instead of launching."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class NoGpu:
        """As much of a driver as compiling asks for."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", architecture, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    triton.runtime.driver.set_active(NoGpu())
    run, compiled = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        registers, spilled = resources(kernel.asm["cubin"])
        line = {"module": self.module.split(".")[-1], "kernel": self.fn.__name__}
        line["variant"] = " ".join(f"{k}={kwargs[k]}" for k in SHOWN if k in kwargs)
        line |= {"warps": kernel.metadata.num_warps, "registers": registers}
        compiled.append(line | {"spilled": spilled, "shared": kernel.metadata.shared})

    JITFunction.run = compile_only
    call_everything(dtype)
    return compiled


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes spilled, of a compiled kernel; -1 and 0 where the tool is missing."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return -1, 0
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


class Inputs:
    """Zeros of the products' type and of the sums' type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.acc = torch.float64 if dtype == torch.float64 else torch.float32
        self.ids = torch.zeros(TOKENS, dtype=torch.int64)
        self.offsets = torch.tensor([0, TOKENS], dtype=torch.int32)

    def low(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=self.dtype)

    def full(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=self.acc)


def call_everything(dtype: torch.dtype) -> None:
    inputs = Inputs(dtype)
    call_norms(inputs, bare=False)
    call_attention(inputs, HEADS, bare=False)
    call_rest(inputs)
    call_adam(inputs)
    if dtype == torch.bfloat16:
        call_norms(inputs, bare=True)
        call_attention(inputs, HEADS, bare=True)
        call_attention(inputs, HIDDEN // 128, bare=False)


def call_norms(inputs: Inputs, bare: bool) -> None:
    """With everything that may be given, or, bare, with nothing of it."""
    from fastadv.kernels import dropout_add_layer_norm as norm
    from fastadv.kernels import embedding_layer_norm as embedding

    rows, vector = inputs.full(TOKENS, HIDDEN), inputs.full(HIDDEN)
    low, stats, three = inputs.low(TOKENS, HIDDEN), inputs.full(TOKENS, 2), inputs.full(3, HIDDEN)
    drop = (0.0, None, 5) if bare else (0.1, inputs.ids[:1], 5)
    outputs = (None, None, None) if bare else (low, low, stats)
    extra, token_type = (None, None) if bare else (low, vector)
    norm.dropout_add_layer_norm(low, vector, rows, vector, vector, 1e-12, *drop, 0, rows, *outputs)
    norm.dropout_add_layer_norm_backward(
        rows, extra, low, stats, vector, *drop, 0, low, rows, three
    )
    tables = (inputs.full(99, HIDDEN), inputs.full(50, HIDDEN), token_type)
    lookup = (inputs.ids, inputs.ids, *tables, vector)
    word_rows = None if bare else inputs.ids
    embedding.embedding_layer_norm(*lookup, vector, 1e-12, *drop, rows, extra)
    segments = (inputs.ids.int(),) * 4
    for known in (None, segments) if not bare else (None,):
        embedding.embedding_layer_norm_backward(
            rows, extra, *lookup, 1e-12, *drop, 0, word_rows, 0, -1, *tables, three[:2], known
        )


def call_attention(inputs: Inputs, heads: int, bare: bool) -> None:
    from fastadv.kernels import varlen_attention as attention

    drop = (0.0, None, 5) if bare else (0.1, inputs.ids[:1], 5)
    qkv, out = inputs.low(TOKENS, 3 * HIDDEN), inputs.low(TOKENS, HIDDEN)
    lse = inputs.full(TOKENS, heads)
    # Every size of block that holds a sequence, and several blocks a sequence.
    for longest in (16, 32, 64, 128, 512):
        shape = (inputs.offsets, longest, heads, *drop)
        attention.varlen_attention(qkv, *shape, out, None if bare else lse)
        attention.varlen_attention_backward(out, qkv, out, lse, *shape, 0, qkv)


def call_rest(inputs: Inputs) -> None:
    from fastadv.kernels import bias_gelu as gelu
    from fastadv.kernels import cross_entropy as softmax
    from fastadv.kernels import linear_bce as bce
    from fastadv.kernels import masked_mean_pool as pool

    wide, inner = inputs.low(TOKENS, INNER), inputs.full(INNER)
    gelu.bias_gelu(wide, inner, wide)
    gelu.bias_gelu_backward(wide, wide, inner, wide, wide, inner)
    rows, vector, one = inputs.low(TOKENS, HIDDEN), inputs.full(HIDDEN), inputs.full(1)
    mean, counts = pool.masked_mean_pool(rows, inputs.offsets, None, 1)
    pool.masked_mean_pool_backward(mean, counts, inputs.offsets, None, TOKENS, inputs.dtype)
    bce.linear_bce(rows, vector, one, inputs.full(TOKENS), None, 0.5)
    _, _, dz = bce.linear_bce(rows, vector, one, inputs.full(TOKENS), None)
    bce.linear_bce_grad_input(one, dz, vector, inputs.dtype)
    bce.linear_bce_grad_params(one, dz, rows)
    logits, losses = inputs.low(TOKENS, VOCABULARY), inputs.full(TOKENS)
    softmax.cross_entropy(logits, inputs.ids, losses, losses)
    softmax.cross_entropy_backward(losses, None, inputs.ids, losses, logits)


def call_adam(inputs: Inputs) -> None:
    """Weights are of the sums' type, with compensations unless that is float64."""
    from fastadv.kernels import adam
    from fastadv.kernels import embedding_adam as embedding

    weight, wide = inputs.full(TOKENS, HIDDEN), inputs.acc == torch.float64
    compensation = None if wide else weight.bfloat16()
    lists = ([weight], [] if compensation is None else [compensation], [weight], [weight], [weight])
    adam.adam(*lists, [], [], [7], 1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0)
    table = (weight, compensation, weight, weight, inputs.ids)
    embedding.embedding_adam(*table, weight, 7, 1e-3, 0.9, 0.999, 1e-8, 1.0)
    # Numbers are float64, whatever the table is.
    wide = torch.ones(2, 10, dtype=torch.float64)
    counter, starts = inputs.ids[:1], inputs.ids.int()
    for by_row in (False, True):
        embedding.embedding_adam_catch_up(
            *table, starts if by_row else inputs.ids, counter, counter, wide, wide, wide[0], by_row
        )
    embedding.embedding_adam_apply(*table, weight, wide[0], starts, counter)
    adam.adam_apply(weight, compensation, weight, weight, weight, weight.half(), wide[0])
    flags = inputs.ids[:3]
    for scaler, log in ((None, None), (wide[0, :3], wide)):
        adam.adam_begin(
            wide[0, :1], wide[0], counter, flags, scaler, wide[:1], log, counter, log is None
        )


if __name__ == "__main__":
    found = compile_everything(int(sys.argv[1]), getattr(torch, sys.argv[2]))
    print(json.dumps(found) if sys.argv[3:] == ["json"] else table(found))
