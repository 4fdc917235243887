"""Result of a command: lines for people, data for machines, and the error that it ends in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coreset.shards.errors import CoresetError


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a command."""

    lines: tuple[str, ...]
    """For people; the last one names the next command."""
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """For machines (``--json``)."""
    error: CoresetError | None = None
    """Raised once the lines are printed, by commands whose findings matter when they fail."""
