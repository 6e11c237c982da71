"""Updates that are decided on the device, against those that the host decides."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from tuners import assert_close, batches, spoil, tuner_of, weights

from fastadv import AdversarialFinetuner
from fastadv.optim.device_adam import DeviceAdam
from fastadv.run.state import restore, state_of

# Gradients that differ by a rounding, over some steps of 1e-3; a step more or less is 1e-3.
CLOSE: dict[str, float] = {"rtol": 3e-6, "atol": 3e-7}


def both(steps: int = 6, **changes: Any) -> tuple[AdversarialFinetuner, AdversarialFinetuner]:
    tuners = tuner_of(False, **changes), tuner_of(True, **changes)
    for number in range(steps):
        losses = [tuner.step(*batches(tuner, number)) for tuner in tuners]
        assert losses[0].task == pytest.approx(losses[1].task, rel=1e-5)
    return tuners


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_grad_norm": 0.5},
        {"weight_decay": 0.1},
        {"dropout": 0.1},
        {"adversarial": False},
        {"nonfinite_gradients": "skip"},
    ],
    ids=str,
)
def test_the_same_weights(changes: dict[str, Any]) -> None:
    assert_close(*both(**changes), **CLOSE)


def test_the_same_weights_in_bfloat16() -> None:
    # A weight that rounds to another bfloat16 changes gradients by 2^-8, and so directions.
    assert_close(*both(precision="bf16"), rtol=1e-2, atol=1e-3)


def test_parameters_are_one_tensor_and_lend_it() -> None:
    tuner = tuner_of(True)
    flat = tuner.model.encoder.flat
    assert flat is not None and flat.intact
    table = tuner.model.encoder.embeddings.word.weight
    encoder = sum(p.numel() for p in tuner.model.encoder.parameters())
    assert flat.weight.numel() == encoder - table.numel()
    before = flat.weight.clone()
    tuner.step(*batches(tuner, 0))
    assert not torch.equal(before, flat.weight)
    with tuner.model.encoder.complete() as model:
        lent = model.encoder.layer[1].output.dense.weight
        assert lent.data_ptr() == tuner.model.encoder.layers[1].output.weight.data_ptr()


def test_gradients_are_one_tensor() -> None:
    """So that one kernel reads them: nothing is put together anew."""
    from fastadv.weights.flat import span

    tuner = tuner_of(True)
    tuner.model.train()
    _, gradients = tuner.trainer.task_gradients(batches(tuner, 0)[0])
    flat = tuner.model.encoder.flat
    assert flat is not None
    own = [g for g in gradients[1 : 1 + len(flat.parameters)] if g is not None]
    assert len(own) == len(flat.parameters)
    assert span(own).data_ptr() == own[0].data_ptr()


@pytest.mark.parametrize("phase", ["task", "discriminator", "generator"])
def test_a_skipped_step_advances_nothing(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    """Not moments, not counts, not the rows that wait: what follows is as if it had not been."""
    tuners = tuner_of(False, nonfinite_gradients="skip"), tuner_of(True, nonfinite_gradients="skip")
    for number in range(6):
        for tuner in tuners:
            if number in (2, 3):
                spoil(monkeypatch, tuner, phase)
            tuner.step(*batches(tuner, number))
    assert [tuner.trainer.skipped for tuner in tuners] == [2, 2]
    assert_close(*tuners, **CLOSE)
    states = [tuner.trainer.optimizers[phase].state_dict()["state"] for tuner in tuners]
    assert {float(s["step"]) for s in states[1].values()} == {4.0}
    for i, state in states[0].items():
        torch.testing.assert_close(states[1][i]["exp_avg"], state["exp_avg"], rtol=3e-5, atol=1e-8)


def test_a_run_stops_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps after the bad one change nothing either, until somebody asks."""
    tuner = tuner_of(True)
    tuner.step(*batches(tuner, 0))
    spoil(monkeypatch, tuner, "task")
    before = weights(tuner)
    trainer = tuner.trainer
    trainer.optimizers["generator"].lr = trainer.optimizers["discriminator"].lr = 0.0
    for number in (1, 2):
        trainer.step(*batches(tuner, number))
    flat = tuner.model.encoder.flat
    assert flat is not None
    with pytest.raises(FloatingPointError, match="gradient of an earlier step is not finite"):
        trainer.check()
    after = weights(tuner)
    for name in before:
        if "task_head" in name:
            assert torch.equal(before[name], after[name])


