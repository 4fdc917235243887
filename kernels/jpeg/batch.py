"""Decode all crops of a batch that need no resizing in one call per thread.

A call from Python to a decoder ends with a wait for the interpreter. Here a thread stays in
compiled code for the whole batch: it takes the next image from a queue, reads the file, decodes the
crop and writes the pixels.
"""

import ctypes
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.jpeg.ffi import address_of, call_c, fetch_add, setjmp
from coreset.kernels.jpeg.libjpeg import (
    BUFFER,
    MOST_ADDED,
    Functions,
    Memory,
    RegionDecoder,
    begin,
    crop_columns,
    destroy,
    is_plain,
    read_header,
    read_rows,
    warned,
)
from coreset.kernels.jpeg.normalise import (
    BYTES_ALIGNMENT,
    PLANE_ALIGNMENT,
    Rows,
    write_bytes,
    write_planes,
)
from coreset.kernels.jpeg.simd import fence, inner

IN_MEMORY = -2
"""Descriptor of an image whose bytes are in memory."""
MOST_BYTES = 1 << 20
"""Largest file that is decoded here."""
_ROWS_AT_ONCE = 16
"""Rows that fit in the L1 cache between decoding and normalising."""
Pixels: TypeAlias = NDArray[Any]
"""uint8, or normalised float32."""


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
    """Pixels; the crop lies inside the image."""
    tops: NDArray[np.int64]


class WorkQueue(NamedTuple):
    """Work queue of the threads that decode one batch."""

    next: NDArray[np.int64]
    """Shape (1,): position of the image that the next free thread takes; starts at 0."""
    decoded: NDArray[np.bool_]
    """Shape (b,): False for an image that is damaged, unreadable, of another size, or neither a
    grey nor a colour JPEG."""


class BatchDecoder:
    """Decoder of one thread; several of them work on one queue."""

    def __init__(self, decoder: RegionDecoder, *, size: int) -> None:
        """Allocate the buffers of a thread.

        Args:
            decoder: The decoder of this thread.
            size: Side of the crops in pixels.
        """
        self._decoder, self.size = decoder, size
        self._pread = ctypes.cast(ctypes.CDLL(None)["pread"], ctypes.c_void_p).value or 0
        rows = np.empty(3 * _ROWS_AT_ONCE * (size + MOST_ADDED) + 1, np.uint8)
        rows = rows[1 - rows.ctypes.data % 2 :]  # an odd address, see `pixel_memory`
        self._buffers = _Buffers(np.empty(MOST_BYTES, np.uint8), rows, decoder.memory)

    def decode(
        self,
        crops: CropBatch,
        queue: WorkQueue,
        out: Pixels,
        factors: NDArray[np.float32] | None = None,
        *,
        coarse: bool = False,
    ) -> None:
        """Decode images until the queue is empty; releases the interpreter.

        Args:
            crops: Images of the batch.
            queue: The queue that all threads share.
            out: uint8 of shape (b, s * s * 3), or with ``factors`` float32 of shape (b, 3, s * s).
                Rows of images that are not decoded are undefined.
            factors: Result of `coreset.kernels.jpeg.normalise.factors_of`; None keeps uint8.
            coarse: Use libjpeg-turbo's faster transform and upsampling.
        """
        mode = _Mode(self.size, _can_stream(out, self.size), coarse)
        jpeg = self._decoder.functions
        _decode_batch(jpeg, self._pread, crops, queue, mode, out, factors, self._buffers)


class _Mode(NamedTuple):
    size: int
    stream: bool
    coarse: bool


class _Buffers(NamedTuple):
    """Memory of one thread."""

    encoded: NDArray[np.uint8]
    rows: NDArray[np.uint8]
    libjpeg: Memory


class _Crop(NamedTuple):
    """Crop of one image whose file is in memory."""

    data: tuple[int, int]
    """Address and length of the file."""
    width: int
    height: int
    left: int
    top: int


class _Addresses(NamedTuple):
    """Addresses of the memory that is written; `coreset.kernels.jpeg.ffi` says why no arrays."""

    out: int
    rows: int
    libjpeg: int


