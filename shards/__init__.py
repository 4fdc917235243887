"""Formats on disk: pack, index, verify; no model, no training."""
