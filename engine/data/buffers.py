"""Memory of batches, used again and again."""

import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.data.geometry import Pixels
from coreset.kernels.jpeg.batch import PLANE_ALIGNMENT

if TYPE_CHECKING:  # an export reads without torch
    import torch


class BatchMemory:
    """Arrays of batches, given out again once unused: fresh pages cost a fifth of decoding.

    For a GPU they are pinned, so that copies need no host: torch keeps such memory itself, and
    gives it out again after the copies from it have ended.
    """

    def __init__(self, device: "torch.device | None" = None) -> None:
        self._is_pinned = device is not None and device.type == "cuda"
        self._arrays: list[Pixels] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return memory for a batch; what it holds is undefined."""
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        if self._is_pinned:
            import torch

            pinned = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
            return pinned.numpy().view(dtype).reshape(shape)
        with self._lock:
            for array in self._arrays:
                # The list, the loop's name and the argument; whoever uses it would hold one more.
                if array.size >= n_bytes + PLANE_ALIGNMENT and sys.getrefcount(array) <= 3:
                    break
            else:
                self._arrays = [array for array in self._arrays if array.size > n_bytes]
                array = np.empty(n_bytes + PLANE_ALIGNMENT, np.uint8)
                self._arrays.append(array)
            start = -array.ctypes.data % PLANE_ALIGNMENT
            return array[start : start + n_bytes].view(dtype).reshape(shape)

    def forget(self) -> None:
        """Leave the arrays to those who hold them."""
        with self._lock:
            self._arrays.clear()
