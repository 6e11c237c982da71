"""Where things run and what is fast there: only this module knows what a device can do."""

from __future__ import annotations

import torch

from fastadv.config import Precision


def default_device(device: str | torch.device | None = None) -> torch.device:
    """The device that was asked for; where none was, the GPU if there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def is_gpu(device: torch.device) -> bool:
    """Whether the device works asynchronously to the host, which then must not wait for it."""
    return device.type == "cuda"


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """ "auto" becomes "bf16" where the device multiplies bfloat16 in hardware; elsewhere "fp16" on
    a GPU and "fp32" on a CPU. Any other precision stays.
    """
    if precision != "auto":
        return precision
    if is_gpu(device):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fast else "fp16"
    features = torch.cpu.get_capabilities()
    return "bf16" if features.get("amx_bf16") or features.get("avx512_bf16") else "fp32"


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """The dtype of `torch.autocast` around the encoder; None in float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def random_devices(device: torch.device) -> list[torch.device]:
    """Devices other than the CPU whose random state `torch.random.fork_rng` must keep."""
    return [device] if is_gpu(device) else []


def pins_memory(device: torch.device) -> bool:
    """Whether copies to the device need page-locked host memory to be fast."""
    return is_gpu(device)
