"""What step_time.py and the other scripts are made of: batches, systems, baselines, checks."""
