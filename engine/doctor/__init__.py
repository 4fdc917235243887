"""Checks of a machine: its device against the CPU, its speeds."""
