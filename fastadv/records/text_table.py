"""Plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in aligned columns: the first `left` of them to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]

    def row(cells: list[str]) -> str:
        pairs = zip(cells, widths, strict=True)
        aligned = (c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(pairs))
        return "  ".join(aligned).rstrip()

    return "\n".join([row(lines[0]), "  ".join("-" * w for w in widths), *map(row, lines[1:])])
