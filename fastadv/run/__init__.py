"""One run: the loop, checkpoints, stops, best/ and mean/."""
