"""Flags of stored images, and reasons and limits for which other files are refused."""

import struct
from collections.abc import Callable
from enum import IntFlag, StrEnum
from functools import wraps
from typing import ParamSpec, TypeVar

from coreset.shards.errors import CoresetError

MAX_PIXELS = 89_478_485
"""256 MiB of RGB; where Pillow begins to warn of a decompression bomb."""
MAX_FILE_BYTES = 1 << 28
MAX_SEGMENTS = 1000
"""Segments of a JPEG, and chunks of a PNG or WebP beside its pixels. Pillow handles each in Python;
cameras and editors write up to a few hundred (an ICC profile alone may fill 255)."""
_ORIENTATION = 0x0112
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Flag(IntFlag):
    """Properties that a decoder must know before it decodes an image."""

    GREY = 1
    CMYK = 2
    EXIF_ROTATED = 4
    """The EXIF orientation is not upright; ignored, as torchvision does."""
    PROGRESSIVE = 8
    DEEP = 16
    ALPHA = 32
    PALETTE = 64
    MISNAMED = 128
    """The file's extension is that of another format."""
    ODD_SAMPLING = 256
    """JPEG whose colours are sampled as only Pillow reads it: 4:4:1, 4:1:0, 3 x 1 ..."""


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
    """Turn whatever ``codec`` raises on one file into a ``Refusal``: no file must end a packing.

    Errors of this project pass, and ``MemoryError``, which is no fault of the file.
    """

    @wraps(codec)
    def checked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return codec(*args, **kwargs)
        except (Refusal, CoresetError, MemoryError):
            raise
        except Exception as error:
            # The messages of codecs are ValueErrors; other types tell what their text does not.
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            detail = f"{kind}{error}"
            is_cut = "truncated" in detail or "premature end of jpeg file" in detail.lower()
            raise Refusal(Reason.TRUNCATED if is_cut else Reason.UNDECODABLE, detail) from error

    return checked


def require_size(width: int, height: int) -> None:
    """Refuse the size in a header before a decoder takes memory for it."""
    if width * height > MAX_PIXELS:
        raise Refusal(Reason.TOO_LARGE, f"{width} x {height} pixels, limit {MAX_PIXELS:,} pixels")
    if width * height == 0:
        raise Refusal(Reason.UNDECODABLE, f"{width} x {height} pixels")


def require_few(n: int, limit: int, what: str) -> None:
    """Refuse more than ``limit`` segments, chunks or bytes between them."""
    if n > limit:
        raise Refusal(Reason.TOO_MANY_SEGMENTS, f"more than {limit:,} {what}")


def exif_flag(tiff: bytes) -> Flag:
    """Return ``Flag.EXIF_ROTATED`` if the first directory of a block (TIFF 6.0) turns the image.

    Damaged blocks are common and harmless: they count as upright (Pillow's reader would warn).
    """
    byte_order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if byte_order is None or len(tiff) < 8:
        return Flag(0)
    (directory,) = struct.unpack_from(byte_order + "I", tiff, 4)
    if directory + 2 > len(tiff):
        return Flag(0)
    (n_entries,) = struct.unpack_from(byte_order + "H", tiff, directory)
    for at in range(directory + 2, min(directory + 2 + 12 * n_entries, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(byte_order + "HHIH", tiff, at)
        if tag == _ORIENTATION:
            return Flag.EXIF_ROTATED if 1 < value <= 8 else Flag(0)
    return Flag(0)
