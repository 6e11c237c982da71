"""Finetuners of the tiny model whose updates the host or the device decides, and their batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.training.trainer import Trainer


def tuner_of(capturable: bool, model: Any = None, **changes: Any) -> AdversarialFinetuner:
    config = FinetuneConfig(**{
        "max_length": 16, "precision": "fp32", "lr_task": 1e-3, "lr_discriminator": 1e-3,
        # Gradients of key biases are nothing but rounding, which an eps of 1e-8 would show.
        "lr_generator": 1e-3, "eps": 1e-4, **changes,
    })  # fmt: skip
    tuner = AdversarialFinetuner(
        model or tiny.tiny_bert(), labels=tiny.LABELS, config=config,
        tokenizer=tiny.tiny_tokenizer(), device="cpu",
    )  # fmt: skip
    if capturable:
        tuner.trainer = Trainer(tuner.model, tuner.config, capturable=True)
    return tuner


def batches(tuner: AdversarialFinetuner, number: int) -> list[Any]:
    """Three batches of other words in every step."""
    labeled = [tiny.ENGLISH[(number + k) % len(tiny.ENGLISH)] for k in range(3)]
    german = [tiny.GERMAN[(number + k) % len(tiny.GERMAN)] for k in range(2)]
    english = [text for text, _ in labeled[:2]]
    french = [tiny.FRENCH[number % len(tiny.FRENCH)], german[0]]
    return [
        tuner.collate(labeled),
        tuner.collate(german, english),
        tuner.collate(french, english[::-1]),
    ]


def weights(tuner: AdversarialFinetuner) -> dict[str, torch.Tensor]:
    tuner.trainer.flush()
    return {n: p.detach().clone() for n, p in tuner.model.named_parameters()}


def assert_close(first: AdversarialFinetuner, second: AdversarialFinetuner, **how: float) -> None:
    mine, theirs = weights(first), weights(second)
    for name, weight in mine.items():
        torch.testing.assert_close(theirs[name], weight, msg=lambda m, n=name: f"{n}: {m}", **how)


def spoil(monkeypatch: pytest.MonkeyPatch, tuner: AdversarialFinetuner, phase: str) -> None:
    """The gradient of the phase's next step holds a NaN."""
    optimizer = tuner.trainer.optimizers[phase]
    step = optimizer.step

    def spoiled(gradients: Any, squares: Any = None) -> bool:
        monkeypatch.setattr(optimizer, "step", step)
        gradients[-1][0] = math.nan
        return step(gradients, squares)

    monkeypatch.setattr(optimizer, "step", spoiled)
