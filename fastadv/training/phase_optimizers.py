"""The three Adams of Algorithm 1, over the parameters that each phase owns."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import Parameter

from fastadv import backends
from fastadv.device import is_gpu
from fastadv.nn.encoder import Encoder
from fastadv.optim.adam import DeferredTable, GradientAdam
from fastadv.optim.device_adam import DeviceAdam
from fastadv.optim.device_embedding import DeviceEmbedding
from fastadv.optim.host_adam import HostAdam
from fastadv.optim.host_embedding import HostEmbedding
from fastadv.training.settings import TrainerSettings
from fastadv.training.trainable import Trainable
from fastadv.weights.compensations import Compensations
from fastadv.weights.flat import FlatParameters

# Reasons that are no news to whoever built such a model.
_FROZEN, _TIED = "it is frozen", "an output layer shares it"

Named = tuple[str, Parameter]
Deferred = DeferredTable | None


class Optimizers(NamedTuple):
    """By phase, with what they share: the weights' low bits, and the table whose rows wait."""

    by_phase: dict[str, GradientAdam]
    compensations: Compensations
    deferred: Deferred


def build_optimizers(model: Trainable, config: TrainerSettings, capturable: bool) -> Optimizers:
    """θ_T = {θ, W_T, b_T}, θ_D = {w_D, b_D}, θ_G = {θ} (paper, section 3.1).

    T and G each keep moments of their own over the same θ.

    Args:
        model: Its trainable parameters are divided; its encoder learns where they are.
        config: Rates and the rest.
        capturable: Updates that a CUDA graph may hold; the parameters move into one tensor.
    """
    compensations = Compensations()
    deferred = _defer(model, config, compensations, capturable)
    parts: dict[str, list[Named]] = {"encoder": [], "task_head": [], "discriminator": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[name.split(".")[0]].append((name, parameter))
    owned = {
        "task": (["encoder", "task_head"], config.lr_task),
        "discriminator": (["discriminator"], config.lr_discriminator),
        "generator": (["encoder"], config.lr_generator),
    }
    flats = _flatten(model, parts, compensations, deferred) if capturable else {}
    found: dict[str, GradientAdam] = {}
    for phase, (names, lr) in owned.items():
        encoder = model.encoder
        common: dict[str, Any] = {
            "lr": lr,
            "betas": (config.beta1, config.beta2),
            "eps": config.eps,
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
            "nonfinite": config.nonfinite_gradients,
            "layouts": encoder.layouts,
            "deferred": deferred,
            # D's gradient never is of 16 bits.
            "loss_scaling": config.precision == "fp16" and phase != "discriminator",
            "backend": config.backend,
        }
        if capturable:
            table = _table(parts["encoder"], deferred) if "encoder" in names else None
            own = [flats[name] for name in names if name in flats]
            found[phase] = DeviceAdam(own, table, **common)
        else:
            named = [pair for name in names for pair in parts[name]]
            found[phase] = HostAdam(named, compensations=compensations, **common)
    return Optimizers(found, compensations, deferred)


def _defer(
    model: Trainable, config: TrainerSettings, compensations: Compensations, capturable: bool
) -> Deferred:
    encoder = model.encoder
    reason, word_table = why_dense(encoder, config), encoder.word_table
    if reason is not None or word_table is None:
        _say_dense(reason or "")
        return None
    word_table.sparse = True
    table: Any = word_table.weight
    kind = DeviceEmbedding if capturable else HostEmbedding
    deferred = kind(table, compensations.of(table), config.backend)
    encoder.waiting = deferred
    return deferred


def _table(named: Sequence[Named], deferred: Deferred) -> Named | None:
    return next((pair for pair in named if deferred and pair[1] is deferred.table), None)


def _flatten(
    model: Trainable,
    parts: dict[str, list[Named]],
    compensations: Compensations,
    deferred: Deferred,
) -> dict[str, FlatParameters]:
    """Every part of the model in one tensor, but for the table whose rows wait."""
    encoder = model.encoder
    low = encoder.dtype if encoder.dtype in (torch.bfloat16, torch.float16) else None
    found: dict[str, FlatParameters] = {}
    for part, named in parts.items():
        rest = [pair for pair in named if deferred is None or pair[1] is not deferred.table]
        if rest:
            found[part] = FlatParameters(rest, low if part == "encoder" else None)
            compensations.put(found[part])
    if "encoder" in found:
        encoder.flattened(found["encoder"])
    return found


def why_not_capturable(model: Trainable, config: TrainerSettings) -> str | None:
    """Why updates are decided on the host; None where they can be on the device."""
    encoder = model.encoder
    device = next(model.parameters()).device
    if not is_gpu(device):
        return "there is no GPU"
    if encoder.architecture is None or encoder.layouts is None:
        return "the encoder runs padded"
    for operation in (*encoder.operations, "adam", "embedding_adam"):
        if operation not in backends.PRODUCTS:
            chosen = backends.resolve(operation, device, config.backend)
            if chosen != "triton":
                return f"{operation} runs on backend {chosen}"
    return None


def why_dense(encoder: Encoder, config: TrainerSettings) -> str | None:
    """Why the word table's untouched rows cannot wait for their updates; None if they can."""
    if encoder.word_table is None:
        return "the encoder runs padded"
    if not encoder.word_table.weight.requires_grad:
        return _FROZEN
    if encoder.tied:
        return _TIED
    if config.weight_decay:
        return "weight decay moves every row by what it is"
    if config.beta1**2 >= config.beta2:
        return f"beta1 {config.beta1} and beta2 {config.beta2} let momentum outlive its scale"
    return None


@functools.cache
def _say_dense(reason: str) -> None:
    """Says it once a process, as with the encoder."""
    if reason not in (_FROZEN, _TIED):
        logging.getLogger("fastadv").warning(
            "the word table is updated row by row in every step, which is slower: %s", reason
        )
