"""Random resized crops of a condensed set's images at their own sizes.

The protocols of soft labels crop the stored image, not a square that was cut out of it. Decoding an
image takes ten times as long as a crop on a CPU, so it is done once where the memory allows.
"""

from collections.abc import Callable, Generator, Iterator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.crops import crop_into, for_each
from coreset.engine.data.decoders.turbo import decode_jpeg
from coreset.engine.data.geometry import Crops, Ints, Pixels, Placement
from coreset.engine.data.order import PADDING, BatchOrder
from coreset.engine.data.prefetch import prefetch_on_stream
from coreset.engine.data.reader import ShardReader, require_ids
from coreset.engine.data.residency import Capacity, Place, choose_place
from coreset.engine.data.stream import DECODED_AHEAD, Batch, batch_of
from coreset.engine.runtime.limits import available_cores
from coreset.engine.runtime.progress import say
from coreset.engine.runtime.text import readable_bytes
from coreset.kernels.augment import shuffled_patches
from coreset.kernels.seeds import Stream, derived_seed, patch_orders
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.images.probe import as_rgb, opened

Transform: TypeAlias = Callable[[Pixels, int], Pixels]
"""Takes an image, read-only uint8 of shape (h, w, 3), and a seed; returns one of the same shape."""


class WholeImages:
    """Samples of a data set for epochs of random resized crops."""

    def __init__(
        self,
        dataset: Dataset,
        ids: Ints,
        *,
        size: int,
        device: torch.device,
        workers: int = 0,
        shuffle_factor: int = 1,
        transform: Transform | None = None,
    ) -> None:
        """Open the samples; they are decoded once if half of the free memory holds them.

        Args:
            dataset: Packed data set.
            ids: Samples of it, int64 of shape (n,); other ids raise ``UsageError``.
            size: Rows and columns of a crop, in pixels.
            device: Where batches are handed over.
            workers: Threads that decode and crop; 0: one per core.
            shuffle_factor: Blocks of columns and of rows that are shuffled before the crop, as in
                RDED; 1 shuffles nothing.
            transform: What is done with an image before that; its seed depends on the order's seed
                and epoch and the sample's id alone.

        """
        require_ids(ids, len(dataset))
        self.dataset, self.ids, self.size, self.device = dataset, ids, size, device
        self.labels = dataset.labels[ids]
        self._widths, self._heights = dataset.ints("width"), dataset.ints("height")
        self._workers = workers or available_cores()
        self._factor, self._transform = shuffle_factor, transform
        self._reader = ShardReader(dataset)
        self._memory = BatchMemory(device)
        self._kept: dict[int, Pixels] = {}  # by id, from the first epoch on
        self._keeps = self._fits()

    def __len__(self) -> int:
        return self.ids.size

    def close(self) -> None:
        """Drop the pixels and close the shards; no epoch may be under way."""
        self._kept.clear()
        self._memory.forget()
        self._reader.close()

    def epoch(self, order: BatchOrder) -> Iterator[Batch]:
        """Read one rank's share of one epoch, cropped by the ``crops`` of the order.

        A crop is a pure function of seed, epoch and id: neither the batch nor the rank matters. The
        next batch is made meanwhile by a thread, which ends when the loop is left.

        Raises ``UsageError`` for an order without crops, and ``ManifestError``, while iterating,
        for a sample that cannot be read or decoded.
        """
        if order.crops is None:
            raise UsageError("whole images have sizes of their own; give the order its crops")
        return prefetch_on_stream(self._batches(order, order.crops), DECODED_AHEAD, self.device)

    def _fits(self) -> bool:
        """Test whether the decoded images may be kept, and say so if not."""
        needed = 3 * int((self._widths[self.ids] * self._heights[self.ids]).sum())
        capacity = Capacity.of(torch.device("cpu"), None)
        if (place := choose_place(needed, capacity, epochs=1)) is Place.NOWHERE:
            n, size = len(self), readable_bytes(needed)
            say(f"{n:,} images at their own sizes, {size}, kept {place} ({capacity})")
        return place is Place.HOST

    def _batches(self, order: BatchOrder, crops: Crops) -> Generator[Batch]:
        for positions in order.batches(len(self)):
            own = positions[positions != PADDING]
            images = self._cropped(self.ids[own], crops, order.seed, order.epoch)
            images = images.to(self.device, non_blocking=True)
            n = positions.size if order.pad else None
            yield batch_of(images, self.labels[own], self.ids[own], n=n)

    def _cropped(self, ids: Ints, crops: Crops, seed: int, epoch: int) -> Tensor:
        of_epoch = derived_seed(seed, epoch)
        boxes = crops.boxes(ids, self._widths[ids], self._heights[ids], seed=seed, epoch=epoch)
        orders = patch_orders(ids, self._factor, derived_seed(of_epoch, Stream.PATCHES))
        taken = self._memory.take((ids.size, self.size, self.size, 3), np.dtype(np.uint8))
        samples: list[int] = ids.tolist()
        data = [] if self._kept.keys() >= set(samples) else self._reader.fetch(ids)

        def crop(row: int) -> None:
            image = self._kept.get(samples[row])
            if image is None:
                image = self._decode(samples[row], data[row])
            if self._transform is not None:
                of_image = derived_seed(of_epoch, Stream.TRANSFORM, samples[row])
                image = self._transform(image, of_image)
            if self._factor > 1:
                image = shuffled_patches(image, orders[row])
            crop_into(taken[row], image, boxes[row])

        for_each(crop, ids.size, workers=self._workers)
        return torch.from_numpy(taken).permute(0, 3, 1, 2)

    def _decode(self, sample: int, data: bytes) -> Pixels:
        try:
            image = decode_whole(data, (int(self._widths[sample]), int(self._heights[sample])))
        except ValueError as error:
            raise self._reader.undecodable(sample, error) from error
        image.flags.writeable = False
        if self._keeps:
            self._kept[sample] = image
        return image


def cut_crops(
    reader: ShardReader, ids: Ints, stored_sizes: Ints, boxes: Ints, side: int, *, workers: int
) -> NDArray[np.uint16]:
    """Decode each image once and resize its boxes to side x side: 256 * level, (b, m, s, s, 3).

    ``stored_sizes`` are width and height, int64 of shape (b, 2), ``boxes`` of shape (b, m, 4) as of
    `crop_into`. Raises ``ManifestError`` for the first image that cannot be read or decoded.
    """
    data, sizes = reader.fetch(ids), stored_sizes.tolist()
    crops = np.empty((*boxes.shape[:2], side, side, 3), np.uint16)

    def cut(row: int) -> None:
        width, height = sizes[row]
        try:
            image = decode_whole(data[row], (width, height))
        except ValueError as error:
            raise reader.undecodable(int(ids[row]), error) from error
        for crop, box in zip(crops[row], boxes[row], strict=True):
            crop_into(crop, image, box)

    for_each(cut, ids.size, workers=workers)
    return crops


def decode_whole(data: bytes, stored_size: tuple[int, int]) -> Pixels:
    """Decode a stored image of ``stored_size`` (width, height) to uint8 of shape (h, w, 3).

    By libjpeg-turbo where `decode_jpeg` takes it, whose pixels equal Pillow's, else by Pillow.
    Raises ``ValueError`` if it cannot be decoded, or has another size.
    """
    width, height = stored_size
    whole = (0, 0, width, height)
    image = np.empty((height, width, 3), np.uint8)
    if not decode_jpeg(data, stored_size, Placement(whole, width, height, whole), image):
        with opened(data, stored_size) as stored:
            image[...] = np.asarray(as_rgb(stored))
    return image
