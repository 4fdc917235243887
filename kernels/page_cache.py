"""Which bytes of files are in the page cache, of many files by one call.

Asking for each from Python lets go of the interpreter and takes it back every time, which delays
all other threads of a loader by up to 5 ms a batch.
"""

import ctypes
import os

import numpy as np
from numpy.typing import NDArray

from kernels.compiling import kernel
from kernels.foreign import address_of, call


def all_cached(descriptors: NDArray[np.int64], offsets: NDArray[np.int64]) -> bool:
    """Whether one byte of each of some files can be read without waiting for storage.

    Thread safe; other Python threads run meanwhile. The first call compiles.

    Args:
        descriptors: Open files, shape (n,).
        offsets: Of the byte, shape (n,).

    Returns:
        False also where the file system does not tell, where a file ends before, or is not open.
    """
    return bool(_all_cached(_preadv2(), os.RWF_NOWAIT, descriptors, offsets, np.empty(3, np.int64)))


def warm_up() -> None:
    """Compile, so that the first batch does not wait for it."""
    all_cached(np.empty(0, np.int64), np.empty(0, np.int64))


def _preadv2() -> int:
    return ctypes.cast(ctypes.CDLL(None)["preadv2"], ctypes.c_void_p).value or 0


@kernel
def _all_cached(
    preadv2: int,
    flags: int,
    descriptors: NDArray[np.int64],
    offsets: NDArray[np.int64],
    memory: NDArray[np.int64],
) -> bool:
    """``memory`` is the caller's: Numba frees its own after its last use, which C's are not."""
    vector = address_of(memory)
    memory[0], memory[1] = vector + 16, 1  # struct iovec, and where the byte goes
    for descriptor, offset in zip(descriptors, offsets):  # noqa: B905 - Numba has no strict
        if call(preadv2, (descriptor, vector, 1, offset, flags)) != 1:
            return False
    return True
