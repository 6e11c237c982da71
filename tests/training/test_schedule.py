"""The task's rate over the steps, and across stops; `test_equivalence` has it beside PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tuners import assert_close, batches, tuner_of

from fastadv import AdversarialFinetuner, FinetuneConfig
from fastadv.config import ResolvedConfig
from fastadv.run.state import state_of

pytestmark = pytest.mark.usefixtures("one_thread")

LINEAR: dict[str, Any] = {"lr_scheduler_type": "linear", "steps": 12, "warmup_steps": 3}
RATES: dict[str, Any] = {"lr_task": 1e-3, "lr_discriminator": 1e-3, "lr_generator": 1e-4}


def resolved(**changes: Any) -> ResolvedConfig:
    return FinetuneConfig(**changes).resolved("classification")


def task_rates(config: ResolvedConfig) -> list[float]:
    return [config.rates(step)["task"] for step in range(config.steps)]


def test_rates_by_step() -> None:
    linear = resolved(lr_scheduler_type="linear", steps=6, warmup_steps=2, lr_task=1.0)
    assert task_rates(linear) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert linear.rates(6) == {"task": 0.0}
    no_warmup = resolved(lr_scheduler_type="linear", steps=4, lr_task=2.0)
    assert task_rates(no_warmup) == [2.0, 1.5, 1.0, 0.5]
    rising = resolved(steps=5, warmup_steps=4, lr_task=1.0)
    assert task_rates(rising) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_constant_rates_are_left_alone() -> None:
    """By default nothing is set, so that a rate that somebody else set stays."""
    assert resolved().rates(0) == resolved().rates(1999) == {}
    tuner = tuner_of(False)
    tuner.trainer.optimizers["task"].lr = 7e-4
    tuner.step(*batches(tuner, 0))
    assert tuner.trainer.optimizers["task"].lr == 7e-4


def test_updates_on_the_device_have_the_same_rates() -> None:
    tuners = tuner_of(False, **LINEAR), tuner_of(True, **LINEAR)
    for number in range(LINEAR["steps"]):
        for tuner in tuners:
            tuner.step(*batches(tuner, number))
    # As in test_device_updates: the same sums in another order.
    assert_close(*tuners, rtol=3e-6, atol=1e-6)


def fit(
    folder: Path, *, stop: int | None = None, resume: bool = False, **changes: Any
) -> AdversarialFinetuner:
    """A run of twelve steps, or of its first ones, as if it had been killed after a checkpoint."""
    config = FinetuneConfig(**{
        **LINEAR, **RATES, "max_length": 16, "batch_size": 3, "eval_every": 0, "log_every": 4,
        "checkpoint_every": 5, **changes,
    })  # fmt: skip
    tuner = AdversarialFinetuner(
        tiny.tiny_bert(), labels=tiny.LABELS, config=config, tokenizer=tiny.tiny_tokenizer(),
        device="cpu",
    )  # fmt: skip

    def killed(*batches: Any) -> Any:
        if tuner.trainer.step_count == stop:
            raise RuntimeError("killed")
        return step(*batches)

    step = tuner.trainer.step
    tuner.trainer.step = killed  # type: ignore[method-assign]
    tuner.fit(tiny.ENGLISH, {"de": tiny.GERMAN}, output_dir=folder, resume=resume, quiet=True)
    return tuner


@pytest.mark.parametrize("encoder", ["packed", "padded"])
def test_a_resumed_run_equals_one_that_never_stopped(encoder: str, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", encoder=encoder)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "parts", stop=7, encoder=encoder)
    resumed = fit(tmp_path / "parts", resume=True, encoder=encoder)
    tensors, others = state_of(whole)[0], state_of(resumed)[0]
    assert [n for n in tensors if not torch.equal(tensors[n], others[n])] == []


def test_other_steps_would_be_another_schedule(tmp_path: Path) -> None:
    fit(tmp_path / "linear")
    said = (
        "steps was 12 in that run and is 13 now, expected the same to resume, since the rates of "
        "lr_scheduler_type linear follow from it"
    )
    with pytest.raises(ValueError, match=said):
        fit(tmp_path / "linear", resume=True, steps=13)
    constant = {"lr_scheduler_type": "constant"}
    fit(tmp_path / "constant", **constant)
    assert fit(tmp_path / "constant", resume=True, steps=13, **constant).trainer.step_count == 13
    with pytest.raises(ValueError, match="lr_scheduler_type was 'constant' in that run"):
        fit(tmp_path / "constant", resume=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type is 'cosine', expected 'constant' or"),
        ({"warmup_steps": -1}, "warmup_steps is -1, expected a whole number of at least 0"),
        (
            {"lr_scheduler_type": "linear", "steps": 9, "warmup_steps": 9},
            "warmup_steps is 9, expected fewer than steps, 9, for lr_scheduler_type 'linear'",
        ),
    ],
)
def test_schedules_that_are_none_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FinetuneConfig(**wrong)
