"""libjpeg-turbo, row by row: part of a JPEG without the rest.

libjpeg-turbo can leave out what lies beside a region (``jpeg_crop_scanline``), pass over the rows
above it (``jpeg_skip_scanlines``) and stop below it; simplejpeg does not offer that. Its library is
not open to others, Pillow's copy is: `Functions` are addresses in that. Names, numbers and
offsets below are those of ``jpeglib.h``, which a library that differs refuses to work with
(``jpeg_CreateDecompress`` compares version and size).
"""

import ctypes
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jit import kernel
from coreset.kernels.jpeg.ffi import (
    address_of,
    call_c,
    load_at,
    longjmp_address,
    noop,
    setjmp,
    store_at,
)
from coreset.kernels.jpeg.resize import Box
from coreset.kernels.jpeg.simd import inner

Memory: TypeAlias = NDArray[np.int64]
"""What C keeps here: ``struct jpeg_decompress_struct`` and, further on, what is named below."""
VERSIONS = {62: 632, 80: 656}
"""``JPEG_LIB_VERSION`` to the size of ``struct jpeg_decompress_struct`` in bytes."""
_ERROR, BUFFER, _SPAN, _ROWS = 1024, 2048, 3072, 3200
"""Bytes before ``struct jpeg_error_mgr``, the buffer of ``setjmp``, and arguments."""
_MEMORY_BYTES = 4096
_CLIENT_DATA, _IMAGE_WIDTH, _IMAGE_HEIGHT, _JPEG_COLOR_SPACE = 24, 48, 52, 60
_OUT_COLOR_SPACE, _DCT_METHOD, _DO_FANCY_UPSAMPLING, _OUTPUT_WIDTH = 64, 96, 100, 136
_JCS_GRAYSCALE, _JCS_RGB, _JCS_YCBCR, _JDCT_IFAST = 1, 2, 3, 1
_ERROR_EXIT, _OUTPUT_MESSAGE, _NUM_WARNINGS = 0, 16, 128
_ROWS_AT_ONCE = 4
_MARGIN = 2
"""Columns: smoothing of the colours at the border of what is decoded lacks a neighbour."""
MOST_ADDED = 2 * _MARGIN + 31
"""Columns beside a part that are decoded too: libjpeg begins with a block, of up to 32."""


class _Wanted(NamedTuple):
    """A part, and whether by coarser arithmetic."""

    left: int
    top: int
    right: int
    bottom: int
    coarse: bool


class Functions(NamedTuple):
    """Addresses of libjpeg's functions, by name, and what it says of itself."""

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


