"""Writes the API reference, from the docstrings: python docs/api.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

# Beside fastadv itself. The other modules are how it is made, and may change at any time.
PUBLIC = (
    "backends",
    "data",
    "nn.encoder",
    "nn.packed_encoder",
    "ops",
    "records.discriminator_health",
    "records.plots",
    "records.task_health",
    "records.trackers",
    "reference",
    "samples",
    "selection",
    "tasks.labels",
    "tasks.metrics",
)


def write(folder: Path) -> None:
    """A page a module, and an index of them."""
    pdoc.render.configure(docformat="google")
    modules = [f"fastadv.{name}" for name in PUBLIC]
    # Packages say in __all__ what is theirs to show; pdoc leaves their other modules out.
    pdoc.pdoc("fastadv", *modules, output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
