from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.engine.data.order import PADDING, WINDOW_BLOCKS, BatchOrder, fixed_share
from coreset.shards.errors import UsageError

sizes = st.integers(0, 300)
worlds = st.integers(1, 9)
blocks = st.integers(0, 40)


def order_of(**settings):
    options: dict[str, Any] = {"batch": 4, "shuffle": True}
    return BatchOrder(**options | settings)


def shares_of(n, world, **settings):
    return [order_of(rank=rank, world=world, **settings).positions(n) for rank in range(world)]


@given(
    sizes,
    worlds,
    st.builds(
        dict,
        seed=st.integers(0, 2**64),
        shuffle=st.booleans(),
        block=blocks,
        batch=st.integers(1, 50),
    ),
)
def test_every_position_is_visited_once_over_all_ranks(n, world, settings):
    batch = settings["batch"]
    shares = shares_of(n, world, **settings)
    assert sorted(np.concatenate(shares).tolist()) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    padded = shares_of(n, world, pad=True, **settings)
    assert {len(share) for share in padded} == {-(-max(map(len, shares)) // batch) * batch}
    for share, whole in zip(shares, padded, strict=True):
        np.testing.assert_array_equal(whole[: len(share)], share)
        assert set(whole[len(share) :].tolist()) <= {PADDING}
        assert whole.dtype == share.dtype == np.int64


@given(st.integers(1, 300), worlds, blocks, st.booleans(), st.integers(1, 50))
def test_ranks_with_fixed_shares_visit_every_sample_once_in_other_orders_each_epoch(
    n, world, block, shuffle, batch
):
    shares = [fixed_share(n, seed=7, rank=rank, world=world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    settings = {"batch": batch, "shuffle": shuffle, "block": block, "world": world, "total": n}
    lengths = set()
    for rank, share in enumerate(shares):
        order = order_of(rank=rank, **settings)
        assert sorted(order.positions(len(share)).tolist()) == list(range(len(share)))
        lengths.add(len(order_of(rank=rank, pad=True, **settings).positions(len(share))))
    assert lengths == {-(-max(map(len, shares)) // batch) * batch}


def test_fixed_shares_are_shuffled_by_epoch_and_rank():
    orders = {
        tuple(order_of(rank=rank, epoch=epoch, world=2, total=80).positions(40))
        for rank in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@given(sizes, worlds, st.integers(1, 7))
def test_a_shuffled_batch_of_all_ranks_is_the_batch_of_one_process(n, world, batch):
    alone = order_of(batch=batch * world, seed=1, epoch=2).batches(n)
    together = [
        list(order_of(batch=batch, seed=1, epoch=2, rank=rank, world=world).batches(n))
        for rank in range(world)
    ]
    for step, expected in enumerate(alone):
        parts = [part[step] for part in together if step < len(part)]
        assert sorted(np.concatenate(parts).tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("block", [0, 4])
def test_order_depends_on_epoch_and_seed_and_nothing_else(block):
    first = order_of(seed=3, epoch=1, block=block).positions(100)
    np.testing.assert_array_equal(
        first, order_of(seed=3, epoch=1, block=block, batch=9).positions(100)
    )
    for changed in ({"seed": 3, "epoch": 2}, {"seed": 4, "epoch": 1}):
        assert not np.array_equal(first, order_of(block=block, **changed).positions(100))
    unshuffled = order_of(seed=3, epoch=1, block=block, shuffle=False)
    np.testing.assert_array_equal(unshuffled.positions(7), np.arange(7))


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
    place = np.argsort(order_of(seed=seed, block=block).positions(n))
    for start in range(0, n, block):
        assert np.ptp(place[start : start + block]) < 2 * WINDOW_BLOCKS * block


def test_blocks_and_the_samples_of_a_window_come_in_all_orders_equally_often():
    orders = [tuple(order_of(epoch=epoch, block=2).positions(4)) for epoch in range(2400)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert counts.size == 24
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert chi_square < 49.7  # 0.1 % of fair draws exceed it at 23 degrees of freedom
    first = [order_of(epoch=epoch, block=2).positions(96)[0] // 2 for epoch in range(4800)]
    assert np.bincount(first, minlength=48).min() > 60  # 100 +- 10 are expected


@given(sizes, st.integers(1, 40), st.integers(0, 12), blocks)
def test_an_epoch_continues_at_any_batch(n, batch, start, block):
    order = order_of(batch=batch, block=block)
    whole = [part.tolist() for part in order.batches(n)]
    rest = order_of(batch=batch, start=start, block=block).batches(n)
    assert [part.tolist() for part in rest] == whole[start:]
    assert list(chain.from_iterable(whole)) == order.positions(n).tolist()
    assert all(len(part) == batch for part in whole[:-1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2, "world": 2}, r"rank must be in \[0, 2\) \(world size\), got 2"),
        ({"rank": -1}, "rank must be in"),
        ({"world": 0}, "rank must be in"),
        ({"block": -1}, "block must be at least 0, got -1"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"start": -1}, "start must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        order_of(**settings)
