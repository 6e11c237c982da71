"""float16 with loss scaling, decided on the host and on the device."""

from __future__ import annotations

import math

import pytest
import torch
from tuners import assert_close, batches, spoil, tuner_of

from fastadv.optim.host_adam import HostAdam
from fastadv.optim.loss_scaling import FIRST_SCALE, GROWTH_INTERVAL, LossScaler


def test_scale_by_hand() -> None:
    """It halves after what is not finite, and doubles after so many that are in a row."""
    scaler = LossScaler(True)
    assert scaler.scale == FIRST_SCALE == 65536
    assert float(scaler.scaled(torch.tensor(0.5))) == 32768
    scaler.update(False)
    assert scaler.scale == 32768
    for _ in range(GROWTH_INTERVAL - 1):
        scaler.update(True)
    assert scaler.scale == 32768
    scaler.update(True)
    assert scaler.scale == 65536
    scaler.update(True)
    assert scaler.scale == 65536


def test_without_scaling_nothing_is_multiplied() -> None:
    scaler, loss = LossScaler(False), torch.tensor(0.5)
    scaler.update(False)
    assert scaler.scaled(loss) is loss and scaler.scale == 1 and scaler.state_tensors() == {}


def test_as_pytorchs_own() -> None:
    """`torch.amp.GradScaler` over the same verdicts."""
    ours, theirs = LossScaler(True), torch.amp.GradScaler("cpu")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter])
    for number in range(60):
        finite = number % 7 != 3
        theirs.scale(torch.ones(1))
        parameter.grad = torch.tensor([1.0 if finite else math.inf])
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite)
        assert ours.scale == theirs.get_scale()


@pytest.mark.parametrize("capturable", [False, True])
def test_a_scaled_gradient_moves_as_a_plain_one(capturable: bool) -> None:
    """Float32 computing with and without a scale: a power of two changes no digit."""
    tuners = tuner_of(capturable, max_grad_norm=0.5), tuner_of(capturable, max_grad_norm=0.5)
    scaled = tuners[1].trainer
    for phase in ("task", "generator"):
        scaled.optimizers[phase].scaler = LossScaler(True)
    for number in range(4):
        for tuner in tuners:
            tuner.step(*batches(tuner, number))
    assert_close(*tuners, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("capturable", [False, True])
def test_an_overflow_skips_a_phase_alone(monkeypatch: pytest.MonkeyPatch, capturable: bool) -> None:
    """T's scale falls and its step is left out, even where what is not finite stops a run; G's go
    on.
    """
    tuner = tuner_of(capturable, precision="fp16")
    trainer = tuner.trainer
    tuner.step(*batches(tuner, 0))
    before = trainer.optimizers["task"].scaler.scale
    spoil(monkeypatch, tuner, "task")
    tuner.step(*batches(tuner, 1))
    assert trainer.skipped == 1
    assert trainer.optimizers["task"].scaler.scale == before / 2
    assert trainer.optimizers["generator"].scaler.scale == FIRST_SCALE
    assert trainer.optimizers["discriminator"].scaler.tensor is None
    counts = {
        phase: {float(s["step"]) for s in optimizer.state_dict()["state"].values()}
        for phase, optimizer in trainer.optimizers.items()
    }
    assert counts == {"task": {1.0}, "discriminator": {2.0}, "generator": {2.0}}


@pytest.mark.parametrize("capturable", [False, True])
def test_what_never_is_finite_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, capturable: bool
) -> None:
    tuner = tuner_of(capturable, precision="fp16", adversarial=False)
    with pytest.raises(FloatingPointError, match="not finite"):
        for number in range(20):
            spoil(monkeypatch, tuner, "task")
            tuner.step(batches(tuner, number)[0])
    assert 16 <= tuner.trainer.skipped <= 18


def test_float16_trains_as_float32() -> None:
    """Within what its products round: 2^-11 each, and some dozens of them in a row."""
    half, full = tuner_of(False, precision="fp16"), tuner_of(False)
    for number in range(5):
        losses = [tuner.step(*batches(tuner, number)) for tuner in (half, full)]
        assert losses[0].task == pytest.approx(losses[1].task, rel=5e-3)
        assert losses[0].generator == pytest.approx(losses[1].generator, rel=5e-3)
    assert half.trainer.skipped == 0


@pytest.mark.parametrize("capturable", [False, True])
def test_a_checkpoint_has_the_scale(capturable: bool) -> None:
    tuner = tuner_of(capturable, precision="fp16")
    optimizer = tuner.trainer.optimizers["task"]
    assert optimizer.scaler.tensor is not None
    optimizer.scaler.tensor[:2] = torch.tensor([512.0, 3.0])
    tensors = {name: x.clone() for name, x in optimizer.state_tensors().items()}
    other = tuner_of(capturable, precision="fp16").trainer.optimizers["task"]
    other.load_state_tensors(tensors)
    assert other.scaler.tensor is not None and other.scaler.tensor[:2].tolist() == [512, 3]
    del tensors["loss_scaler.scale"]
    with pytest.raises(ValueError, match="loss scaler's state has no scale"):
        other.load_state_tensors(tensors)


def test_auto_is_float16_on_old_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastadv.device import resolve_precision

    for supported, wanted in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(
            "torch.cuda.is_bf16_supported", lambda including_emulation, s=supported: s
        )
        assert resolve_precision("auto", torch.device("cuda")) == wanted


def test_scale_and_clipping_by_hand() -> None:
    """A gradient of 3 and 4, scaled by 65536, is clipped to norm 1: (0.6, 0.8)."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = HostAdam([("w", parameter)], 0.1, max_grad_norm=1.0, loss_scaling=True)
    optimizer.step([torch.tensor([3.0, 4.0]) * 65536])
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    torch.testing.assert_close(moment, torch.tensor([0.06, 0.08]), rtol=1e-5, atol=0)
