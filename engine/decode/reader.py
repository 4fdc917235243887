"""Byte ranges of the shards: the stored bytes of any samples, in any order, from any thread."""

import os
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from shards.dataset import Dataset
from shards.errors import ManifestError
from shards.ranges import OpenFiles


class ShardReader:
    """Reads samples of a packed data set by offset and length; thread safe, a context manager."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._shards = dataset.ints("shard")
        self._offsets = dataset.ints("offset")
        self._bytes = dataset.ints("bytes")
        self._files = OpenFiles(dataset.shard_paths())

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards; no read may be under way."""
        self._files.close()

    def read(self, ids: NDArray[np.int64]) -> list[bytes]:
        """Stored bytes of the samples ``ids``, in the order asked for.

        Raises:
            ManifestError: A shard is missing or ends before the sample does.
        """
        found = [b""] * ids.size
        order = np.lexsort((self._offsets[ids], self._shards[ids]))
        cuts = np.flatnonzero(np.diff(self._shards[ids[order]])) + 1
        for positions in np.split(order, cuts) if ids.size else ():
            self._read_from_one_shard(ids, positions, found)
        return found

    def name_of(self, sample: int) -> str:
        """``shard:offset:key`` of a sample id, for messages."""
        shard = self._dataset.manifest.shards[self._shards[sample]].name
        return f"{shard}:{self._offsets[sample]}:{self._dataset.samples['key'][sample].as_py()}"

    def _read_from_one_shard(
        self, ids: NDArray[np.int64], positions: NDArray[np.int64], found: list[bytes]
    ) -> None:
        samples = ids[positions]
        ranges = list(
            zip(self._bytes[samples].tolist(), self._offsets[samples].tolist(), strict=True)
        )
        with self._open_shard(int(self._shards[samples[0]])) as descriptor:
            for length, offset in ranges:  # all are on their way before the first is waited for
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
            for position, (length, offset) in zip(positions.tolist(), ranges, strict=True):
                found[position] = os.pread(descriptor, length, offset)
                if len(found[position]) != length:
                    raise ManifestError(
                        f"{self.name_of(int(ids[position]))} has {len(found[position])} of its "
                        f"{length} bytes; run `coreset verify {self._dataset.path}`"
                    )

    @contextmanager
    def _open_shard(self, shard: int) -> Generator[int]:
        try:
            with self._files.descriptor(shard) as descriptor:
                yield descriptor
        except OSError as error:
            raise ManifestError(
                f"{self._files.paths[shard]} cannot be opened ({error.strerror}); "
                f"run `coreset verify {self._dataset.path}`"
            ) from error
