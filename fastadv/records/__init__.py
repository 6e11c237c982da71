"""What a run reports: metrics.jsonl, trackers, curves, warnings."""
