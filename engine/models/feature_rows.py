"""Rows of frozen features, standardised by column: the inputs of the linear proxy.

Small features are held on the device. Larger ones are copied once from their store, whose chunks
of 16 MiB are no place to pick rows from, to a plain file of float16 that is mapped into memory:
1.28 million rows then need no memory that the kernel could not take back, and a batch costs the
copy of its rows. Both give the same rows, bit for bit on one device, because means and spreads come
from one pass over the same blocks in float64 and are applied by the same arithmetic in float32.

Shapes: n = samples, d = features of a sample, b = rows of a batch.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.engine.artifacts.store import feature_chunk_rows, feature_chunks, feature_shape
from coreset.engine.data.batch import BatchMemory
from coreset.engine.data.images import device_bytes
from coreset.engine.data.order import BatchOrder
from coreset.shards.errors import MachineError
from coreset.shards.format.files import new_file, sync_and_rename, temporary_name

FEATURE_ROWS_NAME = ".features.f16"
"""The mapped file; the owner of the directory removes it before it publishes an artifact."""
RESIDENT_BYTES = 1 << 30
"""Most of a CPU's memory that resident features may take: a mapped row takes 1 us anyway."""
RESIDENT_SHARE = 0.25
"""Share of a device's free memory that resident features may take."""
SMALLEST_SPREAD = 1e-6
"""A column with less spread counts as constant: divided by it, rounding errors would remain."""
SPARE_BYTES = 1 << 24
"""Free space to leave on the disk."""
_MOMENTS_ROWS = 1024  # in float64, 4 MB of 512 columns: they stay in a core's cache


