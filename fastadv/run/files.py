"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError


def write_atomically(path: Path, text: str) -> None:
    """Puts a file in place whole; a stop at any point leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a new folder, then puts it where `path` is; the old one goes last.

    Args:
        path: The folder to make or to replace.
        write: Called with an empty folder beside `path`.

    Raises:
        OSError: The folder cannot be written, for instance because the disk is full; the old one
            is untouched.
    """
    fresh = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
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
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: cannot write the model: {error}") from error
    finally:
        if fresh is not None and fresh.exists():
            shutil.rmtree(fresh)


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
