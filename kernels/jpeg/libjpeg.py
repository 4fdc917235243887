"""Decoding of a region of a JPEG by calling libjpeg-turbo row by row.

simplejpeg hides its copy of the library; the functions of Pillow's copy can be called.
"""

import ctypes
import weakref
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.jpeg.ffi import address_of, call_c, load_at, longjmp_address, setjmp, store_at
from coreset.kernels.jpeg.resize import Box
from coreset.kernels.jpeg.simd import inner

VERSIONS = {62: 632, 80: 656}
"""``JPEG_LIB_VERSION`` to the size of ``struct jpeg_decompress_struct`` in bytes."""
# A decoder's memory is 4096 bytes that begin with ``struct jpeg_decompress_struct``. Offsets in it
# of ``struct jpeg_error_mgr``, the buffer of ``setjmp`` and two arguments; then of fields.
_ERROR, BUFFER, _SPAN, _ROWS = 1024, 2048, 3072, 3200
_CLIENT_DATA, _IMAGE_WIDTH, _IMAGE_HEIGHT, _JPEG_COLOR_SPACE = 24, 48, 52, 60
_OUT_COLOR_SPACE, _DCT_METHOD, _DO_FANCY_UPSAMPLING, _OUTPUT_WIDTH = 64, 96, 100, 136
_JCS_GRAYSCALE, _JCS_RGB, _JCS_YCBCR, _JDCT_IFAST = 1, 2, 3, 1
_ERROR_EXIT, _OUTPUT_MESSAGE, _NUM_WARNINGS = 0, 16, 128
_ROWS_AT_ONCE = 4
_MARGIN = 2  # columns added on each side, because the smoothing of colours needs a neighbour
MOST_ADDED = 2 * _MARGIN + 31
"""Most columns that are decoded beside a region: libjpeg starts at a block of up to 32."""
_Region: TypeAlias = tuple[int, int, int, int, bool]  # left, top, right, bottom, coarse


class Functions(NamedTuple):
    """Version of libjpeg, size of its structure, and addresses of its functions."""

    version: int
    size: int
    jpeg_std_error: int
    jpeg_CreateDecompress: int  # noqa: N815 - its name
    jpeg_mem_src: int
    jpeg_read_header: int
    jpeg_start_decompress: int
    jpeg_crop_scanline: int
    jpeg_skip_scanlines: int
    jpeg_read_scanlines: int
    jpeg_finish_decompress: int
    jpeg_abort_decompress: int
    jpeg_destroy_decompress: int
    labs: int  # C's, harmless in place of the function that prints warnings


