"""Which floating-point type the encoder computes in."""

from __future__ import annotations

import dataclasses

import torch

from fastadv.config import Precision, ResolvedConfig


def resolve_precision(config: ResolvedConfig, device: torch.device) -> ResolvedConfig:
    """ "auto" becomes "bf16" where the device multiplies bfloat16 in hardware, "fp32" elsewhere."""
    if config.precision != "auto":
        return config
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        fast = bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return dataclasses.replace(config, precision="bf16" if fast else "fp32")


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """The dtype of `torch.autocast` around the encoder; None in float32."""
    return torch.bfloat16 if precision == "bf16" else None
