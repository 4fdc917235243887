"""Scores from training dynamics: proxy, run, checkpoints, score table."""
