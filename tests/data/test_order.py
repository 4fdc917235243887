from itertools import chain
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.engine.data.order import PADDING, WINDOW_BLOCKS, BatchOrder, batches_of
from coreset.shards.errors import UsageError

sizes = st.integers(0, 300)
worlds = st.integers(1, 9)
blocks = st.integers(0, 40)


def positions(n, **settings):
    options: dict[str, Any] = {"batch": 4, "shuffle": True}
    return BatchOrder(**options | settings).positions(n)


def shares_of(n, world, **settings):
    return [positions(n, rank=rank, world=world, **settings) for rank in range(world)]


@given(sizes, worlds, st.booleans(), blocks, st.integers(0, 2**64))
def test_every_position_is_visited_once_over_all_ranks(n, world, shuffle, block, seed):
    shares = shares_of(n, world, seed=seed, epoch=3, shuffle=shuffle, block=block)
    assert sorted(np.concatenate(shares).tolist()) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert {share.dtype for share in shares} == {np.dtype(np.int64)}


@given(sizes, worlds, st.integers(1, 7))
def test_a_shuffled_batch_of_all_ranks_is_the_batch_of_one_process(n, world, batch):
    alone = batches_of(positions(n, seed=1, epoch=2), batch * world)
    shares = [positions(n, seed=1, epoch=2, rank=rank, world=world) for rank in range(world)]
    together = [list(batches_of(share, batch)) for share in shares]
    for step, expected in enumerate(alone):
        parts = [part[step] for part in together if step < len(part)]
        assert sorted(np.concatenate(parts).tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("block", [0, 4])
def test_order_depends_on_epoch_and_seed_and_nothing_else(block):
    first = positions(100, seed=3, epoch=1, block=block)
    np.testing.assert_array_equal(first, positions(100, seed=3, epoch=1, block=block))
    assert not np.array_equal(first, positions(100, seed=3, epoch=2, block=block))
    assert not np.array_equal(first, positions(100, seed=4, epoch=1, block=block))


def test_unshuffled_order_is_ascending():
    np.testing.assert_array_equal(positions(7, seed=5, epoch=9, shuffle=False), np.arange(7))


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_a_window_of_a_block_shuffle_is_16_whole_blocks(block, n_blocks, data):
    world = data.draw(st.integers(1, 3))
    settings = {"seed": data.draw(st.integers(0, 99)), "epoch": 0, "block": block}
    for share in shares_of(WINDOW_BLOCKS * block * n_blocks * world, world, **settings):
        for window in share.reshape(-1, WINDOW_BLOCKS * block):
            blocks, counts = np.unique(window // block, return_counts=True)
            assert (blocks.size, set(counts)) == (WINDOW_BLOCKS, {block})


@given(sizes, st.integers(1, 40), st.integers(0, 99))
def test_neighbours_of_a_block_come_less_than_two_windows_apart(n, block, seed):
    place = np.argsort(positions(n, seed=seed, epoch=0, block=block))
    for start in range(0, n, block):
        assert np.ptp(place[start : start + block]) < 2 * WINDOW_BLOCKS * block


def test_blocks_and_the_samples_of_a_window_come_in_all_orders_equally_often():
    orders = [tuple(positions(4, seed=0, epoch=epoch, block=2)) for epoch in range(2400)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert counts.size == 24
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert chi_square < 49.7  # 0.1 % of fair draws exceed it at 23 degrees of freedom
    first_blocks = [positions(96, seed=0, epoch=epoch, block=2)[0] // 2 for epoch in range(4800)]
    assert np.bincount(first_blocks, minlength=48).min() > 60  # 100 +- 10 are expected


def test_rows_of_a_batch_share_a_block_as_often_as_stated():
    n, block, batch = 4096, 4, 32
    same = []
    for epoch in range(4):
        for ids in batches_of(positions(n, seed=1, epoch=epoch, block=block), batch):
            from_block = np.unique(ids // block, return_counts=True)[1].tolist()
            same.append(sum(comb(rows, 2) for rows in from_block) / comb(batch, 2))
    stated, error = (block - 1) / (WINDOW_BLOCKS * block - 1), np.std(same) / len(same) ** 0.5
    assert error < 0.02 * stated
    assert np.mean(same) == pytest.approx(stated, abs=4 * error)


@pytest.mark.parametrize("block", [0, 64])
def test_a_batch_of_a_set_in_source_order_has_as_many_classes_as_stated(block):
    n_classes, per_class, batch = 64, 64, 128
    n = n_classes * per_class
    found = [
        np.unique(ids // per_class).size
        for epoch in range(8)
        for ids in batches_of(positions(n, seed=2, epoch=epoch, block=block), batch)
    ]
    pool = WINDOW_BLOCKS * per_class if block else n
    absent = comb(pool - per_class, batch) / comb(pool, batch)  # a class that the pool has
    expected = pool / per_class * (1 - absent)
    error = max(np.std(found) / len(found) ** 0.5, 1e-3)
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)


@given(sizes, worlds, st.booleans(), blocks, st.integers(1, 50))
def test_padding_gives_all_ranks_as_many_whole_batches(n, world, shuffle, block, batch):
    settings = {"seed": 3, "epoch": 0, "shuffle": shuffle, "block": block}
    padded = shares_of(n, world, batch=batch, pad=True, **settings)
    largest = max(map(len, shares_of(n, world, **settings)))
    assert {len(share) for share in padded} == {-(-largest // batch) * batch}
    for short, long in zip(shares_of(n, world, **settings), padded, strict=True):
        np.testing.assert_array_equal(long[: len(short)], short)
        assert set(long[len(short) :].tolist()) <= {PADDING}
        assert long.dtype == np.int64


@given(sizes, st.integers(1, 40), st.integers(0, 12), blocks)
def test_an_epoch_continues_at_any_batch(n, batch, start, block):
    ids = positions(n, seed=0, epoch=0, block=block)
    whole = [part.tolist() for part in batches_of(ids, batch)]
    rest = BatchOrder(batch=batch, start=start, shuffle=True, block=block).batches(n)
    assert [part.tolist() for part in rest] == whole[start:]
    assert list(chain.from_iterable(whole)) == ids.tolist()
    assert all(len(part) == batch for part in whole[:-1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 4, "rank": 2, "world": 2}, r"rank must be in \[0, 2\) \(world size\), got 2"),
        ({"batch": 4, "rank": -1}, "rank must be in"),
        ({"batch": 4, "world": 0}, "rank must be in"),
        ({"batch": 4, "block": -1}, "block must be at least 0, got -1"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"batch": 4, "start": -1}, "start must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        BatchOrder(**settings)
