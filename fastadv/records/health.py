"""Everything that a run's records show to be wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastadv.config import FinetuneConfig
from fastadv.records import discriminator_health, task_health


def diagnose(
    records: Sequence[Mapping[str, Any]], config: FinetuneConfig, guessing: float
) -> list[str]:
    """What the last training record is the first to show, in words; see the two modules.

    Args:
        records: Records of metrics.jsonl so far; only training records count.
        config: The configuration of the run, with its learning rates filled in.
        guessing: The mean task loss of guessing, in nats (`TokenizedDataset.guessing_loss`).
    """
    found = (
        task_health.diagnose(records, config, guessing),
        discriminator_health.diagnose(records, config),
    )
    return [message for message in found if message is not None]
