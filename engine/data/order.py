"""Order of samples: a pure function of (epoch, seed, rank, world size, position)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coreset.engine.data.geometry import Crops, Ints
from coreset.kernels.seeds import Stream, derived_seed, permutation, random_keys
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset

PADDING = -1
"""Id and label of a row without a sample."""
WINDOW_BLOCKS = 16
"""Blocks whose samples are mixed by a block shuffle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """Order in which one rank reads the samples of one epoch, their batches and their crops.

    Over all ranks every sample comes exactly once; the shares differ in length by one at most.
    Shuffled, ranks take every ``world``-th position of one permutation, so that batch k of all
    ranks together is batch k of one process with a ``world`` times larger batch. Unshuffled, or
    shuffled by blocks, ranks take contiguous ranges (of the permuted blocks), so that each reads
    its own shards. The samples of every 16 consecutive blocks are permuted together.
    """

    batch: int
    """Images per batch and rank; the last batch may be short."""
    epoch: int = 0
    """Together with ``seed``, decides the order when shuffled, and the crops."""
    seed: int = 0
    shuffle: bool = False
    """A permutation of all samples instead of their order."""
    rank: int = 0
    world: int = 1
    """Processes."""
    start: int = 0
    """First batch to read, to continue an interrupted epoch."""
    crops: Crops | None = None
    """Random resized crops instead of the geometry's central one."""
    pad: bool = False
    """Fill every batch up with rows of id and label -1, so that all ranks have equally many."""
    total: int = 0
    """Samples of all ranks, where the source holds the `fixed_share` of this one alone; else 0."""
    block: int = 0
    """Shuffle blocks of so many neighbours, for disks that cannot seek; 0 shuffles globally."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise UsageError(f"rank must be in [0, {self.world}) (world size), got {self.rank}")
        for name, least in (("batch", 1), ("start", 0), ("block", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def positions(self, n: int) -> Ints:
        """Return the positions 0 .. n-1 that this rank visits in this epoch, in order.

        With ``pad``, ``PADDING`` follows up to the multiple of ``batch`` that holds any share.
        """
        rank, world = (0, 1) if self.total else (self.rank, self.world)
        share = slice(n * rank // world, n * (rank + 1) // world)
        seed = derived_seed(self.seed, self.epoch)
        if self.total:  # ranks draw from different samples, so in different orders
            seed = derived_seed(seed, self.rank)
        if not self.shuffle:
            positions = np.arange(share.start, share.stop, dtype=np.int64)
        elif self.block:
            positions = _block_shuffled(n, self.block, share, seed)
        else:
            positions = permutation(n, seed)[rank::world]
        if not self.pad:
            return positions
        largest_share = -(-(self.total or n) // self.world)
        missing = -(-largest_share // self.batch) * self.batch - positions.size
        return np.append(positions, np.full(missing, PADDING))

    def batches(self, n: int) -> Iterator[Ints]:
        """Cut ``positions(n)`` into batches from batch ``start`` on; the last one may be short."""
        positions = self.positions(n)
        firsts = range(self.start * self.batch, positions.size, self.batch)
        return (positions[first : first + self.batch] for first in firsts)


def fixed_share(n: int, *, seed: int, rank: int, world: int) -> Ints:
    """Return which of n samples one rank keeps for all epochs: a random share, in ascending order.

    Over all ranks every sample comes exactly once; the shares differ in length by one at most.
    """
    return np.sort(permutation(n, derived_seed(seed, Stream.SHARES))[rank::world])


def _block_shuffled(n: int, block: int, share: slice, seed: int) -> Ints:
    place_of_block = permutation(-(-n // block), derived_seed(seed, Stream.BLOCKS))
    block_by_block = np.argsort(place_of_block[np.arange(n) // block], kind="stable")[share]
    windows = np.arange(block_by_block.size) // (WINDOW_BLOCKS * block)
    keys = random_keys(n, derived_seed(seed, Stream.SAMPLES))[share]
    return block_by_block[np.lexsort((keys, windows))].astype(np.int64)


def first_by_key(dataset: Dataset, most: int) -> Ints:
    """Return ids of the first samples of each class in the order of their keys, ascending."""
    keys = np.array(dataset.table(["key"])["key"].to_pylist())
    order = np.lexsort((keys, dataset.labels))
    labels = dataset.labels[order]
    rank = np.arange(order.size) - np.searchsorted(labels, labels)
    return np.sort(order[rank < most])
