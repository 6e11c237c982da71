"""Finished models as folders that the Hugging Face ecosystem reads."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from fastadv.config import FinetuneConfig, TaskName
from fastadv.model_io.loading import load_encoder, load_tokenizer, one_line, quiet_transformers
from fastadv.nn.heads import AdversarialModel
from fastadv.tasks.class_shares import Matched
from fastadv.tasks.registry import TASKS, task_of

FORMAT = "fastadv-model-1"
CARD = "fastadv.json"
HEADS = "fastadv_heads.safetensors"


@dataclass(frozen=True)
class SavedModel:
    """What a folder written by `save_model` holds."""

    encoder: PreTrainedModel
    task: TaskName
    labels: tuple[str, ...]
    config: FinetuneConfig
    heads: dict[str, torch.Tensor]
    tokenizer: Any
    class_counts: dict[str, int]
    matched: dict[str, Matched]


def save_model(
    folder: Path,
    model: AdversarialModel,
    task: str,
    tokenizer: Any,
    labels: Sequence[str],
    config: FinetuneConfig,
    class_counts: Mapping[str, int],
    matched: Mapping[str, Matched],
) -> None:
    """Writes config.json, model.safetensors (float32), the tokenizer's files, and our heads.

    The encoder loads with `AutoModel`, and where the task named `task` has an `auto_model`, the
    whole model with that: for NER `AutoModelForTokenClassification`. What has no place there (the
    document head over mean-pooled pieces, the discriminator) goes into `fastadv_heads.safetensors`,
    and the constants of matched predictions into `fastadv.json`.
    """
    auto_model = task_of(task).auto_model
    folder.mkdir(parents=True, exist_ok=True)
    heads = {f"discriminator.{n}": t for n, t in model.discriminator.state_dict().items()}
    if auto_model is None:
        heads |= {f"task_head.{n}": t for n, t in model.task_head.state_dict().items()}
    with quiet_transformers(), model.encoder.complete() as encoder:
        saved = encoder
        if auto_model is not None:
            saved = _with_head(auto_model, encoder, model.task_head, labels)
        # Otherwise old checkpoints' names would stay, which call gains and biases gamma and beta.
        saved.save_pretrained(folder, save_original_format=False)
    save_file({n: t.detach().cpu().contiguous() for n, t in heads.items()}, folder / HEADS)
    tokenizer.save_pretrained(folder)
    fields = {f.name for f in dataclasses.fields(FinetuneConfig)}
    card = {
        "format": FORMAT,
        "task": task,
        "labels": list(labels),
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k in fields},
        "class_counts": dict(class_counts),
        "matched": {
            language: {
                "shares": one.shares,
                "constants": dict(zip(labels, one.constants.tolist(), strict=True)),
            }
            for language, one in matched.items()
        },
    }
    (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_model(folder: Path) -> SavedModel:
    """Reads what `save_model` wrote.

    Raises:
        ValueError: The folder is not one of ours, of another format version, or damaged.
    """
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder}: found no {CARD}, expected a model that fastadv saved")
    card = _read_card(folder)
    try:
        heads = load_file(folder / HEADS)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder / HEADS}: expected the heads of the model: {one_line(error)}"
        ) from error
    encoder = load_encoder(folder)
    if (auto_model := task_of(card["task"]).auto_model) is not None:
        heads |= {f"task_head.{n}": t for n, t in _saved_head(auto_model, folder).items()}
    return SavedModel(
        encoder,
        card["task"],
        tuple(card["labels"]),
        FinetuneConfig(**card["config"]),
        heads,
        load_tokenizer(folder),
        # Models saved before these were kept have none.
        dict(card.get("class_counts", {})),
        {
            language: Matched(
                dict(one["shares"]),
                np.array([one["constants"][label] for label in card["labels"]], np.float64),
            )
            for language, one in card.get("matched", {}).items()
        },
    )


def saved_max_length(folder: Path) -> int | None:
    """The longest input, in word pieces, of the run that saved a model; None if it is not ours."""
    if not (folder / CARD).is_file():
        return None
    length = _read_card(folder)["config"].get("max_length")
    return None if length is None else int(length)


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    try:
        card = json.loads(path.read_text("utf-8"))
        if card["format"] != FORMAT:
            raise ValueError(f"found format {card['format']!r}, expected {FORMAT!r}")
        FinetuneConfig(**card["config"])
        if card["task"] not in TASKS or not all(isinstance(n, str) for n in card["labels"]):
            raise ValueError("found an unknown task or labels that are not names")
        for one in card.get("matched", {}).values():
            if one["constants"].keys() != set(card["labels"]) or not one["shares"]:
                raise ValueError("found matched predictions of other labels")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected what fastadv saves beside a model: {one_line(error)}"
        ) from error
    return dict(card)


def _saved_head(auto_model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Weight and bias of a saved model's last layer."""
    with quiet_transformers():
        full = auto_model.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
    return dict(_classifier(full).state_dict())


def _with_head(
    auto_model: Any, encoder: PreTrainedModel, head: nn.Linear, labels: Sequence[str]
) -> PreTrainedModel:
    """The encoder and the head as one model, whose weights are theirs and no copies."""
    config = copy.deepcopy(encoder.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    with torch.device("meta"):
        full: PreTrainedModel = auto_model.from_config(config, dtype=torch.float32)
    # Token classification has no pooler.
    weights = {n: t for n, t in encoder.state_dict().items() if not n.startswith("pooler.")}
    full.base_model.load_state_dict(weights, assign=True)
    _classifier(full).load_state_dict(head.state_dict(), assign=True)
    return full


def _classifier(full: PreTrainedModel) -> nn.Linear:
    classifier = getattr(full, "classifier", None)
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"{type(full).__name__} has no linear `classifier`, expected an architecture whose "
            "token-classification model is its encoder and one linear layer"
        )
    return classifier
