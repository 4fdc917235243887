"""Readers of condensed sets that others made, one file each."""
