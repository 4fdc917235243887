import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.engine.data.buffers import BatchMemory
from coreset.engine.data.reader import LazyBytes, ShardReader
from coreset.shards.errors import ManifestError
from coreset.shards.format.dataset import Dataset

N = 12


@pytest.fixture
def stored(images):
    return [images.jpeg(8 + i, 9, seed=i).data for i in range(N)]


@pytest.fixture
def dataset(packed, images) -> Dataset:
    return packed([images.jpeg(8 + i, 9, seed=i) for i in range(N)])


@pytest.fixture
def cached(monkeypatch):
    """``cached(True)``: whether the page cache is said to hold what is asked for."""
    return lambda is_cached: monkeypatch.setattr(
        "coreset.engine.data.reader.all_cached", lambda *_: is_cached
    )


def open_descriptors() -> set[str]:
    return {link.name for link in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("most_open", [100, 2])
def test_bytes_come_in_the_order_asked_for(
    dataset, stored, monkeypatch, cached, *, is_cached, most_open
):
    """Also where the data set has more shards than may be open."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (2 * most_open, 2 * most_open))
    cached(is_cached)

    @given(st.lists(st.integers(0, N - 1), max_size=30))
    def check(ids):
        rows = np.array(ids, dtype=np.int64)
        expected = [stored[i] for i in ids]
        assert reader.read(rows) == expected
        fetched = reader.fetch(rows)
        assert isinstance(fetched, LazyBytes) == is_cached
        assert [fetched[i] for i in range(len(fetched))] == expected
        if isinstance(fetched, LazyBytes):
            assert [part.tobytes() for part in fetched.read_together(BatchMemory())] == expected

    with ShardReader(dataset) as reader:
        check()
        assert [reader.read_one(i) for i in range(N)] == stored


def test_files_and_threads_are_gone_after_closing_and_after_errors(dataset):
    dataset.shard_paths()[2].unlink()
    before = open_descriptors(), threading.active_count()
    with ShardReader(dataset) as reader:
        reader.read(np.arange(6))
        with pytest.raises(ManifestError, match="shard-000002"):
            reader.read(np.arange(N))
    assert (open_descriptors(), threading.active_count()) == before


def test_the_first_sample_that_a_cut_takes_is_named_and_those_before_stay_readable(
    packed, images, stored
):
    dataset = packed([images.Stored(data, 8, 8) for data in stored], samples_per_shard=N)
    (shard,) = dataset.shard_paths()
    offsets, lengths = dataset.ints("offset"), dataset.ints("bytes")
    with ShardReader(dataset) as reader:
        for sample in reversed(range(N)):
            os.truncate(shard, offsets[sample] + lengths[sample] - 1)
            assert reader.read(np.arange(sample)) == stored[:sample]
            message = (
                rf"shard-000000\.tar:{offsets[sample]}:class\d/image{sample} has "
                rf"{lengths[sample] - 1} of its {lengths[sample]} bytes; run `coreset verify"
            )
            with pytest.raises(ManifestError, match=message):
                reader.read(np.arange(N)[::-1])


def test_of_several_faults_the_first_is_named_whatever_the_threads_do(packed, images, stored):
    dataset = packed([images.Stored(data, 8, 8) for data in stored], samples_per_shard=1)
    for shard in (9, 4, 7):
        dataset.shard_paths()[shard].unlink()
    with ShardReader(dataset) as reader:
        for _ in range(20):
            with pytest.raises(ManifestError, match=r"shard-000004\.tar:.* cannot be read \(No su"):
                reader.read(np.arange(N))


def test_a_shard_that_can_be_opened_but_not_read_is_refused_and_the_sample_named(dataset):
    dataset.shard_paths()[1].unlink()
    dataset.shard_paths()[1].mkdir()
    message = r"shard-000001\.tar:\d+:class0/image6 cannot be read \(Is a dir"
    with ShardReader(dataset) as reader, pytest.raises(ManifestError, match=message):
        reader.read(np.array([6, 7, 8]))


@pytest.mark.parametrize("is_cached", [True, False])
def test_what_cannot_be_read_is_refused_by_name_when_it_is_asked_for(
    dataset, stored, cached, is_cached
):
    with ShardReader(dataset) as reader:
        cached(is_cached)
        early = reader.fetch(np.arange(N))
        os.truncate(dataset.shard_paths()[1], dataset.ints("offset")[6] + 10)
        late = reader.fetch(np.arange(N))
        assert [late[i] for i in range(6)] == [early[i] for i in range(6)] == stored[:6]
        with pytest.raises(ManifestError, match=r":class0/image6 has 10 of its \d+ bytes"):
            late[6]
        if isinstance(late, LazyBytes):
            with pytest.raises(ManifestError, match=r":class0/image6 has 10 of its \d+ bytes"):
                late.read_together(BatchMemory())
        assert is_cached or early[6] == stored[6]
