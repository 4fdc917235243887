"""Evaluation of condensed sets."""
