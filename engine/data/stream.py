"""Decoded batches of a packed data set, in an order fixed by the seed, read and decoded ahead."""

import os
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coreset.engine.data.decoders import (
    EncodedBatch,
    Normalisation,
    UndecodableImagesError,
    make_decoder,
)
from coreset.engine.data.geometry import Geometry, Ints
from coreset.engine.data.order import PADDING, BatchOrder
from coreset.engine.data.prefetch import prefetch, prefetch_on_stream, require_process
from coreset.engine.data.reader import ShardReader, require_ids
from coreset.shards.errors import ManifestError
from coreset.shards.format.dataset import Dataset

ENCODED_AHEAD, DECODED_AHEAD = 2, 1
"""Batches; decoded ones take the more memory."""
MOST_LEFT_OUT = 10
"""Samples that may be left out, or 0.1 % of all if that is more."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded images of one batch; ``images, labels, ids = batch`` unpacks it.

    ``images`` are uint8 RGB of shape (b, 3, s, s), stored channels last; or contiguous float32
    where a normalisation was asked for. ``labels`` and ``ids`` are int64 of shape (b,), both -1 in
    rows that were added on request (``pad``).
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels, self.ids))


def batch_of(images: Tensor, labels: Ints, ids: Ints, *, n: int | None = None) -> Batch:
    """Make a batch on the device of its images, filled up with padding to ``n`` rows."""
    missing = 0 if n is None else n - ids.size
    if missing:
        images = torch.cat((images, images.new_zeros((missing, *images.shape[1:]))))
        padding = np.full(missing, PADDING)
        labels, ids = np.append(labels, padding), np.append(ids, padding)
    rows = torch.from_numpy(np.stack((labels, ids)))
    if images.is_cuda:  # one copy, which the host does not wait for
        rows = rows.pin_memory().to(images.device, non_blocking=True)
    return Batch(images, *rows)


class ImageStream(AbstractContextManager["ImageStream"]):
    """Streams the samples of a packed data set, or of a subset; a context manager."""

    def __init__(
        self,
        dataset: Dataset,
        geometry: Geometry,
        *,
        decoder: str = "auto",
        device: str = "cpu",
        workers: int = 0,
        ids: Ints | None = None,
        exact: bool = False,
        normalisation: Normalisation | None = None,
        skip_damaged: bool = False,
    ) -> None:
        """Open the data set, or the samples ``ids`` of it; options and errors are ``Loader``'s."""
        self.dataset = dataset
        self.geometry = geometry
        self.device = torch.device(device)
        self.ids = np.arange(len(dataset), dtype=np.int64) if ids is None else ids
        require_ids(self.ids, len(dataset))
        self._all_labels = dataset.labels
        self._widths, self._heights = dataset.ints("width"), dataset.ints("height")
        self.undecodable: dict[int, str] = {}
        """Samples that were left out so far, by id, and why."""
        self._skip_damaged = skip_damaged
        self._process = 0  # whose threads decode; not known before the first epoch
        self._decoder = make_decoder(
            decoder,
            geometry,
            device=device,
            workers=workers,
            exact=exact,
            normalisation=normalisation,
        )
        self._reader = ShardReader(dataset)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.ids.size

    @property
    def labels(self) -> Ints:
        """Label of each of ``ids``, int64 of shape (n,)."""
        return self._all_labels[self.ids]

    def close(self) -> None:
        """End the decoder and close the shards; no epoch may be under way."""
        if self._process in {0, os.getpid()}:  # a forked process does not have the threads
            self._decoder.close()
            self._reader.close()

    def epoch(self, order: BatchOrder, *, empty: bool = False) -> Iterator[Batch]:
        """Read one rank's share of one epoch; every sample comes exactly once over all ranks.

        Two background threads read and decode ahead, and end when the loop is left. With ``empty``,
        batches of which every sample was left out come, too.

        Raises:
            UsageError: This process was forked from one that uses the stream.
            ManifestError: (While iterating) a sample cannot be read or decoded; it is named.
        """
        self._process = self._process or os.getpid()
        require_process(self._process)
        return prefetch_on_stream(self._decoded(order, empty=empty), DECODED_AHEAD, self.device)

    def _encoded(self, order: BatchOrder) -> Generator[tuple[int, Ints, EncodedBatch]]:
        """Yield the number of rows, and the ids and stored bytes of those that are no padding."""
        for positions in order.batches(len(self)):
            ids = self.ids[positions[positions != PADDING]]
            sizes = self._widths[ids], self._heights[ids]
            seed, epoch = order.seed, order.epoch
            boxes = order.crops and order.crops.boxes(ids, *sizes, seed=seed, epoch=epoch)
            batch = EncodedBatch(self._reader.fetch(ids), *sizes, boxes)
            yield positions.size, ids, self._decoder.read_ahead(batch)

    def _decoded(self, order: BatchOrder, *, empty: bool) -> Generator[Batch]:
        with closing(prefetch(self._encoded(order), ENCODED_AHEAD)) as encoded:
            for n_rows, ids, batch in encoded:
                images, kept = self._images(ids, batch)
                if order.pad or empty or kept.size:
                    labels, n = self._all_labels[kept], n_rows if order.pad else None
                    yield batch_of(images.to(self.device, non_blocking=True), labels, kept, n=n)

    def _images(self, ids: Ints, batch: EncodedBatch) -> tuple[Tensor, Ints]:
        """Return decoded images and their ids, without those that cannot be read or decoded."""
        try:
            return self._decoder.decode(batch), ids
        except ManifestError:  # met by the decoder, which read the bytes
            if not self._skip_damaged:
                self._reader.read(ids)  # names the first of several
                raise
            kept, data = self._readable(ids)
            return self._images(ids[kept], batch.part(kept, data))
        except UndecodableImagesError as error:
            reasons = {int(ids[position]): why for position, why in error.reasons.items()}
            if not self._skip_damaged:
                named = ", ".join(f"{self._reader.name_of(i)} ({reasons[i]})" for i in reasons)
                remedy = f"run `coreset verify {self.dataset.path}`"
                raise ManifestError(f"{named} cannot be decoded; {remedy}") from error
            for sample, reason in reasons.items():
                self._leave_out(sample, reason)
            good = np.setdiff1d(np.arange(ids.size), list(error.reasons))
            return error.images[torch.from_numpy(good).to(error.images.device)], ids[good]

    def _readable(self, ids: Ints) -> tuple[list[int], list[bytes]]:
        """Return the positions of the samples that can be read, and their bytes."""
        samples: dict[int, bytes] = {}
        for position, sample in enumerate(ids.tolist()):
            try:
                samples[position] = self._reader.read_one(sample)
            except ManifestError as error:
                self._leave_out(sample, str(error).partition("; run")[0])
        return list(samples), list(samples.values())

    def _leave_out(self, sample: int, reason: str) -> None:
        self.undecodable[sample] = reason
        if len(self.undecodable) > max(MOST_LEFT_OUT, len(self) // 1000):
            raise ManifestError(
                f"{len(self.undecodable)} samples cannot be read, {self._reader.name_of(sample)} "
                f"the last ({reason}); run `coreset verify {self.dataset.path}`"
            )
