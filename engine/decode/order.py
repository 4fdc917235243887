"""Which sample comes when: a pure function of (epoch, seed, rank, world size, position).

Exactly-once, global shuffling, sharing among ranks and continuation in the middle of an epoch are
solved here, without a file, so that no decoder has to know about them.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kernels.seeds import derived_seed, permutation
from shards.errors import UsageError


def epoch_ids(
    n: int, *, seed: int, epoch: int, shuffle: bool = True, rank: int = 0, world: int = 1
) -> NDArray[np.int64]:
    """Positions 0 .. n-1 in the order in which one rank visits them during one epoch.

    Over all ranks every position occurs exactly once; the shares differ in length by one at most.
    Shuffled ranks take every ``world``-th position, so that batch k of all ranks together holds the
    same positions as batch k of one process with a ``world`` times larger batch. Unshuffled ranks
    take contiguous ranges, so that each reads its own shards.

    Returns:
        int64 of shape (n / world,), rounded up or down.

    Raises:
        UsageError: ``rank`` is not in [0, world).
    """
    if not 0 <= rank < world:
        raise UsageError(f"rank must be in [0, {world}) (world size), got {rank}")
    if shuffle:
        return permutation(n, derived_seed(seed, epoch))[rank::world]
    return np.arange(n * rank // world, n * (rank + 1) // world, dtype=np.int64)


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
