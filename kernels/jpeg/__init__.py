"""JPEG decoding and resizing in compiled code, the only room that knows C; here its buffers."""

from threading import local

import numpy as np
from numpy.typing import NDArray

_KEPT_BYTES = 1 << 22  # larger images get a new buffer: a data set has few of them
_kept = local()


def pixel_memory(n_bytes: int) -> NDArray[np.uint8]:
    """Return a buffer at an odd address, valid until this thread asks for the next one.

    libjpeg-turbo writes rows that begin on a multiple of 32 bytes past the caches
    (``simd/x86_64/jdcolext-avx2.asm``), so the next reader has to fetch them from memory.
    """
    if n_bytes > _KEPT_BYTES:
        return odd_memory(n_bytes)
    buffer: NDArray[np.uint8] | None = getattr(_kept, "buffer", None)
    if buffer is None or buffer.size < n_bytes:
        buffer = _kept.buffer = odd_memory(n_bytes)
    return buffer


def odd_memory(n_bytes: int) -> NDArray[np.uint8]:
    """Allocate memory at an odd address, for `pixel_memory`."""
    memory = np.empty(n_bytes + 1, np.uint8)
    return memory[1 - memory.ctypes.data % 2 :][:n_bytes]