def _can_stream(out: Pixels, size: int) -> bool:
    """Test whether every row begins where `stream_planes` or `stream_bytes` can write."""
    row, unit = (
        (3 * size, BYTES_ALIGNMENT) if out.dtype == np.uint8 else (4 * size, PLANE_ALIGNMENT)
    )
    return row % unit == 0 and out.ctypes.data % unit == 0


@kernel
def _decode_batch(  # noqa: PLR0917 - Numba takes no None in a tuple
    jpeg: Functions,
    pread: int,
    crops: CropBatch,
    queue: WorkQueue,
    mode: _Mode,
    out: Pixels,
    factors: NDArray[np.float32] | None,
    buffers: _Buffers,
) -> None:
    """Decode as `BatchDecoder.decode`; the arrays live as long as this call."""
    factors_at = None if factors is None else address_of(factors)
    while True:
        at = fetch_add(queue.next)
        if at >= queue.decoded.size:
            break
        address, n_bytes = int(crops.starts[at]), int(crops.lengths[at])
        if n_bytes == 0:
            continue
        if crops.descriptors[at] != IN_MEMORY:
            start, address = address, address_of(buffers.encoded)
            if call_c(pread, (crops.descriptors[at], address, n_bytes, start)) != n_bytes:
                continue
        width, height = int(crops.widths[at]), int(crops.heights[at])
        left, top = int(crops.lefts[at]), int(crops.tops[at])
        crop = _Crop((address, n_bytes), width, height, left, top)
        image = address_of(out) + at * out.strides[0]
        addresses = _Addresses(image, address_of(buffers.rows), address_of(buffers.libjpeg))
        queue.decoded[at] = _decode_one(jpeg, crop, mode, addresses, factors_at)


@inner
def _decode_one(
    jpeg: Functions, crop: _Crop, mode: _Mode, addresses: _Addresses, factors: int | None
) -> bool:
    """Decode one crop; False after an error of libjpeg, which jumps back to the first line."""
    if setjmp(addresses.libjpeg + BUFFER):
        destroy(jpeg, addresses.libjpeg)
        return False
    read_header(jpeg, crop.data, addresses.libjpeg)
    good = is_plain(crop.width, crop.height, addresses.libjpeg)
    if good:
        begin(jpeg, mode.coarse, addresses.libjpeg)
        good = _decode_rows(jpeg, crop, mode, addresses, factors)
        if good and crop.top + mode.size == crop.height:
            call_c(jpeg.jpeg_finish_decompress, (addresses.libjpeg,))  # notices a missing end
        good = good and not warned(addresses.libjpeg)
    call_c(jpeg.jpeg_abort_decompress, (addresses.libjpeg,))
    return good


@inner
def _decode_rows(
    jpeg: Functions, crop: _Crop, mode: _Mode, addresses: _Addresses, factors: int | None
) -> bool:
    """Decode and write the rows of a crop; False if its columns exceed the buffer."""
    first, n_columns = 0, crop.width
    if mode.size < crop.width:
        first, n_columns = crop_columns(jpeg, crop.left, crop.left + mode.size, addresses.libjpeg)
        if not 0 < n_columns <= mode.size + MOST_ADDED:
            return False
    call_c(jpeg.jpeg_skip_scanlines, (addresses.libjpeg, crop.top))
    direct = factors is None and not mode.stream and n_columns == mode.size
    for top in range(0, mode.size, _ROWS_AT_ONCE):
        n_rows = min(mode.size - top, _ROWS_AT_ONCE)
        target = addresses.out + 3 * top * mode.size if direct else addresses.rows
        read_rows(jpeg, n_rows, 3 * n_columns, target, addresses.libjpeg)
        if not direct:
            source = addresses.rows + 3 * (crop.left - first)
            rows = Rows(source, 3 * n_columns, top * mode.size, n_rows, mode.size, mode.stream)
            _write(rows, addresses.out, factors)
    if mode.stream:
        fence()
    return True


@inner
def _write(rows: Rows, out: int, factors: int | None) -> None:
    """Write decoded rows to the crop at the address ``out``."""
    if factors is None:
        write_bytes(rows, out)
    else:
        write_planes(rows, factors, out, 4 * rows.n_columns * rows.n_columns)
