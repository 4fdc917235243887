"""Write decoded pixels to a batch: normalised to planes, or all crops in one call per thread."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.jpeg import pixel_memory
from coreset.kernels.jpeg.ffi import address_of, call_c, fetch_add, load_at, pread, setjmp, store_at
from coreset.kernels.jpeg.libjpeg import (
    BUFFER,
    MOST_ADDED,
    Functions,
    RegionDecoder,
    begin,
    crop_columns,
    destroy,
    is_plain,
    read_header,
    read_rows,
    warned,
)
from coreset.kernels.jpeg.simd import LANES, fence, inner, stream_bytes, stream_planes

IN_MEMORY = -2
"""Descriptor of an image whose bytes are in memory."""
MOST_BYTES = 1 << 20
"""Largest file that `decode_batch` decodes."""
PLANE_ALIGNMENT = 64
"""Alignment in bytes with which planes are written past the caches."""
_ROWS_AT_ONCE = 16  # fit in the L1 cache between decoding and normalising


@kernel
def normalised_planes(
    image_hwc: NDArray[np.uint8], factors: NDArray[np.float32], out_chw: NDArray[np.float32]
) -> None:
    """Write ``pixel * factors[0, c] + factors[1, c]`` of a C-contiguous image to planes.

    Thread safe; releases the interpreter. The first call compiles.
    """
    planes, plane = address_of(out_chw), out_chw.strides[0]
    stream = planes % PLANE_ALIGNMENT == 0 and plane % PLANE_ALIGNMENT == 0
    rows = _Rows(address_of(image_hwc), 0, 1, plane // 4, stream)
    _write_planes(rows, address_of(factors), planes, plane)
    fence()


def factors_of(mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Return the factors that turn uint8 into ``(pixel / 255 - mean) / std``, float32 (2, 3)."""
    spread = np.asarray(std, np.float64)
    return np.stack([1 / (255 * spread), -np.asarray(mean) / spread]).astype(np.float32)


class CropBatch(NamedTuple):
    """Files of a batch and the place of the crop in each image, int64 of shape (b,)."""

    descriptors: NDArray[np.int64]
    """Open files, or `IN_MEMORY`."""
    starts: NDArray[np.int64]
    """Offset in the file, or address in memory."""
    lengths: NDArray[np.int64]
    """Bytes, at most `MOST_BYTES`; 0 skips the image."""
    widths: NDArray[np.int64]
    """Pixels of the whole image; an image of another size is refused."""
    heights: NDArray[np.int64]
    lefts: NDArray[np.int64]
    tops: NDArray[np.int64]


class WorkQueue(NamedTuple):
    """Work queue of the threads that decode one batch."""

    next: NDArray[np.int64]
    """Shape (1,): position of the image that the next free thread takes; starts at 0."""
    decoded: NDArray[np.bool_]
    """Shape (b,): False for an image that is damaged, unreadable, of another size, or neither a
    grey nor a colour JPEG."""


def decode_batch(
    decoder: RegionDecoder,
    crops: CropBatch,
    queue: WorkQueue,
    out: NDArray[Any],
    factors: NDArray[np.float32] | None,
    *,
    coarse: bool,
) -> None:
    """Decode images until the queue is empty; for each thread to call with a decoder of its own.

    Releases the interpreter. The pixels go to ``out``, C-contiguous: uint8 of shape (b, s, s, 3),
    or with the result of `factors_of` float32 of shape (b, 3, s, s). Rows of images that are not
    decoded are undefined. Each crop lies inside its image. ``coarse`` uses libjpeg-turbo's faster
    transform and upsampling.
    """
    size = out.shape[2]
    # Every row of a batch must begin where `stream_bytes` or `stream_planes` can write.
    row, unit = (3 * size, LANES) if factors is None else (4 * size, PLANE_ALIGNMENT)
    stream = row % unit == out.ctypes.data % unit == 0
    buffer = pixel_memory(MOST_BYTES + 3 * _ROWS_AT_ONCE * (size + MOST_ADDED))
    encoded, rows = buffer.ctypes.data, buffer[MOST_BYTES:].ctypes.data
    mode = _Mode(size, stream, coarse, encoded, rows, decoder.memory.ctypes.data)
    _decode_batch(decoder.functions, crops, queue, mode, out, factors)


class _Mode(NamedTuple):
    """Settings, and addresses of the memory; `coreset.kernels.jpeg.ffi` says why no arrays."""

    size: int
    stream: bool
    coarse: bool
    encoded: int
    rows: int
    libjpeg: int


class _Crop(NamedTuple):
    data: tuple[int, int]  # address and length of the file
    width: int
    height: int
    left: int
    top: int
    out: int


