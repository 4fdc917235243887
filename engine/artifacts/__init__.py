"""Artifacts on disk: provenance, ledger, checkpoints, columns."""
