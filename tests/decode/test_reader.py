from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decode.reader import ShardReader
from shards.errors import ManifestError


def stored_images(images, n=12):
    return [images.jpeg(8 + i, 9, seed=i) for i in range(n)]


@given(st.lists(st.integers(0, 22), max_size=60))
def test_bytes_come_back_in_the_order_asked_for(numbered, ids):
    with ShardReader(numbered) as reader:
        found = reader.read(np.array(ids, dtype=np.int64))
    offsets, lengths = numbered.ints("offset"), numbered.ints("bytes")
    shards = [numbered.shard_paths()[shard].read_bytes() for shard in numbered.ints("shard")]
    assert found == [shards[i][offsets[i] : offsets[i] + lengths[i]] for i in ids]


def test_threads_may_read_at_once(packed, images):
    stored = stored_images(images)
    with ShardReader(packed(stored)) as reader, ThreadPoolExecutor(8) as pool:
        orders = [np.random.default_rng(seed).permutation(12) for seed in range(40)]
        for order, found in zip(orders, pool.map(reader.read, orders), strict=True):
            assert found == [stored[i].data for i in order]


def test_more_shards_than_open_files_are_read(packed, images, monkeypatch):
    stored = stored_images(images)
    monkeypatch.setattr("resource.getrlimit", lambda _: (4, 4))
    with ShardReader(packed(stored, samples_per_shard=1)) as reader:
        assert reader.read(np.arange(12)) == [one.data for one in stored]


def test_a_cut_shard_is_refused_and_the_sample_named(packed, images):
    dataset = packed(stored_images(images))
    offset = int(dataset.ints("offset")[7])
    shard = dataset.shard_paths()[1]
    shard.write_bytes(shard.read_bytes()[: offset + 10])
    with ShardReader(dataset) as reader:
        reader.read(np.arange(7))
        with pytest.raises(
            ManifestError,
            match=rf"shard-000001.tar:{offset}:class1/image7 has 10 of its \d+ bytes; run `coreset",
        ):
            reader.read(np.array([11, 7, 0]))


def test_a_missing_shard_is_refused_and_named(packed, images):
    dataset = packed(stored_images(images))
    dataset.shard_paths()[2].unlink()
    with (
        ShardReader(dataset) as reader,
        pytest.raises(ManifestError, match=r"shard-000002\.tar cannot"),
    ):
        reader.read(np.array([11]))
