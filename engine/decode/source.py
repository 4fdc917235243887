"""Decoded batches of a packed data set, in an order fixed by the seed, read and decoded ahead."""

from collections.abc import Generator, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engine.batch import Batch
from engine.decode.ahead import ahead
from engine.decode.decoder import EncodedBatch, UndecodableImagesError, make_decoder
from engine.decode.geometry import Geometry
from engine.decode.order import batches_of, epoch_ids
from engine.decode.reader import ShardReader
from shards.dataset import Dataset
from shards.errors import ManifestError, UsageError

BATCHES_AHEAD = 2


class EpochSource(Protocol):
    """What training and features read: a ``Source`` or its resident ``Pixels``, bit-equal."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """Sample ids, shape (n,): the rows that an epoch visits."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each of ``ids``."""
        ...

    def __len__(self) -> int: ...

    def epoch(
        self,
        batch: int,
        *,
        epoch: int = 0,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        start_batch: int = 0,
    ) -> Iterator[Batch]:
        """See ``Source.epoch``."""
        ...

    def close(self) -> None:
        """Release threads, files and memory."""
        ...


class Source:
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
    ) -> None:
        """Open the data set for reading.

        Args:
            dataset: What to read.
            geometry: Size of the batches' images.
            decoder: ``auto``, ``dali`` or ``turbo``.
            device: Where the batches are handed over.
            workers: Decoding threads; 0 means one per core.
            ids: int64 of shape (n,), the samples to read (a coreset); None means all.

        Raises:
            UsageError: ``ids`` is not one-dimensional int64 in the range of the data set.
            MachineError: The decoder or the device is not available.
        """
        self.dataset = dataset
        self.geometry = geometry
        self.device = torch.device(device)
        self.ids = np.arange(len(dataset), dtype=np.int64) if ids is None else ids
        _require_ids(self.ids, len(dataset))
        self._all_labels = dataset.labels
        self._widths, self._heights = dataset.ints("width"), dataset.ints("height")
        self._decoder = make_decoder(decoder, geometry, device=device, workers=workers)
        self._reader = ShardReader(dataset)

    def __enter__(self) -> "Source":
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
        self._decoder.close()
        self._reader.close()

    def epoch(
        self,
        batch: int,
        *,
        epoch: int = 0,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        start_batch: int = 0,
    ) -> Iterator[Batch]:
        """One rank's share of one epoch; every sample occurs exactly once over all ranks.

        Bytes are read, and batches decoded, up to two batches ahead by two background threads. The
        last batch may be short, and nothing is padded. Leaving the loop early ends the threads.

        Args:
            batch: Images per batch and rank.
            epoch: Together with ``seed``, decides the order when shuffled.
            seed: Seed of the run.
            shuffle: A global permutation instead of the order of ``ids``.
            rank: This process.
            world: Processes.
            start_batch: First batch to yield, to continue an interrupted epoch.

        Returns:
            An iterator of batches on ``device``; ``Batch.ids`` are the data set's sample ids.

        Raises:
            UsageError: Sizes or rank are out of range.
            ManifestError: (While iterating) a sample cannot be read or decoded; it is named.
        """
        order = epoch_ids(
            len(self), seed=seed, epoch=epoch, shuffle=shuffle, rank=rank, world=world
        )
        batches = batches_of(self.ids[order], batch, start_batch)
        return ahead(self._decoded(ahead(self._encoded(batches), BATCHES_AHEAD)), BATCHES_AHEAD)

    def _encoded(
        self, batches: Iterator[NDArray[np.int64]]
    ) -> Generator[tuple[NDArray[np.int64], EncodedBatch]]:
        for ids in batches:
            yield ids, EncodedBatch(self._reader.read(ids), self._widths[ids], self._heights[ids])

    def _decoded(
        self, encoded: Generator[tuple[NDArray[np.int64], EncodedBatch]]
    ) -> Generator[Batch]:
        try:
            for ids, batch in encoded:
                try:
                    images = self._decoder.decode(batch).to(self.device)
                except UndecodableImagesError as error:
                    raise self._names_of_undecodable(ids, error) from error
                yield batch_of(images, self._all_labels[ids], ids)
        finally:
            encoded.close()

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


def _require_ids(ids: NDArray[np.int64], n: int) -> None:
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise UsageError(
            f"ids must be int64 of one dimension, got {ids.dtype} of shape {ids.shape}"
        )
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        raise UsageError(
            f"ids must be in [0, {n}) (samples of the data set), got {ids.min()} .. {ids.max()}: "
            "the selection was made from another data set"
        )
