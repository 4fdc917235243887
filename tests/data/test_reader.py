import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.engine.data.reader import JOINED_BYTES, JOINED_GAP, LazyBytes, ShardReader, runs_of
from coreset.shards.errors import ManifestError
from coreset.shards.format.dataset import Dataset

NEAR = st.integers(0, 3 * 1024)
GAPS = st.one_of(NEAR, st.integers(JOINED_GAP - 2, JOINED_GAP + 2), st.just(2 * JOINED_BYTES))
LENGTHS = st.one_of(NEAR, st.integers(JOINED_BYTES // 3, JOINED_BYTES + 1))


def stored_images(images, n=12):
    return [images.jpeg(8 + i, 9, seed=i) for i in range(n)]


def read_alone(dataset: Dataset, sample: int) -> bytes:
    offset, length = dataset.ints("offset")[sample], dataset.ints("bytes")[sample]
    with dataset.shard_paths()[dataset.ints("shard")[sample]].open("rb") as shard:
        shard.seek(offset)
        return shard.read(length)


def open_descriptors() -> set[str]:
    return {link.name for link in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def sizes_of_all_kinds(packed, images) -> Dataset:
    """60 members from one byte to more than a joined read, 20 a shard; no images."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(0, np.log(40_000), 60)).astype(int)
    lengths[[4, 21, 22, 50]] = JOINED_GAP, JOINED_BYTES, JOINED_BYTES + 1, JOINED_BYTES // 2
    return packed([images.Stored(rng.bytes(n), 1, 1) for n in lengths], samples_per_shard=20)


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_come_back_in_the_order_asked_for(sizes_of_all_kinds, threads):
    alone = [read_alone(sizes_of_all_kinds, sample) for sample in range(60)]

    @given(st.lists(st.integers(0, 59), max_size=90))
    def check(ids):
        assert reader.read(np.array(ids, dtype=np.int64)) == [alone[i] for i in ids]

    with ShardReader(sizes_of_all_kinds, threads=threads) as reader:
        assert reader.read(np.arange(60)) == alone
        check()


@pytest.mark.parametrize("threads", [1, 3])
def test_reading_takes_the_memory_of_what_is_returned_and_of_a_joined_read_in_each_thread(
    sizes_of_all_kinds, threads
):
    ids = np.arange(60)
    with ShardReader(sizes_of_all_kinds, threads=threads) as reader:
        reader.read(ids)
        tracemalloc.start()
        found = reader.read(ids)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < sum(map(len, found)) + threads * JOINED_BYTES + 64 * 1024


@given(st.lists(st.tuples(st.sampled_from([0, 0, 0, 1]), GAPS, LENGTHS), max_size=30))
def test_neighbours_are_joined_as_far_as_gap_and_length_allow(members):
    shards = np.cumsum([step for step, _, _ in members], dtype=np.int64)
    starts = np.cumsum([gap + length for _, gap, length in members], dtype=np.int64)
    lengths = np.array([length for _, _, length in members], dtype=np.int64)
    starts -= lengths
    runs = runs_of(np.arange(len(members)), shards, starts, starts + lengths)
    assert [sample for run in runs for sample in run.samples] == list(range(len(members)))
    for run in runs:
        assert {run.shard} == set(shards[run.samples])
        assert run.starts == starts[run.samples].tolist()
        assert run.stops == (starts + lengths)[run.samples].tolist()
        gaps = np.subtract(run.starts[1:], run.stops[:-1])
        assert len(run.samples) == 1 or run.stops[-1] - run.starts[0] <= JOINED_BYTES
        assert (gaps <= JOINED_GAP).all()
    for run, following in pairwise(runs):
        assert (
            run.shard != following.shard
            or following.starts[0] - run.stops[-1] > JOINED_GAP
            or following.stops[0] - run.starts[0] > JOINED_BYTES
        )


@pytest.mark.parametrize("threads", [1, 3])
def test_files_and_threads_are_gone_after_closing_and_after_errors(packed, images, threads):
    dataset = packed(stored_images(images), samples_per_shard=2)
    dataset.shard_paths()[3].unlink()
    before = open_descriptors(), threading.active_count()
    with ShardReader(dataset, threads=threads) as reader:
        reader.read(np.arange(6))
        with pytest.raises(ManifestError, match="shard-000003"):
            reader.read(np.arange(12))
    assert (open_descriptors(), threading.active_count()) == before


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


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_sample_that_a_cut_takes_is_named_and_those_before_stay_readable(
    packed, images, threads
):
    stored = stored_images(images)
    dataset = packed(stored, samples_per_shard=12)
    (shard,) = dataset.shard_paths()
    offsets, lengths = dataset.ints("offset"), dataset.ints("bytes")
    with ShardReader(dataset, threads=threads) as reader:
        for sample in reversed(range(12)):
            os.truncate(shard, offsets[sample] + lengths[sample] - 1)
            there = np.arange(sample)
            assert reader.read(there) == [stored[i].data for i in there]
            with pytest.raises(
                ManifestError,
                match=rf":{offsets[sample]}:class\d/image{sample} has {lengths[sample] - 1} of its "
                rf"{lengths[sample]} bytes; run `coreset",
            ):
                reader.read(np.arange(12)[::-1])


def test_of_several_faults_the_first_is_named_whatever_the_threads_do(packed, images):
    dataset = packed(stored_images(images), samples_per_shard=1)
    for shard in (9, 4, 7):
        dataset.shard_paths()[shard].unlink()
    with ShardReader(dataset, threads=4) as reader:
        for _ in range(20):
            with pytest.raises(ManifestError, match=r"shard-000004\.tar cannot be opened"):
                reader.read(np.arange(12))


def test_a_shard_that_can_be_opened_but_not_read_is_refused_and_the_sample_named(packed, images):
    dataset = packed(stored_images(images))
    dataset.shard_paths()[1].unlink()
    dataset.shard_paths()[1].mkdir()
    with (
        ShardReader(dataset) as reader,
        pytest.raises(
            ManifestError, match=r"shard-000001\.tar:\d+:class0/image6 cannot be read \(Is a dir"
        ),
    ):
        reader.read(np.array([6, 7, 8]))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("descriptors", [100, 2])
def test_fetched_bytes_come_in_the_order_asked_for(
    packed, images, monkeypatch, cached, descriptors
):
    stored = stored_images(images)
    monkeypatch.setattr("resource.getrlimit", lambda _: (2 * descriptors, 2 * descriptors))
    monkeypatch.setattr("coreset.engine.data.reader.all_cached", lambda *_: cached)
    monkeypatch.setattr(ShardReader, "_advise", lambda *_: not cached)
    with ShardReader(packed(stored)) as reader:
        ids = np.array([7, 0, 11, 7, 3])
        found = reader.fetch(ids)
        assert len(found) == 5
        assert list(found) == found[:] == reader.read(ids)
        assert found[2] == stored[11].data
        assert len(reader.fetch(ids[:0])) == 0


def test_cached_samples_of_more_shards_than_may_be_open_are_read_late(packed, images, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (2, 2))
    stored = stored_images(images)
    with ShardReader(packed(stored)) as reader:
        found = reader.fetch(np.arange(12))
        assert isinstance(found, LazyBytes)
        assert set(found.places.descriptors[5:]) == {-1}
        assert list(found) == [one.data for one in stored]


def test_what_waits_in_storage_is_read_at_once_and_a_later_cut_is_refused_by_name(
    packed, images, monkeypatch
):
    dataset = packed(stored_images(images))
    with ShardReader(dataset) as reader:
        monkeypatch.setattr("coreset.engine.data.reader.all_cached", lambda *_: False)
        monkeypatch.setattr(ShardReader, "_advise", lambda *_: True)
        at_once = reader.fetch(np.arange(12))
        monkeypatch.setattr("coreset.engine.data.reader.all_cached", lambda *_: True)
        late = reader.fetch(np.arange(12))
        os.truncate(dataset.shard_paths()[1], dataset.ints("offset")[6] + 10)
        assert late[:6] == at_once[:6]
        with pytest.raises(ManifestError, match=r":class0/image6 has 10 of its \d+ bytes"):
            late[6]


def test_a_missing_shard_is_refused_and_named(packed, images):
    dataset = packed(stored_images(images))
    dataset.shard_paths()[2].unlink()
    with (
        ShardReader(dataset) as reader,
        pytest.raises(ManifestError, match=r"shard-000002\.tar cannot"),
    ):
        reader.read(np.array([11]))
