"""Many JPEGs by one call: those of which a batch takes a square as it is, without resampling.

Every call from Python to a decoder ends with a wait for the interpreter: two threads that decode
images of 224 pixels one by one lose 30 of 200 us an image to it (by hand). Here a thread takes
image after image, reads it from its file, decodes it and writes it, and comes back when the batch
is done.
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
    PartDecoder,
    begin,
    crop,
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
    keep_bytes,
    keep_planes,
)
from coreset.kernels.jpeg.simd import fence, inner

IN_MEMORY = -2
"""Instead of a descriptor."""
MOST_BYTES = 1 << 20
"""Of a file. Larger ones are read by who has memory for them."""
_ROWS_AT_ONCE = 16
"""Decoded into the fastest cache before they are normalised."""
Pixels: TypeAlias = NDArray[Any]
"""uint8 where nothing is to be normalised, or float32."""


class CropBatch(NamedTuple):
    """Files of a batch, and where the square of each lies: int64 of shape (b,)."""

    descriptors: NDArray[np.int64]
    """Open files, or `IN_MEMORY`."""
    starts: NDArray[np.int64]
    """Bytes from the beginning of the file, or addresses."""
    lengths: NDArray[np.int64]
    """Bytes, at most `MOST_BYTES`; of 0 nothing is decoded."""
    widths: NDArray[np.int64]
    """Pixels of the whole image; one of another size is not decoded."""
    heights: NDArray[np.int64]
    lefts: NDArray[np.int64]
    """Pixels; the square lies inside the image."""
    tops: NDArray[np.int64]


class WorkQueue(NamedTuple):
    """What the threads at a batch share."""

    taken: NDArray[np.int64]
    """Shape (1,): images that threads have taken; 0 before the first."""
    done: NDArray[np.bool_]
    """Shape (b,): the images that were decoded. The others are damaged, not grey or colour JPEGs of
    their size, or cannot be read."""


class BatchDecoder:
    """Decodes images of batches in one thread, beside others of its kind."""

    def __init__(self, decoder: PartDecoder, *, size: int) -> None:
        """Allocate.

        Args:
            decoder: Of the same thread.
            size: Pixels of the squares.
        """
        self._decoder, self.size = decoder, size
        self._pread = ctypes.cast(ctypes.CDLL(None)["pread"], ctypes.c_void_p).value or 0
        rows = np.empty(3 * _ROWS_AT_ONCE * (size + MOST_ADDED) + 1, np.uint8)
        rows = rows[1 - rows.ctypes.data % 2 :]  # an odd address, see coreset.kernels.jpeg.buffers
        self._memory = _Memory(np.empty(MOST_BYTES, np.uint8), rows, decoder.memory)

    def decode(
        self,
        squares: CropBatch,
        turns: WorkQueue,
        out: Pixels,
        factors: NDArray[np.float32] | None = None,
        *,
        coarse: bool = False,
    ) -> None:
        """Decode images until all of the batch have been taken; releases the interpreter.

        Args:
            squares: What to decode.
            turns: Of all threads together.
            out: uint8 of shape (b, s * s * 3), or with ``factors`` float32 of shape (b, 3, s * s);
                rows of what is not decoded are undefined.
            factors: Of `coreset.kernels.jpeg.normalise.factors_of`, to normalise.
            coarse: By libjpeg-turbo's faster transform and upsampling.
        """
        how = _How(self.size, _streams(out, self.size), coarse)
        jpeg = self._decoder.functions
        _decode_batch(jpeg, self._pread, squares, turns, how, out, factors, self._memory)


class _How(NamedTuple):
    size: int
    stream: bool
    coarse: bool


class _Memory(NamedTuple):
    """Of one thread."""

    encoded: NDArray[np.uint8]
    rows: NDArray[np.uint8]
    libjpeg: Memory


class _Square(NamedTuple):
    """One image in memory."""

    data: tuple[int, int]
    """Address and bytes."""
    width: int
    height: int
    left: int
    top: int


class _Places(NamedTuple):
    """Addresses of what is written; no arrays, see `coreset.kernels.jpeg.ffi`."""

    out: int
    rows: int
    libjpeg: int


def _streams(out: Pixels, size: int) -> bool:
    """Whether every row begins where `stream_planes` or `stream_bytes` can write."""
    row, unit = (
        (3 * size, BYTES_ALIGNMENT) if out.dtype == np.uint8 else (4 * size, PLANE_ALIGNMENT)
    )
    return row % unit == 0 and out.ctypes.data % unit == 0


@kernel
def _decode_batch(  # noqa: PLR0917 - of a kernel; Numba cannot leave out what is None in a tuple
    jpeg: Functions,
    pread: int,
    squares: CropBatch,
    turns: WorkQueue,
    how: _How,
    out: Pixels,
    factors: NDArray[np.float32] | None,
    memory: _Memory,
) -> None:
    """See `BatchDecoder.decode`."""
    factors_at = None if factors is None else address_of(factors)
    while True:
        at = fetch_add(turns.taken)
        if at >= turns.done.size:
            break
        address, n_bytes = int(squares.starts[at]), int(squares.lengths[at])
        if n_bytes == 0:
            continue
        if squares.descriptors[at] != IN_MEMORY:
            start, address = address, address_of(memory.encoded)
            if call_c(pread, (squares.descriptors[at], address, n_bytes, start)) != n_bytes:
                continue
        width, height = int(squares.widths[at]), int(squares.heights[at])
        left, top = int(squares.lefts[at]), int(squares.tops[at])
        square = _Square((address, n_bytes), width, height, left, top)
        image = address_of(out) + at * out.strides[0]
        places = _Places(image, address_of(memory.rows), address_of(memory.libjpeg))
        turns.done[at] = _decode_one(jpeg, square, how, places, factors_at)


@inner
def _decode_one(
    jpeg: Functions, square: _Square, how: _How, places: _Places, factors: int | None
) -> bool:
    """Whether it was decoded; every error of libjpeg comes back to the first line."""
    if setjmp(places.libjpeg + BUFFER):
        destroy(jpeg, places.libjpeg)
        return False
    read_header(jpeg, square.data, places.libjpeg)
    good = is_plain(square.width, square.height, places.libjpeg)
    if good:
        begin(jpeg, how.coarse, places.libjpeg)
        good = _decode_rows(jpeg, square, how, places, factors)
        if good and square.top + how.size == square.height:
            call_c(jpeg.jpeg_finish_decompress, (places.libjpeg,))  # notices a missing end
        good = good and not warned(places.libjpeg)
    call_c(jpeg.jpeg_abort_decompress, (places.libjpeg,))
    return good


@inner
def _decode_rows(
    jpeg: Functions, square: _Square, how: _How, places: _Places, factors: int | None
) -> bool:
    """False where libjpeg would decode more columns than there is memory for."""
    first, n_columns = 0, square.width
    if how.size < square.width:
        first, n_columns = crop(jpeg, square.left, square.left + how.size, places.libjpeg)
        if not 0 < n_columns <= how.size + MOST_ADDED:
            return False
    call_c(jpeg.jpeg_skip_scanlines, (places.libjpeg, square.top))
    direct = factors is None and not how.stream and n_columns == how.size
    for top in range(0, how.size, _ROWS_AT_ONCE):
        n_rows = min(how.size - top, _ROWS_AT_ONCE)
        place = places.out + 3 * top * how.size if direct else places.rows
        read_rows(jpeg, n_rows, 3 * n_columns, place, places.libjpeg)
        if not direct:
            source = places.rows + 3 * (square.left - first)
            rows = Rows(source, 3 * n_columns, top * how.size, n_rows, how.size, how.stream)
            _keep(rows, places.out, factors)
    if how.stream:
        fence()
    return True


@inner
def _keep(rows: Rows, out: int, factors: int | None) -> None:
    """Write decoded rows to a square at an address."""
    if factors is None:
        keep_bytes(rows, out)
    else:
        keep_planes(rows, factors, out, 4 * rows.n_columns * rows.n_columns)
