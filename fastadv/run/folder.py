"""Names in the folder of a run."""

from __future__ import annotations

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
# Models: of the step that is chosen, of the last step, and of the mean of the weights.
BEST, LAST, MEAN = "best", "last", "mean"
