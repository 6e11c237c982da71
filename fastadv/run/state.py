"""All that a run must keep so that resuming equals never having stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastadv.config import TASK_SETTINGS
from fastadv.run.trained import Trained


def state_of(tuner: Trained) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and optimiser states by name; step count, task, labels and settings.

    The step count and the seed are the whole random state: dropout is drawn from them.
    """
    # Not `state_dict`, which brings the word table's rows up to date: what waits, waits on.
    tensors = {f"model.{n}": p.detach() for n, p in tuner.model.named_parameters()}
    for name, compensation in _compensations(tuner):
        tensors[f"residual.{name}"] = compensation
    for phase, optimizer in tuner.trainer.optimizers.items():
        for name, tensor in optimizer.state_tensors().items():
            tensors[f"optimizer.{phase}.{name}"] = tensor
    if (deferred := tuner.trainer.deferred) is not None:
        tensors |= {f"deferred.{n}": t for n, t in deferred.state_tensors().items()}
    return tensors, {
        "step": tuner.trainer.step_count,
        "skipped": {phase: o.skipped for phase, o in tuner.trainer.optimizers.items()},
        "task": tuner.task,
        "labels": list(tuner.labels),
        "config": dataclasses.asdict(tuner.config),
    }


def restore(
    tuner: Trained,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    path: Path,
) -> None:
    """Takes over what `state_of` gave; `path` is named if it does not fit.

    Raises:
        ValueError: The state is of a run with another task, other labels or settings.
    """
    _check_same_run(tuner, state, path)
    # Buffers are not trained, and are what the model that a run starts from has.
    missing, unexpected = tuner.model.load_state_dict(under("model.", tensors), strict=False)
    parameters = dict(tuner.model.named_parameters())
    wrong = unexpected + [name for name in missing if name in parameters]
    if wrong:
        raise ValueError(f"{path}: the checkpoint does not match the model at {wrong[0]}")
    if (deferred := tuner.trainer.deferred) is not None:
        deferred.load_state_tensors(under("deferred.", tensors))
    saved = under("residual.", tensors)
    for name, compensation in _compensations(tuner):
        compensation.copy_(saved[name])
    for phase, optimizer in tuner.trainer.optimizers.items():
        optimizer.load_state_tensors(under(f"optimizer.{phase}.", tensors))
        optimizer.skipped = state["skipped"][phase]
    tuner.trainer.step_count = state["step"]


def _check_same_run(tuner: Trained, state: Mapping[str, Any], path: Path) -> None:
    ours: dict[str, Any] = {"task": tuner.task, "labels": list(tuner.labels)}
    theirs = {name: state[name] for name in ours}
    ours |= dataclasses.asdict(tuner.config)
    # A checkpoint from before a setting was added lacks it. Its run did what the default does: that
    # is what defaults of new settings must be.
    fields = dataclasses.fields(tuner.config)
    theirs |= {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    theirs |= state["config"]
    for name in sorted((ours.keys() | theirs.keys()) - tuner.config.free_on_resume):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{path}: {name} was {theirs.get(name)!r} in that run and is "
                f"{ours.get(name)!r} now, expected the same to resume{_why(name, tuner, theirs)}"
            )


def _why(name: str, tuner: Trained, theirs: Mapping[str, Any]) -> str:
    """What an error adds where it can say more."""
    config = tuner.config
    if name in config.FREE_ON_RESUME:
        return f", since the rates of lr_scheduler_type {config.lr_scheduler_type} follow from it"
    if getattr(config, "recipe", "paper") != "paper":
        paper = TASK_SETTINGS[tuner.task].defaults  # type: ignore[index]
        if name in paper and theirs.get(name) == paper[name]:
            return f": {paper[name]!r} is the paper's, which recipe 'paper' (--recipe paper) gives"
    return ""


def _compensations(tuner: Trained) -> list[tuple[str, Tensor]]:
    """Low bits of every weight that is trained and has some, by name."""
    found = tuner.trainer.compensations
    named = [(n, p) for n, p in tuner.model.named_parameters() if p.requires_grad]
    return [(n, r) for n, p in named if (r := found.of(p)) is not None]


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
