"""Gradient isolation (Algorithm 1): what a phase does not own is bit-identical after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor

import fastadv.nn.adversary
from fastadv import AdversarialFinetuner, FinetuneConfig

pytestmark = pytest.mark.usefixtures("one_thread")
ENGLISH = [text for text, _ in tiny.ENGLISH]


DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@pytest.fixture(
    params=[
        (device, precision, encoder)
        for device in DEVICES
        for precision in ("fp32", "bf16")
        for encoder in ("packed", "padded")
    ],
    ids="-".join,
)
def tuner(request: pytest.FixtureRequest) -> AdversarialFinetuner:
    device, precision, encoder = request.param
    # Large learning rates, so that a leak would move far more than one bit.
    config = FinetuneConfig(
        max_length=32,
        precision=precision,
        encoder=encoder,
        lr_task=1e-2,
        lr_discriminator=1e-2,
        lr_generator=1e-2,
    )
    tuner = AdversarialFinetuner(
        tiny.tiny_bert(),
        labels=tiny.LABELS,
        config=config,
        tokenizer=tiny.tiny_tokenizer(),
        device=device,
    )
    # One whole step first, so that every optimiser has moments that could be disturbed.
    draw = tuner.collate(tiny.GERMAN, ENGLISH)
    tuner.step(tuner.collate(tiny.ENGLISH), draw, draw)
    return tuner


def state(tuner: AdversarialFinetuner) -> dict[str, Tensor]:
    """Every number that a phase could change, copied, with its owner in the name."""
    tensors = {f"weights.{n}": p for n, p in tuner.model.named_parameters()}
    for phase, optimizer in tuner.trainer.optimizers.items():
        tensors |= {f"adam.{phase}.{n}": t for n, t in optimizer.state_tensors().items()}
    return {n: t.detach().clone() for n, t in tensors.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {n for n in after if n not in before or not torch.equal(before[n], after[n])}


def run_task(tuner: AdversarialFinetuner) -> None:
    trainer = tuner.trainer
    _, gradients = trainer.task_gradients(tuner.collate(tiny.ENGLISH))
    trainer.optimizers["task"].step(gradients)


def run_discriminator(tuner: AdversarialFinetuner) -> None:
    trainer = tuner.trainer
    draw = tuner.collate(tiny.GERMAN, ENGLISH)
    pooled, _ = trainer.pooled_draws(draw, draw)
    _, _, gradients = trainer.discriminator_gradients(draw, pooled)
    trainer.optimizers["discriminator"].step(gradients)


def run_generator(tuner: AdversarialFinetuner) -> None:
    trainer = tuner.trainer
    draw = tuner.collate(tiny.GERMAN, ENGLISH)
    _, pooled = trainer.pooled_draws(draw, draw)
    _, gradients = trainer.generator_gradients(draw, pooled)
    trainer.optimizers["generator"].step(gradients)


OWNED = {
    "task": (run_task, ("weights.encoder.", "weights.task_head.", "adam.task.")),
    "discriminator": (run_discriminator, ("weights.discriminator.", "adam.discriminator.")),
    "generator": (run_generator, ("weights.encoder.", "adam.generator.")),
}


def leaks(tuner: AdversarialFinetuner, phase: str) -> set[str]:
    """What the phase changed and does not own."""
    run, owned = OWNED[phase]
    before = state(tuner)
    tuner.model.train()
    run(tuner)
    moved = changed(before, state(tuner))
    assert all(any(name.startswith(prefix) for name in moved) for prefix in owned), moved
    return {name for name in moved if not name.startswith(owned)}


@pytest.mark.parametrize("phase", OWNED)
def test_phase_changes_only_what_it_owns(tuner: AdversarialFinetuner, phase: str) -> None:
    assert leaks(tuner, phase) == set()


@pytest.mark.parametrize("phase", OWNED)
def test_no_gradient_is_left(tuner: AdversarialFinetuner, phase: str) -> None:
    tuner.model.train()
    OWNED[phase][0](tuner)
    assert all(parameter.grad is None for parameter in tuner.model.parameters())


def test_a_stray_gradient_has_no_effect(tuner: AdversarialFinetuner) -> None:
    """A gradient that a caller left on a parameter reaches no update."""
    clean, dirty = [], []
    for target, stray in ((clean, None), (dirty, 1e3)):
        for parameter in tuner.model.parameters():
            parameter.grad = None if stray is None else torch.full_like(parameter, stray)
        _, gradients = tuner.trainer.task_gradients(tuner.collate(tiny.ENGLISH))
        # The word table's is sparse.
        target.extend(g.to_dense() for g in gradients if g is not None)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def test_what_the_discriminator_reads_has_no_way_back(tuner: AdversarialFinetuner) -> None:
    draw = tuner.collate(tiny.GERMAN, ENGLISH)
    for_d, for_g = tuner.trainer.pooled_draws(draw, draw)
    assert not for_d.requires_grad and for_g.requires_grad


def _leaky(original: Callable) -> Callable:
    """`generator_loss` as it goes wrong elsewhere: the head is updated with the encoder."""

    def loss(h, english, weight, *rest, **options):
        value, logits = original(h, english, weight, *rest, **options)
        weight.data.sub_(1e-6)
        return value, logits

    return loss


def test_the_check_sees_a_leak(
    tuner: AdversarialFinetuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = _leaky(fastadv.nn.adversary.generator_loss)
    monkeypatch.setattr(fastadv.nn.adversary, "generator_loss", broken)
    assert leaks(tuner, "generator") == {"weights.discriminator.weight"}
