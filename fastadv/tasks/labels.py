"""What tasks have in common about labels."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastadv.data import Data, DataFile


def different_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels as a tuple.

    Raises:
        ValueError: They are not at least two different names.
    """
    found = tuple(labels)
    if isinstance(labels, str) or len(found) < 2 or len(set(found)) < len(found):
        raise ValueError(f"labels is {labels!r}, expected at least two different names")
    return found


def shown_data(data: Data) -> str:
    """How a message names labelled data: by its file, if there is one."""
    if isinstance(data, DataFile):
        return os.fspath(data.path)
    return os.fspath(data) if isinstance(data, str | os.PathLike) else "the labelled examples"
