"""Reasons why files are not packed, and the limits of those that are.

Whatever a codec raises on a file refuses that file alone: one file must not end a packing, a check
or a run that reads thousands of others.
"""

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import ParamSpec, TypeVar

from coreset.shards.errors import CoresetError

MAX_PIXELS = 89_478_485
"""256 MiB of RGB; where Pillow begins to warn of a decompression bomb."""
MAX_FILE_BYTES = 1 << 28
MAX_SEGMENTS = 1000
"""Segments of a JPEG, and chunks of a PNG or WebP beside its pixels. Pillow handles each in Python;
cameras and editors write up to a few hundred (an ICC profile alone may fill 255)."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Reason(StrEnum):
    """Reason why a file was not packed; stable, written to ``quarantine.parquet``."""

    EMPTY = "empty"
    NOT_A_FILE = "not-a-file"
    NOT_AN_IMAGE = "not-an-image"
    UNSUPPORTED_FORMAT = "unsupported-format"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    TOO_LARGE = "too-large"
    TOO_MANY_SCANS = "too-many-scans"
    TOO_MANY_SEGMENTS = "too-many-segments"


class Refusal(Exception):  # noqa: N818 - not a fault of the program: the file is listed and packing goes on
    """File that is not packed."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def refusing(codec: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Turn whatever ``codec`` raises on one file into a ``Refusal``.

    Errors of this project pass, and ``MemoryError``: the machine is short of memory, not the file
    at fault.
    """

    @wraps(codec)
    def checked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return codec(*args, **kwargs)
        except (Refusal, CoresetError, MemoryError):
            raise
        except Exception as error:
            raise _refusal(error) from error

    return checked


def require_size(width: int, height: int) -> None:
    """Check the size in a header before a decoder takes memory for it.

    Raises:
        Refusal: No pixels, or more than ``MAX_PIXELS``.
    """
    if width * height > MAX_PIXELS:
        raise Refusal(Reason.TOO_LARGE, f"{width} x {height} pixels, limit {MAX_PIXELS:,} pixels")
    if width * height == 0:
        raise Refusal(Reason.UNDECODABLE, f"{width} x {height} pixels")


def require_few(n: int, limit: int, what: str) -> None:
    """Check a count of segments, chunks or bytes between them.

    Raises:
        Refusal: More than ``limit``.
    """
    if n > limit:
        raise Refusal(Reason.TOO_MANY_SEGMENTS, f"more than {limit:,} {what}")


def _refusal(error: Exception) -> Refusal:
    # The messages of codecs are ValueErrors; other types tell what their text does not.
    detail = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    truncated = "truncated" in detail or "premature end of jpeg file" in detail.lower()
    return Refusal(Reason.TRUNCATED if truncated else Reason.UNDECODABLE, detail)
