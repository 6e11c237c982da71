"""Measurements behind class shares: ways to draw English, and thresholds of the estimate."""
