"""Measured comparisons: one file per question, results as JSON lines."""
