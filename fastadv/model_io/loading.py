"""Pretrained encoders and tokenizers from folders and from the Hugging Face hub."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

# What transformers, torch and safetensors raise on files that are missing, damaged or hostile.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Heads that `fastadv` never runs may be missing from a checkpoint.
_OPTIONAL = ("pooler.",)


def load_encoder(name_or_path: str | os.PathLike[str]) -> PreTrainedModel:
    """A pretrained encoder in float32, from a hub id or a folder.

    Safetensors weights are preferred; `pytorch_model.bin` is read with `weights_only=True`, which
    refuses a pickle that would run code.

    Raises:
        ValueError: There is no such folder or hub model, it is not one that transformers knows,
            or its weights are missing, damaged, incomplete or a pickle of more than tensors.
    """
    name = _checked_folder(name_or_path, ("config.json",))
    if _is_folder(name_or_path) and not any((Path(name) / file).is_file() for file in _WEIGHTS):
        raise ValueError(
            f"{name}: found no weights, expected model.safetensors or pytorch_model.bin"
        )
    try:
        with quiet_transformers():
            model, found = AutoModel.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
    except _UNREADABLE as error:
        raise ValueError(
            f"{name}: cannot load an encoder, expected a Hugging Face model with intact weights: "
            f"{one_line(error)}"
        ) from error
    missing = sorted(n for n in found["missing_keys"] if not n.startswith(_OPTIONAL))
    if missing:
        # transformers would continue with random numbers instead.
        raise ValueError(
            f"{name}: found no weights for {missing[0]} ({len(missing)} missing), expected all of "
            "the encoder's"
        )
    return model


def load_tokenizer(name_or_path: str | os.PathLike[str]) -> Any:
    """The tokenizer of a model.

    Raises:
        ValueError: There is none, or it cannot be read.
    """
    name = _checked_folder(name_or_path, ())
    expected = "expected tokenizer.json or a vocabulary that transformers knows"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        # Where there are no files, transformers makes a tokenizer of special tokens alone.
        empty = set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(
            f"{name}: cannot load a tokenizer, {expected}: {one_line(error)}"
        ) from error
    if empty:
        raise ValueError(f"{name}: found a tokenizer without a vocabulary, {expected}")
    return tokenizer


def max_positions(config: Any) -> int | None:
    """The longest sequence that an encoder has positions for, in tokens; None if it has no limit.

    The RoBERTa family numbers positions from the padding id on, and loses as many of them.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and "roberta" in config.model_type:
        return int(positions) - int(config.pad_token_id) - 1
    return positions


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers inside.

    Its bars over the tensors of a local file take no time to fill, and its table of missing and
    unexpected weights alarms where all is well: heads that we set aside, a pooler that nobody runs.
    """
    shown = transformers_logging.is_progress_bar_enabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def one_line(error: BaseException) -> str:
    """The first line of an error's message: other libraries write paragraphs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _is_folder(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a folder is meant, even one that does not exist; what could be a hub id is one."""
    text = os.fspath(name_or_path)
    explicit = isinstance(name_or_path, os.PathLike) or text.startswith((".", "/", "~"))
    return explicit or text.count("/") > 1 or Path(text).expanduser().exists()


def _checked_folder(name_or_path: str | os.PathLike[str], needed: tuple[str, ...]) -> str:
    """The name as transformers wants it, if it is a hub id or a folder with the needed files."""
    if not _is_folder(name_or_path):
        return os.fspath(name_or_path)
    folder = Path(name_or_path).expanduser()
    if not folder.exists():
        raise ValueError(f"{folder}: found no such folder, expected a Hugging Face model")
    if not folder.is_dir():
        raise ValueError(f"{folder}: found a file, expected the folder of a Hugging Face model")
    for file in needed:
        if not (folder / file).is_file():
            raise ValueError(
                f"{folder}: found no {file}, expected a folder written by save_pretrained"
            )
    return str(folder)


def set_dropout(model: nn.Module, config: object, probability: float) -> None:
    """Gives every dropout of a transformers encoder, attention's included, one probability.

    Args:
        model: The encoder; its `nn.Dropout` modules and stored rates are changed in place.
        config: Its configuration, changed too, so that a saved model says what it was trained with.
        probability: In [0, 1).
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name in ("dropout_prob", "attention_dropout"):
            # Some attention classes keep a bare number instead of a module.
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)
    for name in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
        "attention_dropout",
    ):
        if isinstance(getattr(config, name, None), (int, float)):
            setattr(config, name, probability)
