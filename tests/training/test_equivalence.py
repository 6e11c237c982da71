"""Fifty hand-driven steps of the library against fifty of the reference."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from padding import padded, sides
from torch.optim.lr_scheduler import LambdaLR

from fastadv import AdversarialFinetuner, FinetuneConfig, backends
from fastadv.reference import ReferenceFinetuner

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 50
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

# Adding one vector to every key of a softmax attention changes nothing, so the exact gradient of
# a key bias is zero. What float32 gives instead is rounding, and Adam scales rounding up to full
# steps: no two orders of summation agree there, and nothing depends on it.
ZERO_GRADIENT = "attention.self.key.bias"


def build(task: str, backend: str | None, device: str = "cpu", **changes: object):
    labels = tiny.LABELS if task == "classification" else tiny.TAGS
    settings = {"max_length": 32, "window_overlap": 4, "dropout": 0.0, "precision": "fp32"}
    config = FinetuneConfig(**{**settings, "seed": 3, "backend": backend, **changes})
    tuner = AdversarialFinetuner(
        tiny.tiny_bert(), task, labels, config, tokenizer=tiny.tiny_tokenizer(), device=device
    )
    reference = ReferenceFinetuner(
        tiny.huggingface(tuner.model.encoder),
        copy.deepcopy(tuner.model.task_head),
        copy.deepcopy(tuner.model.discriminator),
        task=task,
        lr_task=tuner.config.lr_task,
        lr_discriminator=tuner.config.lr_discriminator,
        lr_generator=tuner.config.lr_generator,
        adversarial=tuner.config.adversarial,
        relaxation=tuner.config.relaxation,
    )
    return tuner, reference


def draws(tuner: AdversarialFinetuner, rng: np.random.Generator):
    """A labelled batch, a D draw and a G draw of uneven sizes."""
    examples = tiny.ENGLISH if tuner.task == "classification" else tiny.SENTENCES
    english = [text for text, _ in tiny.ENGLISH]

    def some(data: list, count: int) -> list:
        return [data[i] for i in rng.permutation(len(data))[:count]]

    labeled = tuner.collate(some(examples, 3))
    return labeled, *(
        tuner.collate(some(tiny.GERMAN + tiny.FRENCH, others), some(english, own))
        for others, own in ((4, 3), (2, 5))
    )


def weights(model: torch.nn.Module, head: torch.nn.Module, discriminator: torch.nn.Module):
    named = {f"encoder.{n}": p for n, p in model.named_parameters()}
    named |= {f"task_head.{n}": p for n, p in head.named_parameters()}
    named |= {f"discriminator.{n}": p for n, p in discriminator.named_parameters()}
    return {n: p.detach().double().clone() for n, p in named.items()}


def library_weights(tuner: AdversarialFinetuner):
    """Weights with their low bits, the word table's rows brought up to date."""
    model = tuner.model
    if tuner.trainer.deferred is not None:
        tuner.trainer.deferred.flush()
    whole = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        compensation = tuner.trainer.compensations.of(parameter)
        assert compensation is not None
        whole[name] += compensation.double()
    start = "encoder."
    ours = {n.removeprefix(start): t for n, t in whole.items() if n.startswith(start)}
    theirs = model.encoder.to_huggingface(ours)
    heads = {n: t for n, t in whole.items() if not n.startswith(start)}
    return {f"{start}{n}": t.clone() for n, t in theirs.items()} | heads


def in_float64(reference: ReferenceFinetuner) -> ReferenceFinetuner:
    """The reference without float32's roundings, which at rates of 2e-8 are larger than steps."""
    for module in (reference.encoder, reference.task_head, reference.discriminator):
        module.double()
    return reference


def skip_without(backend: str, device: str, encoder: str) -> None:
    """Skips, and says why, where the backend cannot run what the encoder needs."""
    padded_needs = ("masked_mean_pool", "linear_bce")
    for operation in backends.OPERATIONS if encoder == "packed" else padded_needs:
        try:
            backends.resolve(operation, device, backend)
        except RuntimeError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("encoder", ["packed", "padded"])