class _Rows(NamedTuple):
    """Rows of RGB bytes, ``stride`` bytes apart, to be written without gaps."""

    source: int
    stride: int
    n_rows: int
    n_columns: int
    stream: bool
    """Write past the caches: all targets must be aligned, and a `fence` must follow."""


@kernel
def _decode_batch(  # noqa: PLR0917 - Numba takes no None in a tuple
    jpeg: Functions,
    crops: CropBatch,
    queue: WorkQueue,
    mode: _Mode,
    out: NDArray[Any],
    factors: NDArray[np.float32] | None,
) -> None:
    factors_at = None if factors is None else address_of(factors)
    while True:
        at = fetch_add(queue.next)
        if at >= queue.decoded.size:
            break
        address, n_bytes = int(crops.starts[at]), int(crops.lengths[at])
        if n_bytes == 0:
            continue
        if crops.descriptors[at] != IN_MEMORY:
            start, address = address, mode.encoded
            if pread(crops.descriptors[at], address, n_bytes, start) != n_bytes:
                continue
        width, height = int(crops.widths[at]), int(crops.heights[at])
        left, top = int(crops.lefts[at]), int(crops.tops[at])
        image = address_of(out) + at * out.strides[0]
        crop = _Crop((address, n_bytes), width, height, left, top, image)
        queue.decoded[at] = _decode_one(jpeg, crop, mode, factors_at)


@inner
def _decode_one(jpeg: Functions, crop: _Crop, mode: _Mode, factors: int | None) -> bool:
    """Decode one crop; False after an error of libjpeg, which jumps back to the first line."""
    if setjmp(mode.libjpeg + BUFFER):
        destroy(jpeg, mode.libjpeg)
        return False
    read_header(jpeg, crop.data, mode.libjpeg)
    good = is_plain(crop.width, crop.height, mode.libjpeg)
    if good:
        begin(jpeg, mode.coarse, mode.libjpeg)
        good = _decode_rows(jpeg, crop, mode, factors)
        if good and crop.top + mode.size == crop.height:
            call_c(jpeg.jpeg_finish_decompress, (mode.libjpeg,))  # notices a missing end
        good = good and not warned(mode.libjpeg)
    call_c(jpeg.jpeg_abort_decompress, (mode.libjpeg,))
    return good


@inner
def _decode_rows(jpeg: Functions, crop: _Crop, mode: _Mode, factors: int | None) -> bool:
    """Decode and write the rows of a crop; False if its columns exceed the buffer."""
    first, n_columns = 0, crop.width
    if mode.size < crop.width:
        first, n_columns = crop_columns(jpeg, crop.left, crop.left + mode.size, mode.libjpeg)
        if not 0 < n_columns <= mode.size + MOST_ADDED:
            return False
    call_c(jpeg.jpeg_skip_scanlines, (mode.libjpeg, crop.top))
    source = mode.rows + 3 * (crop.left - first)
    for top in range(0, mode.size, _ROWS_AT_ONCE):
        n_rows = min(mode.size - top, _ROWS_AT_ONCE)
        read_rows(jpeg, n_rows, 3 * n_columns, mode.rows, mode.libjpeg)
        rows = _Rows(source, 3 * n_columns, n_rows, mode.size, mode.stream)
        if factors is None:
            _write_bytes(rows, crop.out + 3 * top * mode.size)
        else:
            planes = crop.out + 4 * top * mode.size
            _write_planes(rows, factors, planes, 4 * mode.size * mode.size)
    if mode.stream:
        fence()
    return True


@inner
def _write_planes(rows: _Rows, factors: int, planes: int, plane: int) -> None:
    """Normalise rows by the factors at an address to planes of ``plane`` bytes at another."""
    for row in range(rows.n_rows):
        source = rows.source + row * rows.stride
        target = planes + 4 * row * rows.n_columns
        if rows.stream:
            for i in range(0, rows.n_columns, 16):
                stream_planes(source + 3 * i, factors, target + 4 * i, plane)
        else:
            for channel in range(3):
                scale = load_at(factors + 4 * channel, np.float32)
                shift = load_at(factors + 12 + 4 * channel, np.float32)
                for i in range(rows.n_columns):
                    pixel = np.float32(load_at(source + 3 * i + channel, np.uint8))
                    store_at(target + channel * plane + 4 * i, pixel * scale + shift)


@inner
def _write_bytes(rows: _Rows, out: int) -> None:
    """Copy rows to an address; streaming needs multiples of `LANES`."""
    n = 3 * rows.n_columns
    for row in range(rows.n_rows):
        source, target = rows.source + row * rows.stride, out + row * n
        if rows.stream:
            for i in range(0, n, LANES):
                stream_bytes(source + i, target + i)
        else:
            for i in range(n):
                store_at(target + i, load_at(source + i, np.uint8))
