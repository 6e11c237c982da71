"""Which floating-point type the encoder computes in."""

from __future__ import annotations

import dataclasses

import torch

from fastadv.config import Precision, ResolvedConfig


def resolve_precision(config: ResolvedConfig, device: torch.device) -> ResolvedConfig:
    """ "auto" becomes "bf16" where the device multiplies bfloat16 in hardware; elsewhere "fp16" on
    a GPU and "fp32" on a CPU.
    """
    if config.precision != "auto":
        return config
    gpu = device.type == "cuda"
    if gpu:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        fast = bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    other: Precision = "fp16" if gpu else "fp32"
    return dataclasses.replace(config, precision="bf16" if fast else other)


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """The dtype of `torch.autocast` around the encoder; None in float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
