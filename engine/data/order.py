"""Which sample comes when: a pure function of (epoch, seed, rank, world size, position).

Exactly-once, shuffling, sharing among ranks and continuation in the middle of an epoch are solved
here, without a file, so that no decoder has to know about them.

A block shuffle is for storage that is slow to seek. Blocks of neighbours are permuted, and then
the samples of every window of 16 consecutive blocks. With blocks of a 16th of a batch, each batch
is one window and each block one read; larger blocks mix more and are read in more pieces. Its
quality:

- A block may come anywhere in the epoch, but its samples lie in one window, or in two that follow
  one another: whatever is drawn, neighbours come less than two windows apart.
- Two rows of a window come from one block with probability ``(block - 1) / (16 * block - 1)``,
  about a 16th, and in a global shuffle with ``(block - 1) / (n - 1)``.
- In the default pack order, where neighbours are strangers, a batch holds as many classes as one of
  a global shuffle: of ImageNet's 1000, 226 at 256 rows. Packed class by class, it holds only those
  of its 16 blocks: 16 with blocks of 16, 28 with blocks of 1024.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.seeds import OrderStream, derived_seed, permutation, random_keys
from coreset.shards.errors import UsageError

PADDING = -1
"""Stands where a batch has a row without a sample."""
WINDOW_BLOCKS = 16
"""Blocks whose samples are mixed by a block shuffle."""


def epoch_ids(
    n: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    rank: int = 0,
    world: int = 1,
    block: int = 0,
    pad_to: int = 0,
) -> NDArray[np.int64]:
    """Positions 0 .. n-1 in the order in which one rank visits them during one epoch.

    Over all ranks every position occurs exactly once; the shares differ in length by one at most.

    - Shuffled, ranks take every ``world``-th position of one permutation, so that batch k of all
      ranks together holds the same positions as batch k of one process with a ``world`` times
      larger batch.
    - Unshuffled, ranks take contiguous ranges, so that each reads its own shards.
    - Shuffled by blocks, ranks take contiguous ranges of the permuted blocks, so that each reads
      its own, and windows begin anew in each.

    Args:
        n: Positions.
        seed: Seed of the run.
        epoch: Together with ``seed``, decides the order when shuffled.
        shuffle: Permute; without it positions ascend.
        rank: This process.
        world: Processes.
        block: Neighbours per block of a block shuffle; 0 shuffles globally. Without ``shuffle`` it
            means nothing.
        pad_to: Batch size up to which ``PADDING`` is appended, so that all ranks have the same
            number of whole batches; 0 appends nothing.

    Returns:
        int64 of shape (n / world,), rounded up or down; with ``pad_to``, of the multiple of
        ``pad_to`` that holds the largest share.

    Raises:
        UsageError: ``rank`` is not in [0, world), or ``block`` or ``pad_to`` is below 0.
    """
    if not 0 <= rank < world:
        raise UsageError(f"rank must be in [0, {world}) (world size), got {rank}")
    if block < 0 or pad_to < 0:
        raise UsageError(
            f"block and pad_to must be at least 0 (which means none), got {block} and {pad_to}"
        )
    share = slice(n * rank // world, n * (rank + 1) // world)
    if not shuffle:
        ids = np.arange(share.start, share.stop, dtype=np.int64)
    elif block:
        ids = _block_shuffled(n, block, share, derived_seed(seed, epoch))
    else:
        ids = permutation(n, derived_seed(seed, epoch))[rank::world]
    return _padded(ids, largest_share=-(-n // world), multiple=pad_to) if pad_to else ids


def batches_of(
    ids: NDArray[np.int64], batch_size: int, start_batch: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Cut ``ids`` into batches from batch number ``start_batch`` on; the last one may be short.

    Raises:
        UsageError: ``batch_size`` is below 1, or ``start_batch`` below 0.
    """
    if batch_size < 1 or start_batch < 0:
        raise UsageError(
            f"batch must be at least 1 and start_batch at least 0, got {batch_size} and "
            f"{start_batch}"
        )
    starts = range(start_batch * batch_size, ids.size, batch_size)
    return (ids[start : start + batch_size] for start in starts)


def _block_shuffled(n: int, block: int, share: slice, seed: int) -> NDArray[np.int64]:
    place_of_block = permutation(-(-n // block), derived_seed(seed, OrderStream.BLOCKS))
    block_by_block = np.argsort(place_of_block[np.arange(n) // block], kind="stable")[share]
    windows = np.arange(block_by_block.size) // (WINDOW_BLOCKS * block)
    keys = random_keys(n, derived_seed(seed, OrderStream.SAMPLES))[share]
    return block_by_block[np.lexsort((keys, windows))].astype(np.int64)


def _padded(ids: NDArray[np.int64], *, largest_share: int, multiple: int) -> NDArray[np.int64]:
    missing = -(-largest_share // multiple) * multiple - ids.size
    return np.append(ids, np.full(missing, PADDING))
