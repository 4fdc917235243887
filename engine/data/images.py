"""Decode once, keep the pixels: all images of a source in one uint8 tensor for every epoch."""

from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.geometry import Ints, Pixels
from coreset.engine.data.order import PADDING, BatchOrder
from coreset.engine.data.prefetch import prefetch_on_stream
from coreset.engine.data.residency import device_bytes
from coreset.engine.data.stream import Batch, ImageStream, batch_of
from coreset.engine.runtime.limits import RESIDENT_SHARE, decoded_bytes
from coreset.shards.errors import MachineError, UsageError

DECODE_BATCH = 256
GATHERING_THREADS = 4


class DecodedImages:
    """Decoded samples that hand over the same batches as the source they came from, bit for bit."""

    def __init__(
        self,
        images: Tensor,
        labels: Ints,
        ids: Ints,
        *,
        undecodable: Mapping[int, str] | None = None,
        device: torch.device | None = None,
        rows: Ints | None = None,
    ) -> None:
        """Keep decoded images.

        Args:
            images: uint8 of shape (n, 3, s, s), stored channels last, on any device.
            labels: int64 of shape (n,).
            ids: Sample ids of the data set, int64 of shape (n,).
            undecodable: Samples without pixels, by id, and why; batches leave them out.
            device: Where batches are handed over; None: where ``images`` are.
            rows: Row of each sample in ``images``, int64 of shape (n,); None: all, in order.

        """
        self.images = images
        self.labels = labels
        self.ids = ids
        self.undecodable = dict(undecodable or {})
        self.size = images.shape[-1]
        self._rows = rows
        self._is_decoded = ~np.isin(ids, list(self.undecodable))
        self._device = device or images.device
        self._memory = BatchMemory(self._device)
        # A copy to a GPU is to be as fast as its bus, which one thread's gathering is not.
        is_sent = self._device.type == "cuda" and not images.is_cuda
        self._pool = ThreadPoolExecutor(GATHERING_THREADS) if is_sent else None

    @staticmethod
    def of(source: ImageStream, images_nhwc: Tensor) -> "DecodedImages":
        """Keep what was decoded of all samples of ``source``; batches come where its own did."""
        return DecodedImages(
            images_nhwc.permute(0, 3, 1, 2),
            source.labels,
            source.ids,
            undecodable=source.undecodable,
            device=source.device,
        )

    def __len__(self) -> int:
        return self.ids.size

    def close(self) -> None:
        """Drop the pixels."""
        self.images = self.images[:0].clone()
        self._memory.forget()
        if self._pool is not None:
            self._pool.shutdown()

    def epoch(self, order: BatchOrder) -> Iterator[Batch]:
        """Read one epoch as ``ImageStream.epoch`` does, but without random crops."""
        if order.crops is not None:
            raise UsageError(
                "crops are taken while decoding; leave them out and crop the batches with "
                "coreset.kernels.augment.random_resized_crop"
            )
        batches = self._batches(order)
        return batches if self.images.is_cuda else prefetch_on_stream(batches, 1, self._device)

    def _batches(self, order: BatchOrder) -> Generator[Batch]:
        images_nhwc = self.images.permute(0, 2, 3, 1)
        for positions in order.batches(len(self)):
            kept = positions[positions != PADDING]
            kept = kept[self._is_decoded[kept]]
            if order.pad or kept.size:
                rows = kept if self._rows is None else self._rows[kept]
                images = self.take_rows(images_nhwc, rows).permute(0, 3, 1, 2)
                n = positions.size if order.pad else None
                yield batch_of(
                    images.to(self._device, non_blocking=True),
                    self.labels[kept],
                    self.ids[kept],
                    n=n,
                )

    def take_rows(self, images_nhwc: Tensor, rows: Ints) -> Tensor:
        """Copy rows of the images, on a CPU into memory of batches.

        There by NumPy, on one thread where there is no pool, at the speed of memory: torch's
        threads wait for one another as soon as other threads want the cores too.
        """
        if images_nhwc.is_cuda:
            return images_nhwc.index_select(0, torch.from_numpy(rows).to(images_nhwc.device))
        source = images_nhwc.numpy()
        taken = self._memory.take((rows.size, *source.shape[1:]), source.dtype)

        def copy_some(some: Ints, out: Pixels) -> None:
            source.take(some, axis=0, out=out, mode="clip")  # "raise" would copy once more

        if self._pool is None:
            copy_some(rows, taken)
        else:
            parts = (np.array_split(array, GATHERING_THREADS) for array in (rows, taken))
            list(self._pool.map(copy_some, *parts))
        return torch.from_numpy(taken)


EpochSource: TypeAlias = ImageStream | DecodedImages
"""Sources of batches that training and features read."""


def load_into_memory(source: ImageStream) -> DecodedImages:
    """Decode every sample of ``source``, which stays open; refuse if memory is short."""
    size, available = source.geometry.size, device_bytes(source.device)
    needed = decoded_bytes(len(source), size)
    if needed > RESIDENT_SHARE * available:
        raise MachineError(
            f"{len(source)} images of {size} pixels need {needed / 1e9:.2f} GB, "
            f"but {RESIDENT_SHARE:.0%} of {available / 1e9:.2f} GB available on {source.device} "
            "may be used; choose a smaller size or stream the images"
        )
    return decode_all(source, source.device)


def decode_all(
    source: ImageStream, kept_on: torch.device, on_batch: Callable[[int], object] = int
) -> DecodedImages:
    """Decode every sample of ``source``, which stays open, to be kept on a device or the host.

    Batches come on the device of ``source``. ``on_batch`` gets the number of images of each.
    """
    size = source.geometry.size
    images_nhwc = torch.zeros((len(source), size, size, 3), dtype=torch.uint8, device=kept_on)
    order = BatchOrder(batch=max(1, min(DECODE_BATCH, len(source))), pad=True)
    for positions, batch in zip(order.batches(len(source)), source.epoch(order), strict=True):
        rows = positions[positions != PADDING]
        rows = rows[np.isin(source.ids[rows], batch.ids.cpu().numpy())]
        decoded = batch.images.permute(0, 2, 3, 1)[: rows.size]
        if images_nhwc.is_cuda:
            images_nhwc[torch.from_numpy(rows).to(decoded.device)] = decoded
        else:  # on one thread, as in `take_rows`
            images_nhwc.numpy()[rows] = decoded.cpu().numpy()
        on_batch(rows.size)
    return DecodedImages.of(source, images_nhwc)
