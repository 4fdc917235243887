"""libjpeg-turbo threads: the fastest decoder on a CPU.

Measured against torchvision on Pillow images (300 ImageNet files of original size; resize 256, crop
224, and sizes down to 64): decoded pixels are equal; after the resize (``kernels.resample``, which
computes only the crop) the largest difference is 1.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.decode.decoder import EncodedBatch, UndecodableImagesError
from engine.decode.geometry import Geometry
from engine.decode.pillow import decode_with_pillow
from kernels.resample import resize


class TurboDecoder:
    """Decodes on the CPU with ``workers`` threads."""

    def __init__(self, geometry: Geometry, *, workers: int) -> None:
        self._geometry = geometry
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="turbo")

    def decode(self, batch: EncodedBatch) -> Tensor:
        """See ``Decoder.decode``; thread safe."""
        size = self._geometry.size
        images = np.empty((len(batch), size, size, 3), np.uint8)
        reasons: dict[int, str] = {}
        # One shared iterator, whose next is atomic: a thread that is done takes the next image.
        positions = iter(range(len(batch)))
        work = [
            self._pool.submit(self._decode_some, batch, positions, images, reasons)
            for _ in range(min(self._workers, len(batch)))
        ]
        for part in work:
            part.result()
        images_bchw = torch.from_numpy(images).permute(0, 3, 1, 2)
        if reasons:
            raise UndecodableImagesError(dict(sorted(reasons.items())), images_bchw)
        return images_bchw

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _decode_some(
        self,
        batch: EncodedBatch,
        positions: Iterator[int],
        images: NDArray[np.uint8],
        reasons: dict[int, str],
    ) -> None:
        for position in positions:
            try:
                self._decode_one(batch, position, images[position])
            except ValueError as error:
                reasons[position] = str(error)

    def _decode_one(self, batch: EncodedBatch, position: int, into: NDArray[np.uint8]) -> None:
        data = batch.data[position]
        if batch.is_plain_jpeg(position):
            try:
                decode_jpeg(data, batch.stored_size(position), self._geometry, into)
            except ValueError:  # libjpeg-turbo is strict: Pillow decides what can still be read
                pass
            else:
                return
        into[...] = decode_with_pillow(data, self._geometry, batch.stored_size(position))


def decode_jpeg(
    data: bytes, stored_size: tuple[int, int], geometry: Geometry, into: NDArray[np.uint8]
) -> None:
    """Decode a JPEG of ``stored_size`` (width, height) into ``into``, uint8 of shape (s, s, 3).

    Raises:
        ValueError: libjpeg-turbo cannot decode it, or only with warnings.
    """
    width, height, left, top = geometry.place(*stored_size)
    if stored_size == (geometry.size, geometry.size) == (width, height):
        simplejpeg.decode_jpeg(data, buffer=into)
        return
    image = simplejpeg.decode_jpeg(data)
    box = (left, top, left + geometry.size, top + geometry.size)
    if stored_size == (width, height):
        into[...] = image[top : box[3], left : box[2]]
    else:
        resize(image, width, height, box=box, out=into)
