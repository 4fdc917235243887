"""Condensed sets: coresets and distilled sets."""
