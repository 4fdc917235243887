"""Checks of numbers that users give."""

from coreset.shards.errors import UsageError


def require_at_least(name: str, value: float, least: float) -> None:
    """Raise ``UsageError`` unless ``value >= least``."""
    if not value >= least:
        raise UsageError(f"{name} must be at least {least}, got {value}")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise ``UsageError`` unless ``low <= value < high``."""
    if not low <= value < high:
        raise UsageError(f"{name} must be in [{low}, {high}), got {value}")
