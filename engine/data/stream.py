"""Decoded batches of a packed data set, in an order fixed by the seed, read and decoded ahead."""

from collections.abc import Generator, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.data.batch import Batch
from coreset.engine.data.decoders.base import EncodedBatch, Normalisation, UndecodableImagesError
from coreset.engine.data.decoders.choose import make_decoder
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.image_set import require_ids
from coreset.engine.data.order import PADDING, BatchOrder
from coreset.engine.data.prefetch import OwningProcess, prefetch
from coreset.engine.data.reader import ShardReader
from coreset.shards.errors import ManifestError
from coreset.shards.format.dataset import Dataset

ENCODED_AHEAD, DECODED_AHEAD = 2, 1
"""Batches; decoded ones take the more memory."""
MOST_LEFT_OUT = 10
"""Samples that may be left out, or 0.1 % of all if that is more."""


class EpochSource(Protocol):
    """What training and features read: a ``ImageStream`` or its resident ``Pixels``, bit-equal."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """Sample ids, shape (n,): the rows that an epoch visits."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each of ``ids``."""
        ...

    def __len__(self) -> int: ...

    def epoch(self, order: BatchOrder) -> Iterator[Batch]:
        """Read the batches of one epoch, as ``ImageStream.epoch`` does."""
        ...

    def close(self) -> None:
        """Release threads, files and memory."""
        ...


