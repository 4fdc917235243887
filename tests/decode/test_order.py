from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decode.order import batches_of, epoch_ids
from shards.errors import UsageError

sizes = st.integers(0, 300)
worlds = st.integers(1, 9)


@given(sizes, worlds, st.booleans(), st.integers(0, 5), st.integers(0, 2**64))
def test_every_position_is_visited_once_over_all_ranks(n, world, shuffle, epoch, seed):
    shares = [
        epoch_ids(n, seed=seed, epoch=epoch, shuffle=shuffle, rank=rank, world=world)
        for rank in range(world)
    ]
    assert sorted(np.concatenate(shares).tolist()) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert {share.dtype for share in shares} == {np.dtype(np.int64)}


@given(sizes, worlds, st.integers(1, 7))
def test_a_shuffled_batch_of_all_ranks_is_the_batch_of_one_process(n, world, batch):
    alone = batches_of(epoch_ids(n, seed=1, epoch=2), batch * world)
    shares = [epoch_ids(n, seed=1, epoch=2, rank=rank, world=world) for rank in range(world)]
    together = [list(batches_of(share, batch)) for share in shares]
    for step, expected in enumerate(alone):
        parts = [part[step] for part in together if step < len(part)]
        assert sorted(np.concatenate(parts).tolist()) == sorted(expected.tolist())


def test_order_depends_on_epoch_and_seed_and_nothing_else():
    first = epoch_ids(100, seed=3, epoch=1)
    np.testing.assert_array_equal(first, epoch_ids(100, seed=3, epoch=1))
    assert not np.array_equal(first, epoch_ids(100, seed=3, epoch=2))
    assert not np.array_equal(first, epoch_ids(100, seed=4, epoch=1))


def test_unshuffled_order_is_ascending():
    np.testing.assert_array_equal(epoch_ids(7, seed=5, epoch=9, shuffle=False), np.arange(7))


@given(sizes, st.integers(1, 40), st.integers(0, 12))
def test_an_epoch_continues_at_any_batch(n, batch, start):
    ids = epoch_ids(n, seed=0, epoch=0)
    whole = [part.tolist() for part in batches_of(ids, batch)]
    assert [part.tolist() for part in batches_of(ids, batch, start)] == whole[start:]
    assert list(chain.from_iterable(whole)) == ids.tolist()
    assert all(len(part) == batch for part in whole[:-1])


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 1), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank, world):
    with pytest.raises(UsageError, match="rank must be in"):
        epoch_ids(4, seed=0, epoch=0, rank=rank, world=world)


@pytest.mark.parametrize(("batch", "start"), [(0, 0), (4, -1)])
def test_empty_batches_and_negative_starts_are_refused(batch, start):
    with pytest.raises(UsageError, match="batch must be at least 1"):
        batches_of(np.arange(4), batch, start)
