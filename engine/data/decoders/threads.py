"""Decoding on the CPU with threads that release the interpreter while they decode.

Every thread takes the next image of the batch and writes its pixels where the batch has them. What
needs no resampling is decoded by one compiled call per thread and batch.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.decoders import (
    DecoderName,
    EncodedBatch,
    Normalisation,
    UndecodableImagesError,
)
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.decoders.turbo import decode_jpeg, decoder_of_thread
from coreset.engine.data.geometry import Geometry, Pixels
from coreset.engine.data.reader import LazyBytes
from coreset.kernels.jpeg import odd_memory
from coreset.kernels.jpeg import resize as resizing
from coreset.kernels.jpeg.batch import (
    IN_MEMORY,
    MOST_BYTES,
    CropBatch,
    WorkQueue,
    decode_batch,
    factors_of,
    normalised_planes,
)
from coreset.kernels.jpeg.ffi import all_cached
from coreset.kernels.jpeg.headers import addresses_of, as_arrays

_LEAST_SHARE = 0.5
"""Share of a batch that needs no resampling; with less all images are decoded one by one."""


class ThreadedDecoder:
    """Decodes on the CPU with ``workers`` threads, for batches that go to ``device``."""

    def __init__(
        self,
        geometry: Geometry,
        name: DecoderName,
        *,
        workers: int,
        device: str = "cpu",
        normalisation: Normalisation | None = None,
    ) -> None:
        self._geometry, self._name, self._workers = geometry, name, workers
        self._factors = normalisation and factors_of(normalisation.mean, normalisation.std)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._memory = BatchMemory(torch.device(device))

    def read_ahead(self, batch: EncodedBatch) -> EncodedBatch:
        """Leave it to each thread to read what it decodes, into the cache of its core."""
        return batch

    def decode(self, batch: EncodedBatch) -> Tensor:
        """Decode a batch as `Decoder.decode` says; thread safe."""
        size, n = self._geometry.size, len(batch)
        floats = self._factors is not None
        shape = (n, 3, size, size) if floats else (n, size, size, 3)
        images = self._memory.take(shape, np.dtype(np.float32 if floats else np.uint8))
        reasons: dict[int, str] = {}
        if positions := self._decode_crops(batch, images):
            # One shared iterator, whose next is atomic: a thread that is done takes the next image.
            self._in_threads(partial(self._decode_some, batch, iter(positions), images, reasons), n)
        tensor = torch.from_numpy(images)
        images_bchw = tensor if floats else tensor.permute(0, 3, 1, 2)
        if reasons:
            raise UndecodableImagesError(dict(sorted(reasons.items())), images_bchw)
        return images_bchw

    def close(self) -> None:
        """End the threads and forget the memory."""
        self._pool.shutdown()
        self._memory.forget()

    def _in_threads(self, work: Callable[[], None], n: int) -> None:
        """Let all threads do it together, this one among them, or as many as there are images."""
        others = [self._pool.submit(work) for _ in range(min(self._workers, n) - 1)]
        try:
            work()
        finally:
            for future in others:
                future.result()

    def _decode_crops(self, batch: EncodedBatch, images: NDArray[Any]) -> list[int]:
        """Decode what needs no resampling; return the positions of all that is left."""
        crops = None if self._name is DecoderName.PILLOW else crop_batch(batch, self._geometry)
        if crops is None:
            return list(range(len(batch)))
        queue = WorkQueue(np.zeros(1, np.int64), np.zeros(len(batch), np.bool_))
        coarse = self._name is DecoderName.FAST

        def work() -> None:
            if (decoder := decoder_of_thread()) is not None:
                decode_batch(decoder, crops, queue, images, self._factors, coarse=coarse)

        self._in_threads(work, len(batch))
        return np.flatnonzero(~queue.decoded).tolist()

    def _decode_some(
        self,
        batch: EncodedBatch,
        positions: Iterator[int],
        images: NDArray[Any],
        reasons: dict[int, str],
    ) -> None:
        size, factors = self._geometry.size, self._factors
        pixels = odd_memory(3 * size * size).reshape(size, size, 3) if factors is not None else None
        for position in positions:
            into = images[position] if pixels is None else pixels
            try:
                self._decode_image(batch, position, into)
            except ValueError as error:
                reasons[position] = str(error)
                continue
            if factors is not None:
                normalised_planes(into, factors, images[position])

    def _decode_image(self, batch: EncodedBatch, position: int, into: Pixels) -> None:
        data = bytes(batch.data[position])
        size, crop = batch.stored_size(position), batch.crop(position)
        if self._name is not DecoderName.PILLOW:
            placement = self._geometry.place(*size, crop)
            if decode_jpeg(data, size, placement, into, fast=self._name is DecoderName.FAST):
                return
        into[...] = decode_with_pillow(data, self._geometry, size, crop)


def crop_batch(batch: EncodedBatch, geometry: Geometry) -> CropBatch | None:
    """Return the files of a batch and where to cut them, if enough need no resampling."""
    taken, lefts, tops = geometry.needs_no_resize(batch.widths, batch.heights)
    least = max(1, _LEAST_SHARE * taken.size)
    if batch.crops is not None or np.count_nonzero(taken) < least:
        return None
    if isinstance(batch.data, LazyBytes):
        descriptors, starts, lengths = batch.data.places
    else:  # addresses, which hold as long as the bytes are kept
        lengths = np.array([len(data) for data in batch.data])
        starts = addresses_of(as_arrays(batch.data))
        descriptors = np.full(lengths.size, IN_MEMORY)
    lengths = np.where(taken & (lengths <= MOST_BYTES), lengths, 0)
    return CropBatch(descriptors, starts, lengths, batch.widths, batch.heights, lefts, tops)


def warm_up(*, floats: bool) -> None:
    """Compile what a batch may need, so that none waits; seconds the first time."""
    all_cached(np.empty(0, np.int64), np.empty(0, np.int64))
    resizing.warm_up(long=False)
    crops = CropBatch(*[np.zeros(1, np.int64)] * 7)  # one image of no bytes
    queue = WorkQueue(np.zeros(1, np.int64), np.zeros(1, np.bool_))
    shape, kind, factors = (1, 32, 32, 3), np.uint8, None
    if floats:
        shape, kind, factors = (1, 3, 32, 32), np.float32, factors_of((0,) * 3, (1,) * 3)
        normalised_planes(np.zeros((1, 1, 3), np.uint8), factors, np.empty((3, 1, 1), np.float32))
    if (decoder := decoder_of_thread()) is not None:
        decode_batch(decoder, crops, queue, np.zeros(shape, kind), factors, coarse=False)