class ImageStream:
    """Streams the samples of a packed data set, or of a subset; a context manager."""

    def __init__(
        self,
        dataset: Dataset,
        geometry: Geometry,
        *,
        decoder: str = "auto",
        device: str = "cpu",
        workers: int = 0,
        ids: NDArray[np.int64] | None = None,
        exact: bool = False,
        normalisation: Normalisation | None = None,
        skip_damaged: bool = False,
    ) -> None:
        """Open the data set for reading.

        Args:
            dataset: What to read.
            geometry: Size of the batches' images.
            decoder: One of ``DecoderName``.
            device: Where the batches are handed over.
            workers: Decoding threads; 0 means one per core.
            ids: int64 of shape (n,), the samples to read (a coreset); None means all.
            exact: Pixels equal to the reference.
            normalisation: Hand over float32 instead of uint8.
            skip_damaged: Leave out samples that cannot be read or decoded, and list them in
                ``undecodable``, instead of raising.

        Raises:
            UsageError: ``ids`` is not one-dimensional int64 in the range of the data set.
            MachineError: The decoder or the device is not available.
        """
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
        self._process = OwningProcess()
        self._decoder = make_decoder(
            decoder,
            geometry,
            device=device,
            workers=workers,
            exact=exact,
            normalisation=normalisation,
        )
        self._reader = ShardReader(dataset)

    def __enter__(self) -> "ImageStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.ids.size

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each of ``ids``, int64 of shape (n,)."""
        return self._all_labels[self.ids]

    def close(self) -> None:
        """End the decoder and close the shards; no epoch may be under way."""
        if self._process.is_another:
            return  # with threads that are not here
        self._decoder.close()
        self._reader.close()

    def epoch(self, order: BatchOrder) -> Iterator[Batch]:
        """Read one rank's share of one epoch; every sample comes exactly once over all ranks.

        Bytes are read, and batches decoded, ahead by two background threads. Leaving the loop early
        ends the threads.

        Returns:
            An iterator of batches on ``device``; ``Batch.ids`` are the data set's sample ids.

        Raises:
            UsageError: This process was forked from one that uses the stream.
            ManifestError: (While iterating) a sample cannot be read or decoded; it is named.
        """
        self._process.enter()
        encoded = prefetch(self._encoded(order), ENCODED_AHEAD)
        return prefetch(self._decoded(encoded, pad=order.pad), DECODED_AHEAD)

    def _encoded(self, order: BatchOrder) -> Generator[tuple[int, NDArray[np.int64], EncodedBatch]]:
        """Yield the rows wanted, the ids that were read, and the stored bytes."""
        for positions in order.batches(len(self)):
            self._process.enter()
            ids = self.ids[positions[positions != PADDING]]
            try:
                data = self._reader.fetch(ids)
            except ManifestError:
                if not self._skip_damaged:
                    raise
                kept, data = self._readable(ids)
                ids = ids[kept]
            sizes = self._widths[ids], self._heights[ids]
            yield positions.size, ids, EncodedBatch(data, *sizes, order.boxes(ids, *sizes))

    def _readable(self, ids: NDArray[np.int64]) -> tuple[list[int], list[bytes]]:
        """Positions of the samples that can be read, and their bytes; the others are left out."""
        kept: list[int] = []
        there: list[bytes] = []
        for position, one in enumerate(ids.tolist()):
            try:
                there.append(self._reader.read_one(one))
            except ManifestError as error:
                self._leave_out(one, str(error).partition("; run")[0])
            else:
                kept.append(position)
        return kept, there

    def _decoded(
        self, encoded: Generator[tuple[int, NDArray[np.int64], EncodedBatch]], *, pad: bool
    ) -> Generator[Batch]:
        try:
            for n_wanted, ids, batch in encoded:
                images, kept = self._images(ids, batch)
                if pad or kept.size:
                    labels = self._all_labels[kept]
                    part = batch_of(images.to(self.device), labels, kept)
                    yield padded(part, n_wanted) if pad else part
        finally:
            encoded.close()

    def _images(
        self, ids: NDArray[np.int64], batch: EncodedBatch
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Decoded images and their ids, without those that cannot be decoded."""
        try:
            return self._decoder.decode(batch), ids
        except ManifestError:  # met by the decoder, which read the bytes
            if not self._skip_damaged:
                raise
            kept, data = self._readable(ids)
            return self._images(ids[kept], batch.part(kept, data))
        except UndecodableImagesError as error:
            if not self._skip_damaged:
                raise self._names_of_undecodable(ids, error) from error
            for position, reason in error.reasons.items():
                self._leave_out(int(ids[position]), reason)
            good = np.setdiff1d(np.arange(ids.size), list(error.reasons))
            return error.images[torch.from_numpy(good).to(error.images.device)], ids[good]

    def _leave_out(self, sample: int, reason: str) -> None:
        self.undecodable[sample] = reason
        if len(self.undecodable) > max(MOST_LEFT_OUT, len(self) // 1000):
            raise ManifestError(
                f"{len(self.undecodable)} samples cannot be read, {self._reader.name_of(sample)} "
                f"the last ({reason}); run `coreset verify {self.dataset.path}`"
            )

    def _names_of_undecodable(
        self, ids: NDArray[np.int64], error: UndecodableImagesError
    ) -> ManifestError:
        named = ", ".join(
            f"{self._reader.name_of(int(ids[position]))} ({reason})"
            for position, reason in error.reasons.items()
        )
        return ManifestError(f"{named} cannot be decoded; run `coreset verify {self.dataset.path}`")


def batch_of(images: torch.Tensor, labels: NDArray[np.int64], ids: NDArray[np.int64]) -> Batch:
    """A batch whose labels and ids lie where its images lie."""
    return Batch(
        images,
        torch.from_numpy(labels).to(images.device),
        torch.from_numpy(np.array(ids)).to(images.device),
    )


def padded(batch: Batch, n: int) -> Batch:
    """The batch with rows of black images, label and id -1 added up to ``n``."""
    missing = n - len(batch.ids)
    if missing == 0:
        return batch
    rows = torch.full((missing,), PADDING, device=batch.ids.device)
    black = batch.images.new_zeros((missing, *batch.images.shape[1:]))
    return Batch(
        torch.cat((batch.images, black)),
        torch.cat((batch.labels, rows)),
        torch.cat((batch.ids, rows)),
    )
