"""BERT's masking, chosen anew for every batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastadv.batches.packing import PackedBatch

# Shares of the tokens to predict that become [MASK] or a random piece; the rest stay.
MASKED, RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class MaskedBatch(PackedBatch):
    """A batch some of whose tokens are to be predicted.

    Attributes:
        masked: (M,) int64, the indices of these tokens among the T packed ones, ascending.
        labels: (M,) int64, the original ids.
    """

    masked: Tensor | None = None


def mask_tokens(
    input_ids: NDArray[np.int64],
    ordinary: NDArray[np.bool_],
    rate: float,
    vocabulary: NDArray[np.int64],
    mask_id: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Chooses tokens to predict and hides them (Devlin et al. 2019, 3.1 and appendix A.1; anew each
    time as in Liu et al. 2019, 4.1).

    Args:
        input_ids: (T,), not changed.
        ordinary: (T,), False for special tokens, which are never chosen.
        rate: The probability that a token is chosen; 80% of the chosen become `mask_id`, 10% a
            random piece, and 10% stay. At least one is chosen, where there is an ordinary token.
        vocabulary: (W,) the ids that a random piece is drawn from.
        rng: The source of randomness.

    Returns:
        The ids to read (T,), the indices of the chosen tokens (M,), and their original ids (M,).
    """
    indices = np.flatnonzero(ordinary & (rng.random(len(input_ids)) < rate))
    candidates = np.flatnonzero(ordinary)
    if not len(indices) and len(candidates):
        indices = candidates[[int(rng.integers(len(candidates)))]]
    read, labels = input_ids.copy(), input_ids[indices]
    fate = rng.random(len(indices))
    read[indices[fate < MASKED]] = mask_id
    swapped = indices[(fate >= MASKED) & (fate < MASKED + RANDOM)]
    read[swapped] = vocabulary[rng.integers(len(vocabulary), size=len(swapped))]
    return read, indices, labels
