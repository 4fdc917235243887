"""Batches of images that need no resampling, each decoded by one call per thread.

Images that are stored as they are wanted, or at the size to which the short side would be resized:
data sets of one size, and those that ``coreset pack --store resized`` made.
"""

from collections.abc import Sequence
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.data.decoders.base import EncodedBatch
from coreset.engine.data.decoders.libjpeg import decoder_of_thread
from coreset.engine.data.geometry import Geometry, Sizes
from coreset.engine.data.reader import ByteRanges, LazyBytes
from coreset.kernels.jpeg.batch import (
    IN_MEMORY,
    MOST_BYTES,
    BatchDecoder,
    CropBatch,
    WorkQueue,
    factors_of,
)

_LEAST_SHARE = 0.5
"""Of a batch; with fewer all images are decoded one by one."""
_of_thread = local()


class BatchDecode:
    """The squares of one batch, which any number of threads decode together."""

    def __init__(self, squares: CropBatch, size: int) -> None:
        self._squares, self._size = squares, size
        self._turns = WorkQueue(np.zeros(1, np.int64), np.zeros(squares.starts.size, np.bool_))

    def run(
        self, images: NDArray[Any], factors: NDArray[np.float32] | None, *, coarse: bool
    ) -> None:
        """Decode until none is left; for each thread to call.

        Args:
            images: Of the batch, C-contiguous: uint8 (b, s, s, 3), or float32 (b, 3, s, s).
            factors: To normalise; None for uint8.
            coarse: By coarser arithmetic.
        """
        decoder = _decoder(self._size)
        if decoder is not None:
            shape = (len(images), -1) if factors is None else (len(images), 3, -1)
            decoder.decode(
                self._squares, self._turns, images.reshape(shape), factors, coarse=coarse
            )

    def left(self) -> list[int]:
        """Positions of the images that were not decoded, also of those that are no squares."""
        return np.flatnonzero(~self._turns.decoded).tolist()


def crop_batch(batch: EncodedBatch, geometry: Geometry) -> BatchDecode | None:
    """The squares of a batch, if it has enough."""
    taken, lefts, tops = geometry.needs_no_resize(batch.widths, batch.heights)
    if batch.crops is not None or not _enough(taken):
        return None
    places = batch.data.places if isinstance(batch.data, LazyBytes) else _in_memory(batch.data)
    lengths = np.where(taken & (places.lengths <= MOST_BYTES), places.lengths, 0)
    places = places._replace(lengths=lengths)
    return BatchDecode(CropBatch(*places, batch.widths, batch.heights, lefts, tops), geometry.size)


def has_squares(geometry: Geometry, widths: Sizes, heights: Sizes) -> bool:
    """Whether images of these sizes (pixels, shape (n,)) are decoded here."""
    taken, _, _ = geometry.needs_no_resize(widths, heights)
    return _enough(taken)


def warm_up(*, floats: bool) -> None:
    """Compile, so that the first batch does not wait for it."""
    sides = np.full(1, 32)
    pixels = np.zeros((1, 3, 32, 32), np.float32) if floats else np.zeros((1, 32, 32, 3), np.uint8)
    nothing = EncodedBatch([b""], sides, sides)
    if (decoding := crop_batch(nothing, Geometry(32))) is not None:
        decoding.run(pixels, factors_of((0,) * 3, (1,) * 3) if floats else None, coarse=False)


def _enough(taken: NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(taken) >= max(1, _LEAST_SHARE * taken.size))


def _in_memory(data: Sequence[bytes]) -> ByteRanges:
    """Addresses, which hold as long as the bytes are kept."""
    lengths = np.array([len(one) for one in data])
    views = [np.frombuffer(one or b"-", np.uint8) for one in data]
    starts = np.array([view.__array_interface__["data"][0] for view in views])
    return ByteRanges(np.full(lengths.size, IN_MEMORY), starts, lengths)


def _decoder(size: int) -> BatchDecoder | None:
    """The decoder of this thread."""
    libjpeg = decoder_of_thread()
    if libjpeg is None:
        return None
    there: BatchDecoder | None = getattr(_of_thread, "decoder", None)
    if there is None or there.size != size:
        there = _of_thread.decoder = BatchDecoder(libjpeg, size=size)
    return there
