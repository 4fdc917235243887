"""Names of the networks that students may be, and the smallest images; imports no torch."""

from coreset.engine.runtime.fields import require_at_least
from coreset.shards.errors import UsageError

TIMM = "timm:"
"""Prefix of any other student: a model of timm, with norm layers of its own."""
SMALLEST_SIZE = {"resnet18": 33, "resnet50": 33, "resnetap10": 64, "convnet": 8}
"""Side of an image whose last feature map has more than one pixel: instance norm of one is zero."""


def require_student(name: str, size: int | None, option: str = "student") -> None:
    """Refuse a name of no student, and images too small for it; timm's own names come later.

    ``option`` is that of the command line which gave the name.
    """
    if name not in SMALLEST_SIZE and not name.startswith(TIMM):
        choices = ", ".join(SMALLEST_SIZE)
        raise UsageError(f"{option} must be one of {choices}, or {TIMM}NAME, got {name}")
    if size is not None:
        require_at_least(f"size of --{option} {name}", size, SMALLEST_SIZE.get(name, 1))
