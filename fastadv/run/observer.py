"""What looks at a model during a run, beyond scores on labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Observer(Protocol):
    """Called by `fit` at every evaluation of the model that it was made with, which it must leave
    as it is.
    """

    def observe(self, step: int) -> Mapping[str, Any]:
        """What is kept in the evaluation's record as "observed": anything JSON can hold.

        Args:
            step: Steps done; the weights are as they are after them.
        """