class FeatureRows(Protocol):
    """Features of n samples, standardised by column to mean 0 and spread 1; constant columns 0."""

    n: int
    """Samples."""
    width: int
    """Features of a sample."""

    def rows(self, ids: NDArray[np.int64]) -> Tensor:
        """Return rows of some samples, float32 of shape (b, d) on the device.

        Raises:
            IndexError: An id is not in [0, n).
        """
        ...

    def in_order(self, batch: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield ids and rows of all samples, ``batch`` at a time; the last batch may be short.

        Raises:
            UsageError: ``batch`` is below 1.
        """
        ...

    def close(self) -> None:
        """Drop the features; a file stays."""
        ...


def feature_rows(
    store: Path, device: torch.device, *, scratch: Path, limit_bytes: int | None = None
) -> FeatureRows:
    """Open the features of a store, resident on ``device`` if they are small, else mapped.

    Args:
        store: Zarr store of features, float16 of shape (n, d).
        device: Device of the rows.
        scratch: Directory of the mapped file, ``FEATURE_ROWS_NAME``. One that holds these features
            already is used as it is, so that a resumed run writes nothing. Of several processes on
            one directory, one must have made the file before the others open it.
        limit_bytes: Up to how many bytes (4 n d) features are resident; None: ``resident_limit``.

    Raises:
        StoreError: The store is missing or damaged, or a feature is not finite.
        MachineError: The disk has no room for the mapped file (2 n d bytes).
    """
    n, width = feature_shape(store)
    limit = resident_limit(device) if limit_bytes is None else limit_bytes
    if 4 * n * width <= limit:
        return Resident(feature_chunks(store), (n, width), device)
    path = scratch / FEATURE_ROWS_NAME
    if not _holds(path, store):
        _write(path, store)
    return Mapped(path, (n, width), device)


def resident_limit(device: torch.device) -> int:
    """Return the bytes that resident features may take on a device at present."""
    share = int(RESIDENT_SHARE * device_bytes(device))
    return share if device.type == "cuda" else min(RESIDENT_BYTES, share)


class Resident:
    """All rows on the device, standardised once (4 n d bytes, and one chunk while reading)."""

    def __init__(
        self, chunks: Iterable[NDArray[np.float16]], shape: tuple[int, int], device: torch.device
    ) -> None:
        self.n, self.width = shape
        self._table = torch.empty((self.n, self.width), device=device)
        self._memory = BatchMemory()
        moments, first = Moments.none(self.width), 0
        for chunk in chunks:
            moments.add(chunk)
            self._table[first : first + len(chunk)] = torch.from_numpy(chunk).to(device)
            first += len(chunk)
        columns = moments.columns(device)
        self._table.sub_(columns.mean).div_(columns.spread)  # in place: no second n x d

    def rows(self, ids: NDArray[np.int64]) -> Tensor:
        """See ``FeatureRows.rows``."""
        if self._table.is_cuda:
            _require_in_range(ids, len(self._table))
            return self._table[torch.from_numpy(ids).to(self._table.device, non_blocking=True)]
        return torch.from_numpy(_taken(self._table.numpy(), ids, self._memory))

    def in_order(self, batch: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """See ``FeatureRows.in_order``."""
        return _in_order(self, batch)

    def close(self) -> None:
        """Drop the features."""
        self._table = torch.empty((0, self.width), device=self._table.device)
        self._memory.forget()


class Mapped:
    """Rows in a file of float16, gathered and standardised batch by batch."""

    def __init__(self, path: Path, shape: tuple[int, int], device: torch.device) -> None:
        self.n, self.width = shape
        self._table = _mapped(path, shape)
        self._device = device
        self._memory = BatchMemory()
        moments, step = Moments.none(self.width), feature_chunk_rows(self.width)
        for first in range(0, self.n, step):  # the blocks of `Resident`: the same sums, bit for bit
            moments.add(self._table[first : first + step])
        self._columns = moments.columns(device)

    def rows(self, ids: NDArray[np.int64]) -> Tensor:
        """See ``FeatureRows.rows``."""
        half = _taken(self._table, ids, self._memory)
        if self._device.type == "cpu":
            return torch.from_numpy(self._standardised(half))
        # As float16 over the bus. The memory may be used again at once: from unpinned memory the
        # driver has copied what it needs when the call returns.
        sent = torch.from_numpy(half).to(self._device, non_blocking=True)
        return torch.sub(sent, self._columns.mean).div_(self._columns.spread)

    def _standardised(self, half: NDArray[np.float16]) -> NDArray[np.float32]:
        """Standardise with NumPy: two torch threads on busy cores take ten times longer."""
        rows = self._memory.take(half.shape, np.dtype(np.float32))
        np.copyto(rows, half)
        rows -= self._columns.mean.numpy()
        rows /= self._columns.spread.numpy()
        return rows

    def in_order(self, batch: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """See ``FeatureRows.in_order``."""
        return _in_order(self, batch)

    def close(self) -> None:
        """Drop the map; the file stays."""
        self._table = np.empty((0, self.width), np.float16)
        self._memory.forget()


@dataclass(frozen=True, slots=True)
class Columns:
    """Mean and spread of each column: float32 of shape (d,) on the device."""

    mean: Tensor
    spread: Tensor
    """Standard deviation with n - 1; 1 for a constant column."""


@dataclass(slots=True)
class Moments:
    """Means and sums of squared deviations of columns, float64 of shape (d,), added up by blocks.

    Merged by the update of Chan, Golub and LeVeque, "Algorithms for computing the sample variance"
    (The American Statistician 37(3), 1983, equation 2.1), which does not cancel where a mean is
    large beside its spread.
    """

    n: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @staticmethod
    def none(width: int) -> "Moments":
        """Return the moments of no row."""
        return Moments(0, np.zeros(width), np.zeros(width))

    def add(self, rows: NDArray[np.float16]) -> None:
        """Add rows, shape (r, d); the sums depend on where the rows are cut only in rounding."""
        for first in range(0, len(rows), _MOMENTS_ROWS):
            self._merge(rows[first : first + _MOMENTS_ROWS].astype(np.float64))

    def _merge(self, block: NDArray[np.float64]) -> None:
        n, mean = self.n + len(block), block.mean(axis=0)
        block -= mean
        apart = mean - self.mean
        self.mean += apart * (len(block) / n)
        self.squares += np.einsum("rd,rd->d", block, block) + apart**2 * (self.n * len(block) / n)
        self.n = n

    def columns(self, device: torch.device) -> Columns:
        """Mean and spread on a device."""
        spread = np.sqrt(self.squares / max(1, self.n - 1))
        spread = np.where(spread > SMALLEST_SPREAD, spread, 1.0)
        mean, spread = (
            torch.from_numpy(column.astype(np.float32)).to(device) for column in (self.mean, spread)
        )
        return Columns(mean, spread)


def _in_order(features: FeatureRows, batch: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    for ids in BatchOrder(batch=batch).batches(features.n):
        yield ids, features.rows(ids)


def _taken(table: NDArray[Any], ids: NDArray[np.int64], memory: BatchMemory) -> NDArray[Any]:
    """Copy rows into memory that is reused once it is free."""
    _require_in_range(ids, len(table))
    rows = memory.take((ids.size, table.shape[1]), table.dtype)
    # "raise" would gather into memory of NumPy's own first; the ids are in range.
    np.take(table, ids, axis=0, out=rows, mode="clip")
    return rows


def _require_in_range(ids: NDArray[np.int64], n: int) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < n:
        raise IndexError(f"ids must be in [0, {n}), got {ids.min()} to {ids.max()}")


def _mapped(path: Path, shape: tuple[int, int]) -> NDArray[np.float16]:
    """Map the rows of a file, read only; a plain array is indexed faster than a memmap."""
    return np.asarray(np.memmap(path, np.float16, mode="r", shape=shape))


def _holds(path: Path, store: Path) -> bool:
    """Test whether a file has the features of the store, bit for bit.

    This takes the same pass over the store as writing, so that all features in use have passed the
    store's checksums.
    """
    shape = feature_shape(store)
    if not path.is_file() or path.stat().st_size != 2 * shape[0] * shape[1]:
        return False
    table, first = _mapped(path, shape).view(np.uint16), 0
    for chunk in feature_chunks(store):
        if not np.array_equal(table[first : first + len(chunk)], chunk.view(np.uint16)):
            return False
        first += len(chunk)
    return True


def _write(path: Path, store: Path) -> None:
    """Write the features of a store to a file, row after row, all of them or none."""
    scratch = temporary_name(path)
    path.unlink(missing_ok=True)
    _require_space(path.parent, *feature_shape(store))
    try:
        with new_file(scratch) as file:
            for chunk in feature_chunks(store):
                file.write(np.ascontiguousarray(chunk).data)
            sync_and_rename(file, path)
    finally:
        scratch.unlink(missing_ok=True)


def _require_space(directory: Path, n: int, width: int) -> None:
    needed, free = 2 * n * width + SPARE_BYTES, shutil.disk_usage(directory).free
    if needed > free:
        raise MachineError(
            f"features of {n:,} images need {needed:,} bytes in {directory}, {free:,} are free; "
            "free some space, or choose another output or a backbone with fewer features"
        )
