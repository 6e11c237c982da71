"""What a run says: metrics.jsonl, trackers, curves, warnings."""
