"""Memory of batches, given out again once nobody refers to it."""

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jpeg.batch import PLANE_ALIGNMENT


class BatchMemory:
    """Arrays of batches, given out again once nobody but this object refers to them."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory for a batch; what it holds is undefined."""
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        with self._lock:
            for array in self._arrays:
                # The list, the loop's name and the argument; whoever uses it would hold one more.
                if array.size >= n_bytes + PLANE_ALIGNMENT and sys.getrefcount(array) <= 3:
                    return _shaped(array, n_bytes, shape, dtype)
            self._arrays = [array for array in self._arrays if array.size > n_bytes]
            self._arrays.append(np.empty(n_bytes + PLANE_ALIGNMENT, np.uint8))
            return _shaped(self._arrays[-1], n_bytes, shape, dtype)

    def forget(self) -> None:
        """Leave the arrays to those who hold them."""
        with self._lock:
            self._arrays.clear()


def _shaped(
    array: NDArray[np.uint8], n_bytes: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    start = -array.ctypes.data % PLANE_ALIGNMENT
    return array[start : start + n_bytes].view(dtype).reshape(shape)
