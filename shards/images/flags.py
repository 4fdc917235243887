"""Flags of stored images, refusals of other files, and the JPEG header, which tells of both.

Markers of a JPEG are those of ITU T.81, annex B. A decoder's work is bounded by pixels and bytes
only while scans are few, see docs/packing.md.
"""

import re
import struct
from collections.abc import Callable, Generator
from enum import IntFlag, StrEnum
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

from coreset.shards.errors import CoresetError

MAX_PIXELS = 89_478_485
"""256 MiB of RGB; where Pillow begins to warn of a decompression bomb."""
MAX_FILE_BYTES = 1 << 28
MAX_SEGMENTS = 1000
"""Segments of a JPEG, and chunks of a PNG or WebP beside its pixels. Pillow handles each in Python;
cameras and editors write up to a few hundred (an ICC profile alone may fill 255)."""
MAX_SCANS = 100
"""Limit of a progressive JPEG. Encoders write 10, optimisers some 20; nvImageCodec takes 256."""
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS
"""Limit of all scans of a progressive JPEG together: large images may have fewer."""

# Start-of-frame markers (table B.1) without DHT, JPG and DAC, which lie between them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE_FRAMES = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_END, _SCAN, _EXIF = 0xD9, 0xDA, 0xE1
_LOSSLESS_FRAMES = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_READ = _FRAMES | {_SCAN, _EXIF}
_UNDEFINED = frozenset(range(0xC0)) - {0x01}
_ALONE = frozenset({0x01, 0xFF, *range(0xD0, _END + 1)})
"""Without a length, or filling."""
_MOST_PADDING = 1 << 16
"""Bytes before the first scan that belong to no segment; Pillow reads each in Python."""
_FILL = re.compile(rb"\xff{2,}")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Horizontal and vertical factors of the first component (and of black) and of the two with the
# colours that the TurboJPEG API, and so simplejpeg, knows, beside equal ones of few blocks.
_SUBSAMPLED = (0x21, 0x11), (0x12, 0x11), (0x22, 0x11), (0x41, 0x11), (0x22, 0x12), (0x22, 0x21)
_COMMON = {
    *(bytes((first, colour, colour)) for first, colour in _SUBSAMPLED),
    *(bytes((first, colour, colour, first)) for first, colour in _SUBSAMPLED),
    *(bytes([both]) * 3 for both in range(256) if (both >> 4) * (both & 15) <= 3),
    *(bytes([both]) * 4 for both in range(256) if (both >> 4) * (both & 15) <= 2),
}
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


# As numbers: joining Python's flags takes a microsecond.
_PROGRESSIVE, _DEEP, _ODD_SAMPLING = map(int, (Flag.PROGRESSIVE, Flag.DEEP, Flag.ODD_SAMPLING))
_COLOURS = {1: int(Flag.GREY), 4: int(Flag.CMYK)}


class _Frame(NamedTuple):
    width: int
    height: int
    n_components: int
    bits: int
    most_scans: int


def read_header(data: bytes) -> tuple[int, int, Flag]:
    """Read width, height and flags; up to the first scan, or all where more scans may follow."""
    frame, bits, n_scans = None, 0, 0
    for marker, start, stop in _segments(data):
        if frame is None:
            if marker in _FRAMES:
                frame = _frame(marker, data[start:stop])
                bits |= frame.bits
            elif marker == _EXIF and data.startswith(b"Exif\0\0", start):
                bits |= int(exif_flag(data[start + 6 : stop]))
        elif marker == _SCAN:
            n_scans += 1
            if n_scans == 1 and data[start] == frame.n_components and not bits & _PROGRESSIVE:
                break  # libjpeg refuses a second scan
            if n_scans > frame.most_scans:
                size = f"{frame.width} x {frame.height} pixels"
                detail = f"more than {frame.most_scans} scans of {size}"
                raise Refusal(Reason.TOO_MANY_SCANS, detail)
    if frame is None or n_scans == 0:
        missing = "the frame header" if frame is None else "the first scan"
        raise Refusal(Reason.TRUNCATED, f"ends at byte {len(data)}, before {missing}")
    return frame.width, frame.height, Flag(bits)


def _segments(data: bytes) -> Generator[tuple[int, int, int]]:
    """Yield marker, start and stop of those segments that matter, up to the end of the image."""
    at, n_padding = 2, 0
    for _ in range(MAX_SEGMENTS):
        if at + 4 >= len(data):
            return
        marker = data[at + 1]
        if data[at] != 0xFF or marker in _UNDEFINED:
            raise Refusal(Reason.UNDECODABLE, f"no marker at byte {at}")
        if marker in _ALONE:
            if marker == _END:
                return
            # Of a run of 0xFF, the last one begins a marker.
            fill = _FILL.match(data, at)
            n_skipped = fill.end() - at - 1 if fill else 2
            at, n_padding = at + n_skipped, n_padding + n_skipped
            require_few(n_padding, _MOST_PADDING, "bytes between segments")
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if length < 2:
            raise Refusal(Reason.UNDECODABLE, f"a segment of {length} bytes at byte {at}")
        if marker in _READ:
            yield marker, at + 4, at + 2 + length
        at += 2 + length
        if marker == _SCAN:
            match = _AFTER_SCAN.search(data, at)
            at = match.start() if match else len(data)
    require_few(MAX_SEGMENTS + 1, MAX_SEGMENTS, "segments")


def _frame(marker: int, content: bytes) -> _Frame:
    if len(content) < 6 or len(content) != 6 + 3 * content[5]:
        raise Refusal(Reason.UNDECODABLE, f"a frame header of {len(content)} bytes")
    if marker in _LOSSLESS_FRAMES:
        raise Refusal(Reason.UNSUPPORTED_FORMAT, "lossless image/jpeg")
    precision, n_components = content[0], content[5]
    height, width = content[1] << 8 | content[2], content[3] << 8 | content[4]
    require_size(width, height)
    bits = _COLOURS.get(n_components, 0)
    most_scans = n_components  # each of a sequential one comes once
    if marker in _PROGRESSIVE_FRAMES:
        bits |= _PROGRESSIVE
        most_scans = min(MAX_SCANS, MAX_SCANNED_PIXELS // (width * height))
    bits |= _DEEP if precision > 8 else 0
    bits |= _ODD_SAMPLING if n_components in {3, 4} and content[7::3] not in _COMMON else 0
    return _Frame(width, height, n_components, bits, most_scans)
