"""A table whose rows wait for their updates until they are read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from fastadv.batches.packing import TableRows


class WaitingRows(Protocol):
    """What an encoder asks of its word table's optimisers."""

    def catch_up(self, rows: TableRows) -> None:
        """Takes the updates that these rows missed. It is called before rows are read, and does
        nothing to rows that are up to date.
        """

    def reading(self) -> AbstractContextManager[None]:
        """Inside, the table is as it is after all steps. It is a copy, so that reading changes
        nothing that training resumes from.
        """

    def flush(self) -> None:
        """Brings every row up to date in place, before others read and change the whole table."""