@pytest.mark.parametrize("backend", ["torch", "native", "triton"])
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_fifty_steps_equal_the_reference(
    task: str, backend: str, encoder: str, device: str
) -> None:
    skip_without(backend, device, encoder)
    tuner, reference = build(task, backend, device, encoder=encoder)
    # Triton's interpreter takes seconds for a pass through all of the encoder's kernels.
    interpreted = (backend, encoder, device) == ("triton", "packed", "cpu")
    check_steps(tuner, reference, 2 if interpreted else STEPS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("encoder", ["packed", "padded"])
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_relaxed_steps_equal_the_reference(task: str, encoder: str, device: str) -> None:
    tuner, reference = build(task, None, device, encoder=encoder, relaxation=0.5)
    assert tuner.model.discriminator.relaxation == reference.relaxation == 0.5
    check_steps(tuner, reference, 10)


def check_steps(tuner: AdversarialFinetuner, reference: ReferenceFinetuner, steps: int) -> None:
    """Losses of each step, and where the weights are after the last."""
    in_float64(reference)
    start = library_weights(tuner)
    rng = np.random.default_rng(11)
    for _ in range(steps):
        batch_t, batch_d, batch_g = draws(tuner, rng)
        ours = tuner.step(batch_t, batch_d, batch_g)
        theirs = reference.step(padded(batch_t), sides(batch_d), sides(batch_g))
        # float32 losses near 1 carry some 1e-7 of rounding; the weights' differences add their own.
        assert ours.task == pytest.approx(theirs.task, abs=1e-5)
        assert ours.discriminator == pytest.approx(theirs.discriminator, abs=1e-5)
        assert ours.generator == pytest.approx(theirs.generator, abs=1e-5)
    ended = library_weights(tuner)
    expected = weights(reference.encoder, reference.task_head, reference.discriminator)
    for name, weight in expected.items():
        displacement = weight - start[name]
        # Word pieces that no batch held stay where they were, in both.
        assert displacement.abs().max() > 0, name
        if name.endswith(ZERO_GRADIENT):
            continue
        error = (ended[name] - weight).norm() / displacement.norm()
        assert error <= 1e-3, f"{name}: {error:.2e}"


def test_key_bias_has_no_gradient_but_rounding() -> None:
    """The reason for the one exception above, in float64."""
    _, reference = build("classification", "torch")
    in_float64(reference)
    tuner, _ = build("classification", "torch")
    batch, _, _ = draws(tuner, np.random.default_rng(1))
    reference.task_loss(padded(batch)).backward()
    for name, parameter in reference.encoder.named_parameters():
        largest = parameter.grad.abs().max().item()
        # Rounding of sums of terms near 1e-2 is 1e-18 or so; real gradients here exceed 1e-5.
        assert (largest < 1e-15) == name.endswith(ZERO_GRADIENT), (name, largest)


def test_baseline_equals_the_reference_without_adversary() -> None:
    tuner, reference = build("classification", None, adversarial=False)
    in_float64(reference)
    start = library_weights(tuner)
    rng = np.random.default_rng(5)
    for _ in range(10):
        batch, _, _ = draws(tuner, rng)
        losses = tuner.step(batch)
        assert losses.task == pytest.approx(reference.step(padded(batch)).task, abs=1e-5)
        assert losses.discriminator is None and losses.generator is None
    ended = library_weights(tuner)
    assert torch.equal(ended["discriminator.weight"], start["discriminator.weight"])
    for name, weight in weights(
        reference.encoder, reference.task_head, reference.discriminator
    ).items():
        if name.startswith("encoder.") and not name.endswith(ZERO_GRADIENT):
            moved = (weight - start[name]).norm()
            assert (ended[name] - weight).norm() <= 1e-3 * moved, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("encoder", ["packed", "padded"])
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_bfloat16_errs_no_more_than_the_reference_does(
    task: str, encoder: str, device: str
) -> None:
    """Losses and gradients in bfloat16, against the reference in float64."""
    tuner, plain = build(task, None, device, encoder=encoder, precision="bf16")
    plain.autocast = torch.bfloat16
    exact = copy.deepcopy(plain)
    exact.autocast = None
    in_float64(exact)
    batch, draw_d, draw_g = draws(tuner, np.random.default_rng(2))

    def of(reference: ReferenceFinetuner) -> dict[str, torch.Tensor]:
        losses = {
            "task": reference.task_loss(padded(batch)),
            "discriminator": reference.discriminator_loss(*sides(draw_d)),
            "generator": reference.generator_loss(*sides(draw_g)),
        }
        names, parameters = zip(*reference.encoder.named_parameters(), strict=True)
        found = {}
        for phase, loss in losses.items():
            gradient = torch.autograd.grad(loss, parameters, retain_graph=True)
            found[phase] = flat(loss, dict(zip(names, gradient, strict=True)))
        return found

    tuner.model.eval()
    trainer = tuner.trainer
    pooled_d, pooled_g = trainer.pooled_draws(draw_d, draw_g)
    ours = {
        "task": encoder_gradients(tuner, "task", *trainer.task_gradients(batch)),
        "generator": encoder_gradients(
            tuner, "generator", *trainer.generator_gradients(draw_g, pooled_g)
        ),
    }
    expected, rounded = of(exact), of(plain)
    for phase, got in ours.items():
        error = (got - expected[phase]).norm()
        # The same roundings to 8 bits in another order (packed, both sides in one pass): twice
        # the reference's own error leaves room for that and for nothing else.
        assert error <= 2 * (rounded[phase] - expected[phase]).norm(), phase
    loss_d, _, _ = trainer.discriminator_gradients(draw_d, pooled_d)
    own = (rounded["discriminator"][0] - expected["discriminator"][0]).abs()
    # A single number may round luckily; 2^-8 of the loss is one rounding of its inputs.
    floor = expected["discriminator"][0] / 256
    assert (loss_d.double() - expected["discriminator"][0]).abs() <= 2 * own + floor


def flat(loss: torch.Tensor, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss and then the gradients in the order of their names, as one float64 vector."""
    parts = [loss.detach().reshape(1), *(gradients[n].flatten() for n in sorted(gradients))]
    return torch.cat([part.double() for part in parts])


def encoder_gradients(
    tuner: AdversarialFinetuner, phase: str, loss: torch.Tensor, gradients: tuple
) -> torch.Tensor:
    """`flat` of what a phase gave, the encoder's part, under transformers' names."""
    start = "encoder."
    names = tuner.trainer.optimizers[phase].names
    named = dict(zip(names, gradients, strict=True))
    ours = {n.removeprefix(start): g.to_dense() for n, g in named.items() if n.startswith(start)}
    return flat(loss, tuner.model.encoder.to_huggingface(ours))


SCHEDULE: dict[str, Any] = {
    "lr_scheduler_type": "linear", "steps": 12, "warmup_steps": 3,
    "lr_task": 1e-3, "lr_discriminator": 1e-3, "lr_generator": 1e-4,
}  # fmt: skip


@pytest.mark.parametrize("encoder", ["packed", "padded"])
@pytest.mark.parametrize("task", ["classification", "ner"])
def test_a_run_equals_pytorch_with_lambda_lr(task: str, encoder: str) -> None:
    """The reference in float64, whose task optimiser has PyTorch's own scheduler."""
    tuner, reference = build(task, None, encoder=encoder, **SCHEDULE)
    in_float64(reference)
    total, rising = SCHEDULE["steps"], SCHEDULE["warmup_steps"]
    scheduler = LambdaLR(
        reference.adam_task,
        lambda done: min((done + 1) / rising, 1.0, (total - done) / (total - rising)),
    )
    start, rng = library_weights(tuner), np.random.default_rng(11)
    # Rows of words that few batches hold wait over steps of several rates.
    assert (tuner.trainer.deferred is not None) == (encoder == "packed")
    for _ in range(total):
        assert tuner.trainer.optimizers["generator"].lr == SCHEDULE["lr_generator"]
        batch_t, batch_d, batch_g = draws(tuner, rng)
        ours = tuner.step(batch_t, batch_d, batch_g)
        assert tuner.trainer.optimizers["task"].lr == pytest.approx(scheduler.get_last_lr()[0])
        theirs = reference.step(padded(batch_t), sides(batch_d), sides(batch_g))
        scheduler.step()
        # Losses of a sentence's words, of which there are some ten, are sums.
        assert ours.task == pytest.approx(theirs.task, abs=1e-4)
    ended = library_weights(tuner)
    expected = weights(reference.encoder, reference.task_head, reference.discriminator)
    for name, weight in expected.items():
        if not name.endswith(ZERO_GRADIENT):
            displacement = (weight - start[name]).norm()
            # As in test_equivalence: float32 against float64. A rate off by one step shows as 1e-1.
            assert (ended[name] - weight).norm() <= 1e-3 * displacement, name
