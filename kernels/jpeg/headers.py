"""Read the headers of a batch of JPEG files in one call, as far as a decoder's memory needs it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.jpeg.ffi import load_at
from coreset.kernels.jpeg.simd import inner

# Markers of ITU T.81, table B.1.
_FILL, _START, _SCAN = 0xFF, 0xD8, 0xDA
_TABLES = (0xC4, 0xCC)
"""The only ones from 0xC0 to 0xCF that begin no frame."""
_LAST_PLAIN_FRAME = 0xC2
"""Baseline, extended and progressive; those above are lossless, differential or arithmetic."""
_COMMON = (0x1111, 0x2111, 0x1211, 0x2211, 0x4111, 0x2212, 0x2221)
"""Horizontal and vertical factors of the first component, then of the two with the colours."""


def as_arrays(files: Sequence[bytes | NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """View the bytes of files as arrays, of which none is empty: that has no address."""
    return [np.frombuffer(data if len(data) else b"-", np.uint8) for data in files]


def addresses_of(files: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """Return where each file lies in memory, which holds as long as the file is kept."""
    return np.array([file.__array_interface__["data"][0] for file in files], np.int64)


@kernel
def plain_jpegs(
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Test files for grey or colour JPEGs of 8 bits, common sampling and the sizes expected.

    Thread safe; releases the interpreter. The first call compiles. Other files may be sound, and
    are for a decoder that knows more kinds.

    Args:
        starts: Addresses of the files, shape (b,).
        lengths: Bytes, shape (b,).
        widths: Pixels, shape (b,).
        heights: Pixels, shape (b,).

    """
    plain = np.zeros(starts.size, np.bool_)
    for i in range(starts.size):
        frame = _frame_of(starts[i], lengths[i])
        if frame != 0 and _byte(frame) == 8:
            same = _pair(frame + 1) == heights[i] and _pair(frame + 3) == widths[i]
            plain[i] = same and _is_common(frame + 5)
    return plain


@inner
def _frame_of(start: int, length: int) -> int:
    """Return the address of the only frame header before the first scan; 0 if there is none."""
    end, at, frame = start + length, start + 2, 0
    if length < 4 or _byte(start) != _FILL or _byte(start + 1) != _START:
        return 0
    while at + 4 <= end and _byte(at) == _FILL:
        marker = _byte(at + 1)
        if marker == _FILL:
            at += 1
            continue
        if marker == _SCAN:
            return frame
        stop = at + 2 + _pair(at + 2)
        if marker < 0xC0 or 0xD0 <= marker < _SCAN or stop > end:
            return 0
        if marker < 0xD0 and marker not in _TABLES:
            if frame != 0 or marker > _LAST_PLAIN_FRAME or stop < at + 10:
                return 0
            frame = at + 4
            if stop != frame + 6 + 3 * _byte(frame + 5):
                return 0
        at = stop
    return 0


@inner
def _is_common(components: int) -> bool:
    """Test the number of components and their sampling, 3 bytes each from the second byte on."""
    if _byte(components) == 1:
        return True
    first, second, third = (
        _byte(components + 2), _byte(components + 5), _byte(components + 8)
    )  # fmt: skip
    return _byte(components) == 3 and second == third and (first << 8 | second) in _COMMON


@inner
def _pair(address: int) -> int:
    return _byte(address) << 8 | _byte(address + 1)


@inner
def _byte(address: int) -> int:
    return np.int64(load_at(address, np.uint8))  # pyright: ignore[reportReturnType] - Numba's int
