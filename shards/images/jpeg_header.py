"""Markers of a JPEG (ITU T.81, annex B): size, kind, sampling and number of scans.

A decoder's work is bounded by pixels and bytes only while scans are few: each may run over all
blocks again for 11 bytes. The standard sets no limit; libjpeg-turbo leaves it to the caller.
"""

import re
from collections.abc import Generator
from functools import lru_cache
from typing import NamedTuple

from coreset.shards.images.flags import (
    MAX_PIXELS,
    MAX_SEGMENTS,
    Flag,
    Reason,
    Refusal,
    exif_flag,
    require_few,
    require_size,
)

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
# Horizontal and vertical factors of the first component and of the two with the colours.
_COMMON = frozenset({
    ((1, 1), (1, 1)), ((2, 1), (1, 1)), ((1, 2), (1, 1)), ((2, 2), (1, 1)), ((4, 1), (1, 1)),
    ((2, 2), (1, 2)), ((2, 2), (2, 1)),
})  # fmt: skip
# As numbers: joining Python's flags takes a microsecond.
_PROGRESSIVE, _DEEP, _ODD_SAMPLING = map(int, (Flag.PROGRESSIVE, Flag.DEEP, Flag.ODD_SAMPLING))
_COLOURS = {1: int(Flag.GREY), 4: int(Flag.CMYK)}
_MOST_EQUAL = {3: 3, 4: 2}
"""Blocks of each component in a unit, by components, where all factors are equal."""


class _Frame(NamedTuple):
    width: int
    height: int
    n_components: int
    bits: int


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
            _require_few_scans(n_scans, frame)
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
    bits |= _PROGRESSIVE if marker in _PROGRESSIVE_FRAMES else 0
    bits |= _DEEP if precision > 8 else 0
    bits |= 0 if _is_common(content[7::3]) else _ODD_SAMPLING
    return _Frame(width, height, n_components, bits)


@lru_cache(maxsize=64)
def _is_common(sampling: bytes) -> bool:
    """Test whether the TurboJPEG API, and so simplejpeg, knows the factors of the components."""
    if len(sampling) not in _MOST_EQUAL:
        return True
    factors = [divmod(byte, 16) for byte in sampling]
    first, second, third, *black = factors
    if len(set(factors)) == 1:
        return first[0] * first[1] <= _MOST_EQUAL[len(factors)]
    return second == third and (first, second) in _COMMON and black in ([], [first])


def _require_few_scans(n: int, frame: _Frame) -> None:
    limit = frame.n_components  # each of a sequential one comes once
    if frame.bits & _PROGRESSIVE:
        limit = min(MAX_SCANS, MAX_SCANNED_PIXELS // (frame.width * frame.height))
    if n > limit:
        size = f"{frame.width} x {frame.height} pixels"
        raise Refusal(Reason.TOO_MANY_SCANS, f"more than {limit} scans of {size}")
