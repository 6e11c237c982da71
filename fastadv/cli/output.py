"""Where a command's results go: standard output, or a file that appears whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO


@contextmanager
def text_output(path: str) -> Iterator[TextIO]:
    """UTF-8 text to `path`, or for "-" to standard output; see `binary_output`."""
    if path == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            # JSON is UTF-8, whatever the terminal's locale.
            sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    with binary_output(path) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8", newline="\n", write_through=True)
        try:
            yield text
            text.flush()
        finally:
            text.detach()


@contextmanager
def binary_output(path: str) -> Iterator[BinaryIO]:
    """Bytes to a file next to `path`, which is renamed to `path` at the end and removed on failure.

    Anything but an ordinary file, such as a named pipe, is written to directly.

    Raises:
        ValueError: `path` is a folder, or its folder does not exist.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{path}: found a folder, expected a file to write")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{path}: found no folder {target.parent}, expected it to exist")
    try:
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            with target.open("wb") as special:
                yield special
            return
        # A link is followed, so that the file behind it is replaced.
        with _replacing(target.resolve()) as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None:
            # An error from a write does not name the file.
            error.filename = path
        raise


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(target.stat().st_mode if target.exists() else 0o666 & ~_umask())
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def give_up_stdout() -> None:
    """If standard output accepts nothing more, makes the interpreter's last flush go nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
