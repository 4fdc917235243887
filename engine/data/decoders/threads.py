"""Decoding on the CPU with threads that release the interpreter while they decode.

No worker processes and no pickled batches: every thread takes the next image of the batch and
writes its pixels where the batch has them. Memory of batches that nobody holds any more is used
again, because fresh pages cost as much as a fifth of decoding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.decoders.base import (
    DecoderName,
    EncodedBatch,
    Normalisation,
    UndecodableImagesError,
)
from coreset.engine.data.decoders.batched import crop_batch
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.decoders.turbo import decode_exactly, decode_fast
from coreset.engine.data.geometry import Geometry
from coreset.kernels.jpeg import odd_memory
from coreset.kernels.jpeg.batch import factors_of, normalised_planes

ImageDecoder: TypeAlias = Callable[[EncodedBatch, int, Geometry, NDArray[np.uint8]], None]
"""Writes one image of a batch, by its position, to uint8 of shape (s, s, 3); ``ValueError`` if it
cannot be decoded. Thread safe."""


def _decode_by_pillow(
    batch: EncodedBatch, position: int, geometry: Geometry, into: NDArray[np.uint8]
) -> None:
    crop = None if batch.crops is None else batch.placement(geometry, position).region
    size = batch.stored_size(position)
    into[...] = decode_with_pillow(batch.data[position], geometry, size, crop)


_IMAGE_DECODERS: Mapping[DecoderName, ImageDecoder] = {
    DecoderName.TURBO: decode_exactly,
    DecoderName.FAST: decode_fast,
    DecoderName.PILLOW: _decode_by_pillow,
}


class ThreadedDecoder:
    """Decodes on the CPU with ``workers`` threads."""

    def __init__(
        self,
        geometry: Geometry,
        name: DecoderName,
        *,
        workers: int,
        normalisation: Normalisation | None = None,
    ) -> None:
        self._geometry, self._name, self._workers = geometry, name, workers
        self._decode_image = _IMAGE_DECODERS[name]
        self._factors = normalisation and factors_of(normalisation.mean, normalisation.std)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._memory = BatchMemory()

    def decode(self, batch: EncodedBatch) -> Tensor:
        """See ``Decoder.decode``; thread safe."""
        size, n = self._geometry.size, len(batch)
        planes = self._factors is not None
        shape = (n, 3, size, size) if planes else (n, size, size, 3)
        images = self._memory.take(shape, np.dtype(np.float32 if planes else np.uint8))
        reasons: dict[int, str] = {}
        if left := self._decode_squares(batch, images):
            # One shared iterator, whose next is atomic: a thread that is done takes the next image.
            positions = iter(left)
            self._in_threads(partial(self._decode_some, batch, positions, images, reasons), n)
        tensor = torch.from_numpy(images)
        images_bchw = tensor if planes else tensor.permute(0, 3, 1, 2)
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
            for one in others:
                one.result()

    def _decode_squares(self, batch: EncodedBatch, images: NDArray[Any]) -> Sequence[int]:
        """Decode what needs no resampling; the positions of all that is left."""
        pillow = self._name is DecoderName.PILLOW
        squares = None if pillow else crop_batch(batch, self._geometry)
        if squares is None:
            return range(len(batch))
        coarse = self._name is DecoderName.FAST
        self._in_threads(partial(squares.run, images, self._factors, coarse=coarse), len(batch))
        return squares.left()

    def _decode_some(
        self,
        batch: EncodedBatch,
        positions: Iterator[int],
        images: NDArray[Any],
        reasons: dict[int, str],
    ) -> None:
        size = self._geometry.size
        pixels = None
        if self._factors is not None:
            pixels = odd_memory(3 * size * size).reshape(size, size, 3)
        for position in positions:
            into = images[position] if pixels is None else pixels
            try:
                self._decode_image(batch, position, self._geometry, into)
            except ValueError as error:
                reasons[position] = str(error)
                continue
            if self._factors is not None:
                normalised_planes(into, self._factors, images[position])
