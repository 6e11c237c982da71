"""Checkpoints: one safetensors file a run, replaced atomically, nothing pickled."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "fastadv-checkpoint-1"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON-serialisable state; a stop at any point leaves the old or the new.

    Args:
        path: The file; its folder is made if need be.
        tensors: Any dtype and device.
        state: What is not a tensor.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, temporary, metadata={"format": FORMAT, "state": json.dumps(state)})
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
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


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a new folder, then puts it where `path` is; the old one goes last.

    Args:
        path: The folder to make or to replace.
        write: Called with an empty folder beside `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        write(fresh)
        fresh.chmod(0o755)
        if path.exists():
            # A folder cannot be renamed over a full one, so for a moment neither name is taken.
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.replace(old / path.name)
            fresh.replace(path)
            shutil.rmtree(old)
        else:
            fresh.replace(path)
    finally:
        if fresh.exists():
            shutil.rmtree(fresh)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