class RegionDecoder:
    """Decoder of regions for one thread; it reuses its memory from image to image."""

    def __init__(self, library: ctypes.CDLL, version: int) -> None:
        """Bind the functions of a library, or raise ``AttributeError`` if it lacks one.

        With a version of `VERSIONS` that is not the library's, every image is refused.
        """
        addresses = (
            ctypes.cast(library[name], ctypes.c_void_p).value or 0 for name in Functions._fields[2:]
        )
        self.functions = Functions._make((version, VERSIONS[version], *addresses))
        self.memory = np.zeros(4096 // 8, np.int64)
        destroy, address = library["jpeg_destroy_decompress"], self.memory.ctypes
        weakref.finalize(self, destroy, address.data_as(ctypes.c_void_p)).atexit = False

    def decode(
        self, data: bytes, box: Box, into: NDArray[np.uint8], *, coarse: bool = False
    ) -> tuple[int, int]:
        """Decode a region of a grey or colour JPEG as RGB; releases the interpreter.

        Rows top .. bottom - 1 are written to the start of ``into``. Damage below them is not
        noticed. ``coarse`` uses libjpeg-turbo's faster transform and upsampling. Return the first
        column and the number of columns of the rows: those of the box and up to `MOST_ADDED` more;
        (0, 0) if libjpeg refuses the file or warns of damage, or ``into`` is too small.
        """
        encoded = np.frombuffer(data, np.uint8)
        return _decode(self.functions, encoded, (*box, coarse), into, self.memory)


@kernel
def _decode(
    jpeg: Functions,
    data: NDArray[np.uint8],
    region: _Region,
    into: NDArray[np.uint8],
    memory: NDArray[np.int64],
) -> tuple[int, int]:
    source, target = (address_of(data), data.size), (address_of(into), into.size)
    return _decode_region(jpeg, source, region, target, address_of(memory))


@inner
def _decode_region(
    jpeg: Functions, data: tuple[int, int], region: _Region, into: tuple[int, int], memory: int
) -> tuple[int, int]:
    """Decode from and to (address, bytes); an error of libjpeg jumps back to the first line."""
    if setjmp(memory + BUFFER):
        destroy(jpeg, memory)
        return 0, 0
    left, top, right, bottom, coarse = region
    read_header(jpeg, data, memory)
    begin(jpeg, coarse, memory)
    first, n_columns = crop_columns(jpeg, left, right, memory)
    n_rows = bottom - top
    if 3 * n_columns * n_rows > into[1]:
        n_columns = 0
    elif n_columns > 0:
        call_c(jpeg.jpeg_skip_scanlines, (memory, top))
        read_rows(jpeg, n_rows, 3 * n_columns, into[0], memory)
    if warned(memory):
        n_columns = 0
    call_c(jpeg.jpeg_abort_decompress, (memory,))
    return first, n_columns


# The functions below run between `setjmp` and libjpeg: they take the memory by address, no array.
@inner
def read_header(jpeg: Functions, data: tuple[int, int], memory: int) -> None:
    """Read the header of a file (address, bytes); `setjmp` has filled ``BUFFER`` before."""
    if load_at(memory, np.int64) == 0:
        store_at(memory, call_c(jpeg.jpeg_std_error, (memory + _ERROR,)))
        store_at(memory + _CLIENT_DATA, memory + BUFFER)
        store_at(memory + _ERROR + _ERROR_EXIT, longjmp_address())
        store_at(memory + _ERROR + _OUTPUT_MESSAGE, jpeg.labs)
        call_c(jpeg.jpeg_CreateDecompress, (memory, jpeg.version, jpeg.size))
    call_c(jpeg.jpeg_mem_src, (memory, data[0], data[1]))
    call_c(jpeg.jpeg_read_header, (memory, 1))


@inner
def is_plain(width: int, height: int, memory: int) -> bool:
    """Test whether the header is that of a grey or colour image of this size, not of CMYK."""
    if _int_at(memory + _IMAGE_WIDTH) != width or _int_at(memory + _IMAGE_HEIGHT) != height:
        return False
    return _JCS_GRAYSCALE <= _int_at(memory + _JPEG_COLOR_SPACE) <= _JCS_YCBCR


@inner
def warned(memory: int) -> bool:
    """Test whether libjpeg has warned of damage since `read_header`."""
    return load_at(memory + _ERROR + _NUM_WARNINGS, np.int64) != 0


@inner
def begin(jpeg: Functions, coarse: bool, memory: int) -> None:  # noqa: FBT001 - a kernel's
    """Start decoding to RGB, after the header."""
    store_at(memory + _OUT_COLOR_SPACE, np.int32(_JCS_RGB))
    if coarse:
        store_at(memory + _DCT_METHOD, np.int32(_JDCT_IFAST))
        store_at(memory + _DO_FANCY_UPSAMPLING, np.int32(0))
    call_c(jpeg.jpeg_start_decompress, (memory,))


@inner
def crop_columns(jpeg: Functions, left: int, right: int, memory: int) -> tuple[int, int]:
    """Restrict decoding to the blocks of some columns; return the first and how many, or 0, 0."""
    first = max(left - _MARGIN, 0)
    n = min(right + _MARGIN, _int_at(memory + _OUTPUT_WIDTH)) - first
    if n <= 0:
        return 0, 0
    span = memory + _SPAN
    store_at(span, np.int32(first))
    store_at(span + 4, np.int32(n))
    call_c(jpeg.jpeg_crop_scanline, (memory, span, span + 4))
    return _int_at(span), _int_at(span + 4)


@inner
def read_rows(jpeg: Functions, n_rows: int, stride: int, target: int, memory: int) -> None:
    """Decode rows of ``stride`` bytes to an address; libjpeg warns if it has fewer."""
    rows, done = memory + _ROWS, 0
    while done < n_rows:
        n = min(n_rows - done, _ROWS_AT_ONCE)
        for row in range(n):
            store_at(rows + 8 * row, target + (done + row) * stride)
        n_read = call_c(jpeg.jpeg_read_scanlines, (memory, rows, n)) & 0xFFFFFFFF
        if n_read == 0:
            break
        done += n_read


@inner
def destroy(jpeg: Functions, memory: int) -> None:
    """Free the memory of libjpeg after an error; the next file creates it anew."""
    call_c(jpeg.jpeg_destroy_decompress, (memory,))
    store_at(memory, np.int64(0))


@inner
def _int_at(address: int) -> int:
    return np.int64(load_at(address, np.int32))  # pyright: ignore[reportReturnType] - Numba's int
