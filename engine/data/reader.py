"""Samples to read: which of a data set, and their stored bytes, in any order, from any thread."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.geometry import Ints, Pixels
from coreset.kernels.jpeg.ffi import all_cached, read_ranges
from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import OpenFiles

READING_THREADS = 4
"""Storage that takes 2 ms a read, and no advice, gives 1,500 images of 110 kB a second to four
threads, about what two cores decode, and 400 to one."""


class ImageSet(Protocol):
    """Some samples of a packed data set, such as an open condensed set."""

    @property
    def dataset(self) -> Dataset:
        """Data set that holds the samples."""
        ...

    @property
    def ids(self) -> Ints:
        """Sample ids of ``dataset``, int64 of shape (n,)."""
        ...


Images: TypeAlias = str | Path | ImageSet
Ids: TypeAlias = Sequence[int] | Ints


def open_images(data: Images, ids: Ids | None) -> tuple[Dataset, Ints | None]:
    """Open a data set and choose samples of it: ids of shape (n,), or None for all.

    Raises:
        UsageError: ``ids`` are given beside an image set, or are no ids of the data set, or
            ``data`` is not a packed data set.
        ManifestError: The data set is damaged.
    """
    if isinstance(data, str | Path):
        dataset, chosen = Dataset.open(Path(data)), None if ids is None else np.asarray(ids)
    elif ids is None:
        dataset, chosen = data.dataset, data.ids
    else:
        raise UsageError("ids are given for a set that has its own; open its data set instead")
    if chosen is not None:
        require_ids(chosen, len(dataset))
    return dataset, chosen


def require_ids(ids: Ints, n: int) -> None:
    """Raise ``UsageError`` unless ``ids`` are int64 of one dimension in [0, n)."""
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise UsageError(
            f"ids must be int64 of one dimension, got {ids.dtype} of shape {ids.shape}"
        )
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        raise UsageError(
            f"ids must be in [0, {n}) (samples of the data set), got {ids.min()} .. {ids.max()}: "
            "the selection was made from another data set"
        )


ByteRanges: TypeAlias = tuple[Ints, Ints, Ints]
"""Open file, offset and length of each of n samples; -1 for a file that does not stay open."""


class ShardReader(AbstractContextManager["ShardReader"]):
    """Reads samples of a packed data set by offset and length; thread safe, a context manager."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._shards = dataset.ints("shard")
        self._offsets = dataset.ints("offset")
        self._bytes = dataset.ints("bytes")
        self._files = OpenFiles(dataset.shard_paths())
        self.threads = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="read")

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and close the shards; no read may be under way."""
        self.threads.shutdown()
        self._files.close()

    def read(self, ids: Ints) -> list[bytes]:
        """Return the stored bytes of the samples ``ids``, in the order asked for.

        Storage is told of all reads first; some network file systems ignore that, hence threads.

        Raises:
            ManifestError: A sample cannot be read in full; the first in the order of the shards.
        """
        order = np.lexsort((self._offsets[ids], self._shards[ids]))
        places = self._places(ids[order])
        for descriptor, start, length in np.stack(places, axis=1).tolist():
            with suppress(OSError):  # whatever is wrong will be said when it is read
                os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
        parts = [ids[part].tolist() for part in np.array_split(order, READING_THREADS)]

        def read_some(part: list[int]) -> list[bytes]:
            return [self.read_one(sample) for sample in part]

        read = chain.from_iterable(self.threads.map(read_some, parts))
        data = [b""] * ids.size
        for position, sample in zip(order.tolist(), read, strict=True):
            data[position] = sample
        return data

    def fetch(self, ids: Ints) -> "list[bytes] | LazyBytes":
        """Read the samples now, or where the page cache has them all, when each is asked for.

        Then a decoding thread has a sample in the cache of its core, and no batch of encoded images
        takes memory. What cannot be read raises when it is asked for.
        """
        descriptors, starts, lengths = places = self._places(ids)
        if not all_cached(descriptors, starts + lengths - 1):
            with suppress(ManifestError):
                return self.read(ids)
        return LazyBytes(self, ids, places)

    def read_one(self, sample: int) -> bytes:
        """Return the stored bytes of one sample id; raises as `read` does."""
        start, length = int(self._offsets[sample]), int(self._bytes[sample])
        try:
            with self._files.descriptor(int(self._shards[sample])) as descriptor:
                data = os.pread(descriptor, length, start)
        except OSError as error:
            raise self._error(sample, f"cannot be read ({error.strerror})") from error
        if len(data) != length:
            raise self._error(sample, f"has {len(data)} of its {length} bytes")
        return data

    def name_of(self, sample: int) -> str:
        """Return ``shard:offset:key`` of a sample id, for messages."""
        shard = self._dataset.manifest.shards[self._shards[sample]].name
        return f"{shard}:{self._offsets[sample]}:{self._dataset.samples['key'][sample].as_py()}"

    def undecodable(self, sample: int, error: ValueError) -> ManifestError:
        """Make the error of a sample that cannot be decoded."""
        return self._error(sample, f"({error}) cannot be decoded")

    def _error(self, sample: int, message: str) -> ManifestError:
        remedy = f"run `coreset verify {self._dataset.path}`"
        return ManifestError(f"{self.name_of(sample)} {message}; {remedy}")

    def _places(self, ids: Ints) -> ByteRanges:
        shards, positions = np.unique(self._shards[ids], return_inverse=True)
        descriptors = np.full(shards.size, -1)
        for row, shard in enumerate(shards.tolist()):
            with suppress(OSError), self._files.descriptor(shard):
                kept = self._files.kept(shard)
                descriptors[row] = -1 if kept is None else kept
        return descriptors[positions], self._offsets[ids], self._bytes[ids]


class LazyBytes:
    """Samples that are read when they are asked for."""

    def __init__(self, reader: ShardReader, ids: Ints, places: ByteRanges) -> None:
        self._read_one, self._ids, self._threads = reader.read_one, ids.tolist(), reader.threads
        self.places = places
        """For ``kernels.jpeg.batch``, whose threads stay in compiled code for a whole batch, and
        would wait for the interpreter at a call of `read_one`."""

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, position: int) -> bytes:
        return self._read_one(self._ids[position])

    def read_together(self, memory: BatchMemory) -> list[Pixels]:
        """Read all samples into one piece of ``memory``, by threads in compiled code.

        Raises:
            ManifestError: As `ShardReader.read`.
        """
        lengths = self.places[2]
        firsts = lengths.cumsum() - lengths
        joined = memory.take((int(lengths.sum()),), np.dtype(np.uint8))
        parts = [np.array_split(column, READING_THREADS) for column in (*self.places, firsts)]
        read = self._threads.map(partial(read_ranges, memory=joined), *parts)
        n_read = np.concatenate([*read])
        data = [joined[at : at + n] for at, n in np.stack((firsts, lengths), axis=1).tolist()]
        for position in np.flatnonzero(n_read != lengths):
            data[position] = np.frombuffer(self[int(position)], np.uint8)  # or names it
        return data
