"""Is the task being learned? Its loss so far, beside that of guessing, put in words.

Predictions that are the same for every text cost least where they are the labels' shares in the
training data, and then cost their entropy. A loss that stays there is of a model that has not
begun to read. The learning rate is the usual cause: the paper's were chosen for multilingual BERT
(Keung, Lu and Bhardwaj, EMNLP 2019, section 3.1), and leave a smaller encoder where it was. The
thresholds here are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastadv.config import FinetuneConfig

NOT_LEARNED = 0.9
"""Share of the loss of guessing; runs that learn are below 0.6 by the time of the verdict."""
LEAST_STEPS, MOST_STEPS = 30, 500
"""The verdict falls at half of the run, but not before and not after so many steps of it."""
STRETCH = 20
"""Steps whose mean loss is judged, at least: the means of ten vary by some 5%."""


def diagnose(
    records: Sequence[Mapping[str, Any]], config: FinetuneConfig, guessing: float
) -> str | None:
    """What to change where the task loss has not fallen, at the one record that decides, in words.

    A pure function, to be called after every training record: for the same records it says the
    same, so a resumed run says it at the same step and only once.

    Args:
        records: Records of metrics.jsonl so far; only training records count.
        config: The configuration of the run, with its learning rates filled in.
        guessing: The mean loss of guessing, in nats (`TokenizedDataset.guessing_loss`).

    Returns:
        A few sentences; None before the verdict, after it, and if the loss has fallen.
    """
    half = min(max(config.steps // 2, LEAST_STEPS), MOST_STEPS)
    due = half + config.warmup_steps
    trained = [record for record in records if record["kind"] == "train"]
    window = _window(trained, due)
    if window is None or _window(trained[:-1], due) is not None:
        return None
    if config.lr_task == 0:
        # Nobody who sets this expects the task to be learned.
        return None
    start, end, mean = window
    if mean < NOT_LEARNED * guessing:
        return None
    return _words(f"{mean:.3f} in steps {start + 1} to {end}", guessing, config)


def _window(trained: Sequence[Mapping[str, Any]], due: int) -> tuple[int, int, float] | None:
    """Start, end and mean loss of the last records that make a stretch; None before it is due."""
    total, end = 0.0, 0
    for place in range(len(trained) - 1, -1, -1):
        record = trained[place]
        start = trained[place - 1]["step"] if place else 0
        end = end or record["step"]
        total += record["loss_task"] * (record["step"] - start)
        if end - start >= STRETCH:
            # What a long record has of the beginning would hide that the loss has fallen since.
            return (start, end, total / (end - start)) if start >= due - STRETCH else None
    return None


def _words(seen: str, guessing: float, config: FinetuneConfig) -> str:
    words = (
        f"the task is hardly being learned: its loss is {seen}, and guessing by the labels' shares "
        f"costs {guessing:.3f}. Raise lr_task (now {config.lr_task:g}), tenfold at first: an "
        "encoder smaller than multilingual BERT needs more than the paper's rate."
    )
    if config.adversarial:
        words += (
            " If a run without the adversary learns at this rate, lower lr_generator "
            f"(now {config.lr_generator:g}) instead."
        )
    return words
