"""Evaluation protocols, one file each."""
