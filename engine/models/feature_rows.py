"""Linear classifier on frozen features, and the rows of its input, standardised by column.

Small features are held on the device. Larger ones are copied once from the chunks of their store to
a plain file that is mapped into memory: it takes none that the kernel could not take back.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coreset.engine.artifacts.store import (
    Features,
    feature_chunk_rows,
    feature_chunks,
    feature_layout,
    read_features,
)
from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.residency import device_bytes
from coreset.kernels.neighbours import unit_rows
from coreset.shards.errors import MachineError, UsageError

FEATURE_ROWS_NAME = ".features.f16"
"""The mapped file, of any dtype; the owner of the directory removes it before it publishes."""
RESIDENT_BYTES = 1 << 30  # of a CPU's memory, at most
RESIDENT_SHARE = 0.25  # of a device's free memory
SMALLEST_SPREAD = 1e-6
"""A column with less spread counts as constant: divided by it, rounding errors would remain."""
SPARE_BYTES = 1 << 24  # to leave free on the disk
_MOMENTS_ROWS = 1024  # in float64, 4 MB of 512 columns: they stay in a core's cache
_Rows = TypeVar("_Rows", bound="FeatureRows")


def feature_rows(
    kind: type[_Rows], store: Path, device: torch.device, *, scratch: Path, write: bool = True
) -> _Rows:
    """Open the features of a store, resident on ``device`` if they are small, else mapped.

    The mapped file lies in ``scratch``. Of several processes one decides and may ``write`` it,
    before the others do as it did.
    """
    (n, width, _), path = feature_layout(store), scratch / FEATURE_ROWS_NAME
    if write:
        path.unlink(missing_ok=True)
        if 4 * n * width > resident_limit(device):
            _write(path, store)
    if not path.is_file():
        return kind(read_features(store), device)
    return kind(_mapped(path, store), device, resident=False)


def feature_table(store: Path, scratch: Path) -> Features:
    """Return the features of a store for access by row: in memory if small, else from a file."""
    (n, width, dtype), path = feature_layout(store), scratch / FEATURE_ROWS_NAME
    if n * width * dtype.itemsize <= RESIDENT_BYTES:
        return read_features(store)
    _write(path, store)
    table = _mapped(path, store)
    path.unlink()  # the mapping keeps it
    return table


def _mapped(path: Path, store: Path) -> Features:
    n, width, dtype = feature_layout(store)
    # A plain array is indexed faster than a memmap.
    return np.asarray(np.memmap(path, dtype, mode="r", shape=(n, width)))


def resident_limit(device: torch.device) -> int:
    """Return the bytes that resident features may take on a device at present."""
    share = int(RESIDENT_SHARE * device_bytes(device))
    return share if device.type == "cuda" else min(RESIDENT_BYTES, share)


class FeatureRows:
    """Features of n samples as float32; subclasses scale them.

    Resident rows are scaled once, others batch by batch, with the same bits.
    """

    def __init__(self, table: Features, device: torch.device, *, resident: bool = True) -> None:
        self.n, self.width = table.shape
        self._device, self._memory = device, BatchMemory(device)
        self._table: NDArray[Any] = table
        self._resident = resident
        self._gpu_table: Tensor | None = None
        if resident and device.type == "cpu":
            self._table = self._scaled(table, np.empty(table.shape, np.float32))
        elif resident:
            self._gpu_table = self._scaled_on_gpu(table)

    def rows(self, ids: NDArray[np.int64]) -> Tensor:
        """Return rows of some samples, float32 of shape (b, d) on the device."""
        if ids.size and not 0 <= ids.min() <= ids.max() < self.n:
            raise IndexError(f"ids must be in [0, {self.n}), got {ids.min()} to {ids.max()}")
        if self._gpu_table is not None:
            return self._gpu_table[torch.from_numpy(ids).to(self._device, non_blocking=True)]
        rows = self._memory.take((ids.size, self.width), self._table.dtype)
        # "raise" would gather into memory of NumPy's own first; the ids are in range.
        np.take(self._table, ids, axis=0, out=rows, mode="clip")
        if self._device.type != "cpu":
            return self._scaled_on_gpu(rows)
        if not self._resident:
            rows = self._scaled(rows, self._memory.take(rows.shape, np.dtype(np.float32)))
        return torch.from_numpy(rows)

    def _scaled(self, rows: Features, out: NDArray[np.float32]) -> NDArray[np.float32]:
        np.copyto(out, rows)
        return out

    def _scaled_on_gpu(self, rows: Features) -> Tensor:
        # As stored over the bus. `BatchMemory` gives out what is being copied only afterwards.
        return torch.from_numpy(rows).to(self._device, non_blocking=True).float()


class StandardRows(FeatureRows):
    """Features of n samples, standardised by column to mean 0 and spread 1; constant columns 0."""

    def __init__(self, table: Features, device: torch.device, *, resident: bool = True) -> None:
        self._mean, self._spread = (
            torch.from_numpy(column.astype(np.float32)).to(device)
            for column in _mean_and_spread(table)
        )
        super().__init__(table, device, resident=resident)

    def _scaled(self, rows: Features, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise with NumPy: two torch threads on busy cores take ten times longer."""
        np.copyto(out, rows)
        out -= self._mean.numpy()
        out /= self._spread.numpy()
        return out

    def _scaled_on_gpu(self, rows: Features) -> Tensor:
        sent = torch.from_numpy(rows).to(self._device, non_blocking=True)
        return torch.sub(sent, self._mean).div_(self._spread)