def test_the_users_step_says_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = tuner_of(True)
    spoil(monkeypatch, tuner, "generator")
    with pytest.raises(FloatingPointError, match="not finite"):
        tuner.step(*batches(tuner, 0))


def test_a_rate_changes_between_steps() -> None:
    tuners = tuner_of(False), tuner_of(True)
    for number, rate in enumerate([1e-3, 1e-4, 0.0, 5e-4, 5e-4]):
        for tuner in tuners:
            tuner.trainer.optimizers["task"].lr = rate
            tuner.step(*batches(tuner, number))
    assert_close(*tuners, **CLOSE)


def test_a_full_log_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are brought up to date before rates that they need are forgotten."""
    monkeypatch.setattr("fastadv.optim.device_embedding.DeviceEmbedding.__init__.__defaults__",
                        (3,))  # fmt: skip
    assert_close(*both(8), **CLOSE)


def test_going_on_equals_never_having_stopped() -> None:
    one, other = tuner_of(True, dropout=0.1), tuner_of(True, dropout=0.1)
    for number in range(3):
        one.step(*batches(one, number))
    tensors, state = state_of(one)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    from pathlib import Path

    restore(other, tensors, state, Path("x"))
    for number in range(3, 6):
        one.step(*batches(one, number))
        other.step(*batches(other, number))
    mine, theirs = state_of(one)[0], state_of(other)[0]
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def test_states_come_and_go_to_torch() -> None:
    first, second = both(4)
    third = tuner_of(True, second.model.encoder._lender[0])
    for phase, optimizer in first.trainer.optimizers.items():
        third.trainer.optimizers[phase].load_state_dict(optimizer.state_dict())
    third.model.load_state_dict(first.model.state_dict())
    for tuner in (first, third):
        tuner.trainer.step_count = 4
        tuner.step(*batches(tuner, 5))
    assert_close(first, third, **CLOSE)


def test_looking_changes_no_bit() -> None:
    """Evaluation between steps, which reads the whole table."""

    seen, plain = tuner_of(True), tuner_of(True)
    for number in range(4):
        seen.step(*batches(seen, number))
        plain.step(*batches(plain, number))
        with seen.model.encoder.reading():
            seen.embed([text for text, _ in tiny.ENGLISH])
    mine, theirs = weights(seen), weights(plain)
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_a_model_that_moved_is_refused() -> None:
    tuner = tuner_of(True)
    weight = tuner.model.encoder.layers[0].qkv.weight
    weight.data = weight.data.clone()
    with pytest.raises(RuntimeError, match="the model's parameters have moved"):
        tuner.step(*batches(tuner, 0))


def test_frozen_parts_stay() -> None:
    model = tiny.tiny_bert()
    for frozen in (model.embeddings.word_embeddings, model.encoder.layer[0].attention.output.dense):
        frozen.requires_grad_(False)
    tuner = tuner_of(True, model)
    before = weights(tuner)
    tuner.step(*batches(tuner, 0))
    still = {n for n, w in weights(tuner).items() if torch.equal(w, before[n])}
    wanted = {n for n, p in tuner.model.named_parameters() if not p.requires_grad}
    assert wanted and still == wanted


def test_only_on_a_gpu_by_default() -> None:
    tuner = tuner_of(False)
    assert not tuner.trainer.capturable
    assert not any(isinstance(o, DeviceAdam) for o in tuner.trainer.optimizers.values())


def test_span_is_a_view_only_where_tensors_follow_each_other() -> None:
    from fastadv.weights.flat import span

    whole = torch.arange(12.0)
    joined = span([whole[:4].view(2, 2), whole[4:7]])
    assert joined.tolist() == list(range(7)) and joined.data_ptr() == whole.data_ptr()
    for parts in ([whole[:4], whole[5:7]], [whole[4:7], whole[:4]], [whole[::2], whole[6:]]):
        assert span(parts).tolist() == torch.cat(parts).tolist()


def test_gradients_that_wait_for_another_step() -> None:
    """Taken before a step on other rows, which theirs have missed when their turn comes."""
    tuners = tuner_of(False, adversarial=False), tuner_of(True, adversarial=False)
    for tuner in tuners:
        tuner.model.train()
        trainer = tuner.trainer
        for number in range(3):
            trainer.step(batches(tuner, number)[0])
        taken = [trainer.task_gradients(batches(tuner, number)[0])[1] for number in (0, 3)]
        for gradients in reversed(taken):
            trainer.reserve()
            trainer.optimizers["task"].step(list(gradients))
    assert_close(*tuners, **CLOSE)
