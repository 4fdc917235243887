"""Batches of decoded images, and memory for them that is used again."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.data.order import PADDING
from coreset.kernels.jpeg.batch import PLANE_ALIGNMENT


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded images of one batch, b = images, s = size in pixels.

    ``images`` are uint8 RGB of shape (b, 3, s, s), stored channels last; or contiguous float32
    where a normalisation was asked for. ``labels`` and ``ids`` are int64 of shape (b,). A batch
    that was padded, on request only, has label and id -1 in the added rows. A batch unpacks:
    ``images, labels, ids = batch``.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels, self.ids))


def batch_of(
    images: Tensor, labels: NDArray[np.int64], ids: NDArray[np.int64], *, n: int | None = None
) -> Batch:
    """Make a batch whose labels and ids lie where its images lie.

    Args:
        images: Decoded images.
        labels: int64 of shape (b,).
        ids: int64 of shape (b,).
        n: Rows to fill up to, with black images, label and id -1; None adds none.
    """
    missing = 0 if n is None else n - ids.size
    if missing:
        images = torch.cat((images, images.new_zeros((missing, *images.shape[1:]))))
        padding = np.full(missing, PADDING)
        labels, ids = np.append(labels, padding), np.append(ids, padding)
    rows = (torch.from_numpy(np.array(row)).to(images.device) for row in (labels, ids))
    return Batch(images, *rows)


class BatchMemory:
    """Arrays of batches, given out again once nobody but this object refers to them.

    Fresh pages cost as much as a fifth of decoding.
    """

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return memory for a batch; what it holds is undefined."""
        n_bytes = int(np.prod(shape)) * dtype.itemsize
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
