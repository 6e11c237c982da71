"""`metrics.jsonl`, the record of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, in the order of the steps.

    Args:
        path: The file, or None to keep records in memory alone.
        length: Bytes that a checkpoint vouches for; what follows them was written by a run that
            was stopped later, and is cut off.
    """

    def __init__(self, path: Path | None, length: int = 0) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        found = path.stat().st_size
        if found < length:
            raise ValueError(
                f"{path}: found {found} bytes, expected at least the {length} of the checkpoint"
            )
        os.truncate(path, length)
        self.records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    @property
    def length(self) -> int:
        return 0 if self.path is None else self.path.stat().st_size

    def write(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OSError(f"{self.path}: cannot write a record: {error}") from error
