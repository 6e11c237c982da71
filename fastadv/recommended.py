"""Settings that fit an encoder, for fields that a configuration leaves open.

The paper's learning rates were tuned for multilingual BERT on English dev (Keung, Lu and Bhardwaj,
EMNLP 2019, section 3.1). Smaller encoders need larger ones: after 60 steps at the paper's,
fastadv-mini still guesses.

An encoder is known by the name of its package alone ("fastadv-mini", "e5-small"). A folder never
is, not even one that such a model was finetuned into: what fits it then is for its owner to say,
and a saved model's own settings come with it (`AdversarialFinetuner.from_pretrained`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastadv.config import FinetuneConfig, ResolvedConfig, TaskName

Settings = Mapping[str, float | int]

_said: set[tuple[str, TaskName]] = set()

# Of classification: docs/results/debian_topics-*/plan.yaml. Of NER: for fastadv-mini
# docs/results/universal_ner-fastadv-mini/plan.yaml, for e5-small ten times the paper's, as in the
# demo.
RECOMMENDED: dict[str, dict[TaskName, Settings]] = {
    "fastadv-mini": {
        "classification": {"lr_task": 2e-4, "lr_discriminator": 5e-3, "lr_generator": 2e-5},
        "ner": {"lr_task": 2e-4, "lr_discriminator": 2e-2, "lr_generator": 1e-5},
    },
    "e5-small": {
        "classification": {"lr_task": 4e-5, "lr_discriminator": 1e-3, "lr_generator": 4e-6},
        "ner": {"lr_task": 6e-5, "lr_discriminator": 5e-3, "lr_generator": 6e-7},
    },
}
"""By packaged encoder and task: values of fields of `FinetuneConfig` that may be None."""
OTHERS: dict[TaskName, Settings] = {"classification": {}, "ner": {}}
"""By task, for all other encoders: nothing, which leaves the paper's values."""


def recommended(model: Any, task: TaskName) -> Settings:
    """What fits an encoder.

    Args:
        model: As `AdversarialFinetuner` takes it: a name, a path, or a model object. As in
            `resolve_model`, only a string that equals a package's name is one.
        task: The name of the task; nothing is known of one that is not in the tables.
    """
    own = RECOMMENDED.get(model, {}) if isinstance(model, str) else {}
    return own.get(task, OTHERS.get(task, {}))


def resolved_for(config: FinetuneConfig, task: TaskName, model: Any) -> ResolvedConfig:
    """The settings of a run that starts from `model`, with nothing left open.

    Raises:
        ValueError: As `FinetuneConfig.resolved`.
    """
    return config.resolved(task, recommended(model, task))


def say_recommended(config: FinetuneConfig, task: TaskName, model: Any) -> None:
    """Logs, once a process for an encoder and a task, which open fields get what fits it."""
    found = recommended(model, task)
    idle = () if config.adversarial else ("lr_discriminator", "lr_generator")
    open_fields = [name for name in found if getattr(config, name) is None and name not in idle]
    if config.recipe == "recommended" and open_fields:
        chosen = ", ".join(f"{name} {found[name]:g}" for name in open_fields)
        if (model, task) not in _said:
            _said.add((model, task))
            logging.getLogger("fastadv").info(
                "%s: %s, recommended for this encoder; --recipe paper for the paper's",
                model, chosen,
            )  # fmt: skip