class PartDecoder:
    """Decodes parts of JPEGs, in one thread; its memory is libjpeg's from image to image."""

    def __init__(self, library: ctypes.CDLL, version: int) -> None:
        """Bind the functions of a library.

        Args:
            library: Has or links libjpeg.
            version: One of `VERSIONS`; one that is not the library's decodes nothing.

        Raises:
            AttributeError: The library lacks a function.
        """
        addresses = (
            ctypes.cast(library[name], ctypes.c_void_p).value or 0 for name in Functions._fields[2:]
        )
        self.functions = Functions._make((version, VERSIONS[version], *addresses))
        self._destroy = library["jpeg_destroy_decompress"]
        self.memory = np.zeros(_MEMORY_BYTES // 8, np.int64)
        """What C keeps; of the thread that decodes alone."""
        self._address = ctypes.c_void_p(self.memory.ctypes.data)

    def decode(
        self, data: bytes, part: Box, into: NDArray[np.uint8], *, coarse: bool = False
    ) -> tuple[int, int]:
        """Decode some rows and columns of a grey or colour JPEG as RGB; releases the interpreter.

        Args:
            data: The file. What is damaged below the part is not noticed.
            part: Left, top, right, bottom in pixels, inside the image.
            into: uint8 memory; filled from its beginning with rows top .. bottom - 1, each the RGB
                pixels of the columns that are returned.
            coarse: By libjpeg-turbo's faster transform and upsampling.

        Returns:
            The first column and how many there are: those of the part, and up to `MOST_ADDED` more.
            None are returned (0, 0) if libjpeg refuses the file or warns of damage, or the rows
            take more than ``into``.
        """
        encoded, wanted = np.frombuffer(data, np.uint8), _Wanted(*part, coarse)
        return _decode(self.functions, encoded, wanted, into, self.memory)

    def __del__(self) -> None:
        """Give back what libjpeg holds."""
        if hasattr(self, "_address") and self.memory[0]:
            self._destroy(self._address)


@kernel
def _decode(
    jpeg: Functions,
    data: NDArray[np.uint8],
    wanted: _Wanted,
    into: NDArray[np.uint8],
    memory: Memory,
) -> tuple[int, int]:
    """Decode as `PartDecoder.decode`; the caller keeps the arrays, whose addresses alone go on."""
    source, target = (address_of(data), data.size), (address_of(into), into.size)
    return _decode_part(jpeg, source, wanted, target, address_of(memory))


@inner
def _decode_part(
    jpeg: Functions, data: tuple[int, int], wanted: _Wanted, into: tuple[int, int], memory: int
) -> tuple[int, int]:
    """Decode from and to (address, bytes); every error of libjpeg comes back to the first line."""
    if setjmp(memory + BUFFER):
        destroy(jpeg, memory)
        return 0, 0
    read_header(jpeg, data, memory)
    begin(jpeg, wanted.coarse, memory)
    first, n_columns = crop(jpeg, wanted.left, wanted.right, memory)
    n_rows = wanted.bottom - wanted.top
    if 3 * n_columns * n_rows > into[1]:
        n_columns = 0
    elif n_columns > 0:
        call_c(jpeg.jpeg_skip_scanlines, (memory, wanted.top))
        read_rows(jpeg, n_rows, 3 * n_columns, into[0], memory)
    if warned(memory):
        n_columns = 0
    call_c(jpeg.jpeg_abort_decompress, (memory,))
    return first, n_columns


# What follows runs between `setjmp` and libjpeg: it takes the address of `Memory`, no array.
@inner
def read_header(jpeg: Functions, data: tuple[int, int], memory: int) -> None:
    """Begin with a file of (address, bytes), after `setjmp` was called for ``BUFFER``."""
    if load_at(memory, np.int64) == 0:
        _create(jpeg, memory)
    call_c(jpeg.jpeg_mem_src, (memory, data[0], data[1]))
    call_c(jpeg.jpeg_read_header, (memory, 1))


@inner
def is_plain(width: int, height: int, memory: int) -> bool:
    """Whether the header is that of a grey or colour image of this size, without inversion."""
    size_fits = (
        _int_at(memory + _IMAGE_WIDTH) == width and _int_at(memory + _IMAGE_HEIGHT) == height
    )
    return size_fits and _JCS_GRAYSCALE <= _int_at(memory + _JPEG_COLOR_SPACE) <= _JCS_YCBCR


@inner
def warned(memory: int) -> bool:
    """Whether libjpeg found damage since `read_header`."""
    return load_at(memory + _ERROR + _NUM_WARNINGS, np.int64) != 0


@inner
def begin(jpeg: Functions, coarse: bool, memory: int) -> None:  # noqa: FBT001 - a kernel's
    """Begin to decode to RGB what has a header."""
    store_at(memory + _OUT_COLOR_SPACE, np.int32(_JCS_RGB))
    if coarse:
        store_at(memory + _DCT_METHOD, np.int32(_JDCT_IFAST))
        store_at(memory + _DO_FANCY_UPSAMPLING, np.int32(0))
    call_c(jpeg.jpeg_start_decompress, (memory,))


@inner
def crop(jpeg: Functions, left: int, right: int, memory: int) -> tuple[int, int]:
    """Restrict what is decoded to blocks that hold these columns; 0 columns if it has none."""
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
def read_rows(jpeg: Functions, n_rows: int, stride: int, place: int, memory: int) -> None:
    """Rows of ``stride`` bytes to an address; fewer if libjpeg has no more, of which it warns."""
    rows, done = memory + _ROWS, 0
    while done < n_rows:
        n = min(n_rows - done, _ROWS_AT_ONCE)
        for row in range(n):
            store_at(rows + 8 * row, place + (done + row) * stride)
        n_read = call_c(jpeg.jpeg_read_scanlines, (memory, rows, n)) & 0xFFFFFFFF
        if n_read == 0:
            break
        done += n_read


@inner
def destroy(jpeg: Functions, memory: int) -> None:
    """Give back what libjpeg holds, after an error; the next file begins anew."""
    call_c(jpeg.jpeg_destroy_decompress, (memory,))
    store_at(memory, np.int64(0))


@inner
def _create(jpeg: Functions, memory: int) -> None:
    store_at(memory, call_c(jpeg.jpeg_std_error, (memory + _ERROR,)))
    store_at(memory + _CLIENT_DATA, memory + BUFFER)
    store_at(memory + _ERROR + _ERROR_EXIT, longjmp_address())
    store_at(memory + _ERROR + _OUTPUT_MESSAGE, noop())
    call_c(jpeg.jpeg_CreateDecompress, (memory, jpeg.version, jpeg.size))


@inner
def _int_at(address: int) -> int:
    """Read a C ``int``. Signed: Numba adds unsigned numbers to signed ones as floats."""
    return np.int64(load_at(address, np.int32))  # pyright: ignore[reportReturnType] - Numba's int