class UnitRows(FeatureRows):
    """Features of n samples, each row scaled to length 1; a row of zeros is refused."""

    def _scaled(self, rows: Features, out: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            for first in range(0, len(rows), _MOMENTS_ROWS):
                block = slice(first, first + _MOMENTS_ROWS)
                out[block] = unit_rows(rows[block])
        except ValueError as error:
            raise UsageError(str(error)) from error
        return out

    def _scaled_on_gpu(self, rows: Features) -> Tensor:
        return nn.functional.normalize(super()._scaled_on_gpu(rows))

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows in order, float32 of shape (b, d) on the device."""
        ids = np.arange(self.n)
        return (self.rows(ids[at : at + _MOMENTS_ROWS]) for at in range(0, self.n, _MOMENTS_ROWS))


def _mean_and_spread(table: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation (n - 1) of each column, 1 for a constant column.

    Blocks are merged by equation 2.1 of Chan, Golub and LeVeque (The American Statistician 37(3),
    1983), which does not cancel. Where they are cut decides the last bits of a score.
    """
    width, n = table.shape[1], 0
    mean, squares = np.zeros(width), np.zeros(width)
    step = feature_chunk_rows(width)
    for chunk in (table[first : first + step] for first in range(0, len(table), step)):
        for first in range(0, len(chunk), _MOMENTS_ROWS):
            block = chunk[first : first + _MOMENTS_ROWS].astype(np.float64)
            n_before, n = n, n + len(block)
            block_mean = block.mean(axis=0)
            block -= block_mean
            apart = block_mean - mean
            mean += apart * (len(block) / n)
            squares += np.einsum("rd,rd->d", block, block) + apart**2 * (n_before * len(block) / n)
    spread = np.sqrt(squares / max(1, n - 1))
    return mean, np.where(spread > SMALLEST_SPREAD, spread, 1.0)


def _write(path: Path, store: Path) -> None:
    """Write the features of a store to a file, row after row; no later run takes what is left."""
    n, width, dtype = feature_layout(store)
    needed, free = n * width * dtype.itemsize + SPARE_BYTES, shutil.disk_usage(path.parent).free
    if needed > free:
        raise MachineError(
            f"features of {n:,} images need {needed:,} bytes in {path.parent}, {free:,} are free; "
            "free some space, or choose another output or a backbone with fewer features"
        )
    with path.open("xb") as file:
        for chunk in feature_chunks(store):
            file.write(np.ascontiguousarray(chunk).data)


class LinearHead(nn.Module):
    """A linear classifier on frozen features; with folds, one more per fold, in one layer."""

    def __init__(self, width: int, n_classes: int, n_folds: int = 0) -> None:
        """Start from zero weights: a convex problem needs no random start."""
        super().__init__()
        self.linear = nn.Linear(width, n_classes)
        self.folds = nn.Linear(width, n_folds * n_classes) if n_folds else None
        for layer in filter(None, (self.linear, self.folds)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features_bd: Tensor) -> Tensor:
        """Compute logits of shape (b, classes), followed in each row by those of the folds."""
        logits = self.linear(features_bd)
        return logits if self.folds is None else torch.cat((logits, self.folds(features_bd)), 1)
