"""Byte ranges of the shards: the stored bytes of any samples, in any order, from any thread."""

import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, groupby, pairwise
from operator import attrgetter
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.jpeg.ffi import all_cached
from coreset.shards.errors import ManifestError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import OpenFiles

JOINED_GAP = 16 * 1024
"""Bytes between neighbours that are read along: from the page cache they cost less than a second
read."""
JOINED_BYTES = 256 * 1024
"""Longest joined read; its samples are cut out while a core's cache still holds it."""
READING_THREADS = 4
"""Storage that takes 2 ms a read, and no advice, gives 1,500 images of 110 kB a second to four
threads, about what two cores decode, and 400 to one. From the page cache one is best: four slow the
decoding of 10 kB images by a twentieth."""
_SHARD = attrgetter("shard")


class ReadRun(NamedTuple):
    """Neighbours in one shard that are read together: sample ids, and where each lies."""

    shard: int
    samples: list[int]
    starts: list[int]
    """Bytes from the beginning of the shard, ascending."""
    stops: list[int]


class ByteRanges(NamedTuple):
    """Bytes in open files, of samples: int64 of shape (n,)."""

    descriptors: NDArray[np.int64]
    """-1 where the file does not stay open."""
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def runs_of(
    samples: NDArray[np.int64],
    shards: NDArray[np.int64],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> list[ReadRun]:
    """Join samples, in ascending order of (shard, start), that lie close together.

    A run holds one sample, or as many as fit in ``JOINED_BYTES`` with gaps up to ``JOINED_GAP``.
    """
    ids, where = samples.tolist(), shards.tolist()
    begins, ends = starts.tolist(), stops.tolist()
    firsts: list[int] = []
    run_shard, run_start, last_stop = -1, 0, 0
    for place, (shard, start, stop) in enumerate(zip(where, begins, ends, strict=True)):
        if shard != run_shard or start - last_stop > JOINED_GAP or stop - run_start > JOINED_BYTES:
            firsts.append(place)
            run_shard, run_start = shard, start
        last_stop = stop
    bounds = pairwise([*firsts, len(ids)])
    return [ReadRun(where[a], ids[a:b], begins[a:b], ends[a:b]) for a, b in bounds]


class ShardReader:
    """Reads samples of a packed data set by offset and length; thread safe, a context manager."""

    def __init__(self, dataset: Dataset, *, threads: int = READING_THREADS) -> None:
        """Bind the data set; shards are opened when they are needed.

        Args:
            dataset: What to read.
            threads: Reads under way at once where bytes are not in the page cache, for storage that
                does not read ahead when advised to (some network file systems).
        """
        self._dataset = dataset
        self._shards = dataset.ints("shard")
        self._offsets = dataset.ints("offset")
        self._bytes = dataset.ints("bytes")
        self._files = OpenFiles(dataset.shard_paths())
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and close the shards; no read may be under way."""
        self._pool.shutdown()
        self._files.close()

    def read(self, ids: NDArray[np.int64]) -> list[bytes]:
        """Stored bytes of the samples ``ids``, in the order asked for.

        Takes the memory of what it returns, and of one run in each thread.

        Raises:
            ManifestError: A shard is missing or ends before the sample does, or cannot be read.
        """
        order, runs = self._planned(ids)
        return self._read_runs(order, runs, self._threads if self._advise(runs) else 1)

    def fetch(self, ids: NDArray[np.int64]) -> Sequence[bytes]:
        """`read` what storage has to be waited for; what the page cache has stays there until then.

        A decoding thread that asks for a sample has it in the cache of its core, and no batch of
        encoded images takes memory. What leaves the page cache meanwhile is waited for.

        Raises:
            ManifestError: As `read`; also when a sample is asked for, in any thread.
        """
        places = self._places(ids)
        if all_cached(places.descriptors, places.starts + places.lengths - 1):
            return LazyBytes(self, ids, places)
        order, runs = self._planned(ids)
        if self._advise(runs):
            return self._read_runs(order, runs, self._threads)
        return LazyBytes(self, ids, places)  # of more shards than may be open

    def read_one(self, sample: int) -> bytes:
        """Stored bytes of one sample id.

        Raises:
            ManifestError: As `read`.
        """
        shard, start = int(self._shards[sample]), int(self._offsets[sample])
        stop = start + int(self._bytes[sample])
        kept = self._files.kept(shard)
        if kept is not None:
            return self._read_alone(kept, sample, start, stop)
        with self._opened(shard) as descriptor:
            return self._read_alone(descriptor, sample, start, stop)

    def name_of(self, sample: int) -> str:
        """``shard:offset:key`` of a sample id, for messages."""
        shard = self._dataset.manifest.shards[self._shards[sample]].name
        return f"{shard}:{self._offsets[sample]}:{self._dataset.samples['key'][sample].as_py()}"

    def _places(self, ids: NDArray[np.int64]) -> ByteRanges:
        numbers, positions = np.unique(self._shards[ids], return_inverse=True)
        descriptors = np.array([self._descriptor(number) for number in numbers.tolist()], np.int64)
        return ByteRanges(descriptors[positions], self._offsets[ids], self._bytes[ids])

    def _descriptor(self, shard: int) -> int:
        """Descriptor of a shard that stays open; -1 if it cannot, of which the reading tells."""
        with suppress(OSError), self._files.descriptor(shard):
            pass
        kept = self._files.kept(shard)
        return -1 if kept is None else kept

    def _planned(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[ReadRun]]:
        """Positions in the order of the shards, and what is read together in that order."""
        order = np.lexsort((self._offsets[ids], self._shards[ids]))
        samples = ids[order]
        starts = self._offsets[samples]
        return order, runs_of(samples, self._shards[samples], starts, starts + self._bytes[samples])

    def _advise(self, runs: Sequence[ReadRun]) -> bool:
        """Set all reads that have to wait on their way; whether there are any."""
        waits = False
        for shard, of_shard in groupby(runs, _SHARD):
            # Whatever is wrong will be said when it is read.
            with suppress(OSError), self._files.descriptor(shard) as descriptor:
                for run in of_shard:
                    if not _is_cached(descriptor, run.stops[-1] - 1):
                        waits, length = True, run.stops[-1] - run.starts[0]
                        os.posix_fadvise(descriptor, run.starts[0], length, os.POSIX_FADV_WILLNEED)
        return waits

    def _read_runs(
        self, order: NDArray[np.int64], runs: Sequence[ReadRun], threads: int
    ) -> list[bytes]:
        """Bytes of all samples in the order asked for; of several faults the first is raised."""
        n_parts = min(threads, len(runs))
        bounds = [len(runs) * part // max(n_parts, 1) for part in range(n_parts + 1)]
        parts = [runs[a:b] for a, b in pairwise(bounds)]
        read = (
            self._pool.map(self._read_part, parts) if n_parts > 1 else map(self._read_part, parts)
        )
        found = [b""] * order.size
        for position, data in zip(order.tolist(), chain.from_iterable(read), strict=True):
            found[position] = data
        return found

    def _read_part(self, runs: Sequence[ReadRun]) -> list[bytes]:
        found: list[bytes] = []
        for shard, of_shard in groupby(runs, _SHARD):
            with self._opened(shard) as descriptor:
                for run in of_shard:
                    found += self._read_run(descriptor, run)
        return found

    @contextmanager
    def _opened(self, shard: int) -> Generator[int]:
        try:
            with self._files.descriptor(shard) as descriptor:
                yield descriptor
        except OSError as error:
            raise ManifestError(
                f"{self._files.paths[shard]} cannot be opened ({error.strerror}); "
                f"run `coreset verify {self._dataset.path}`"
            ) from error

    def _read_run(self, descriptor: int, run: ReadRun) -> list[bytes]:
        if len(run.samples) > 1 and (found := _joined(descriptor, run)):
            return found
        # One by one, also to tell which sample of a run is at fault.
        return [
            self._read_alone(descriptor, *sample)
            for sample in zip(run.samples, run.starts, run.stops, strict=True)
        ]

    def _read_alone(self, descriptor: int, sample: int, start: int, stop: int) -> bytes:
        try:
            data = os.pread(descriptor, stop - start, start)
        except OSError as error:
            raise ManifestError(
                f"{self.name_of(sample)} cannot be read ({error.strerror}); "
                f"run `coreset verify {self._dataset.path}`"
            ) from error
        if len(data) != stop - start:
            raise ManifestError(
                f"{self.name_of(sample)} has {len(data)} of its {stop - start} bytes; "
                f"run `coreset verify {self._dataset.path}`"
            )
        return data


class LazyBytes(Sequence[bytes]):
    """Samples that are read when they are asked for."""

    def __init__(self, reader: ShardReader, ids: NDArray[np.int64], places: ByteRanges) -> None:
        self._read_one, self._ids = reader.read_one, ids.tolist()
        self.places = places
        """For who reads them by other means."""

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        if isinstance(at, slice):
            return [self._read_one(sample) for sample in self._ids[at]]
        return self._read_one(self._ids[at])


def _is_cached(descriptor: int, at: int) -> bool:
    """Whether a byte is in the page cache; False where the file system does not tell."""
    try:
        return os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _joined(descriptor: int, run: ReadRun) -> list[bytes]:
    """Bytes of a run's samples by one read; none if it fails or comes short."""
    first, length = run.starts[0], run.stops[-1] - run.starts[0]
    with suppress(OSError):
        data = os.pread(descriptor, length, first)
        if len(data) == length:
            ranges = zip(run.starts, run.stops, strict=True)
            return [data[start - first : stop - first] for start, stop in ranges]
    return []
