"""Checkpoints: one safetensors file a run and the one before it, nothing pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastadv.run.files import flush

FORMAT = "fastadv-checkpoint-2"

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the newest one is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON-serialisable state; a stop at any point leaves the old or the new.

    What was at `path` moves to `previous_of(path)`, in case this file is damaged later.

    Args:
        path: The file; its folder is made if need be.
        tensors: Any dtype and device.
        state: What is not a tensor.

    Raises:
        OSError: The file cannot be written, for instance because the disk is full; the
            checkpoints that were there are untouched.
    """
    temporary = path.with_name(path.name + ".part")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, temporary, metadata={"format": FORMAT, "state": json.dumps(state)})
        flush(temporary)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(f"{path}: cannot write the checkpoint: {error}") from error
    if path.exists():
        _keep(path, previous_of(path))
    temporary.replace(path)
    flush(path.parent)


def load_checkpoint(path: Path) -> Checkpoint:
    """What `save_checkpoint` wrote, on the CPU.

    Raises:
        ValueError: The file is missing, cut short, or no checkpoint of this format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(
                    f"{path}: found format {metadata.get('format')!r}, expected {FORMAT!r}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: expected a checkpoint file: {error}") from error
    return tensors, json.loads(metadata["state"])


def find_checkpoint(path: Path) -> tuple[Path, str | None] | None:
    """The newest intact checkpoint at `path` or beside it.

    Returns:
        The file, and a sentence about why it is not the newest one, or None where it is; None if
        there never was a checkpoint.

    Raises:
        ValueError: There are checkpoints, and none is intact.
    """
    previous = previous_of(path)
    if not path.exists() and not previous.exists():
        return None
    try:
        _check(path)
    except ValueError as error:
        if not previous.exists():
            raise
        _check(previous)
        return previous, f"{error}; resuming from the one before it, {previous.name}"
    return path, None


def _keep(path: Path, previous: Path) -> None:
    try:
        # A second name for the same file: at no moment is there no newest checkpoint.
        previous.unlink(missing_ok=True)
        os.link(path, previous)
    except OSError:
        # Not every file system has hard links.
        path.replace(previous)


def _check(path: Path) -> None:
    """Opens a checkpoint; safetensors compares the file's length with what its header says."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: expected a checkpoint file: {error}") from error
