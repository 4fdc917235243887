import os
import threading
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Crops, Geometry
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.reader import LazyBytes
from coreset.engine.data.stream import ImageStream
from coreset.shards.errors import ManifestError, UsageError

GEOMETRY = Geometry(16, 16)


def ids_by_pixels(batch):
    """What the images themselves say: brightness is ten times the id."""
    return (batch.images.float().mean(dim=(1, 2, 3)) / 10).round().long()


def ids_of(batches):
    for part in batches:
        yield from part.ids.tolist()


def threads_of(*names):
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


@settings(max_examples=30)
@given(
    place=st.builds(
        dict,
        batch=st.integers(1, 30),
        epoch=st.integers(0, 3),
        shuffle=st.booleans(),
        start=st.integers(0, 3),
        pad=st.booleans(),
    ),
    workers=st.integers(1, 5),
    world=st.integers(1, 4),
    decoder=st.sampled_from(["turbo", "dali"]),
)
def test_batches_hold_the_images_and_labels_of_the_order(numbered, place, workers, world, decoder):
    with ImageStream(numbered, GEOMETRY, decoder=decoder, workers=workers) as source:
        for rank in range(world):
            order = BatchOrder(**place, seed=2, rank=rank, world=world)
            for part, ids in zip(source.epoch(order), order.batches(23), strict=True):
                assert part.ids.tolist() == ids.tolist()
                assert part.labels.dtype == part.ids.dtype == torch.int64
                assert torch.equal(part.labels, torch.where(part.ids < 0, -1, part.ids % 3))
                assert torch.equal(ids_by_pixels(part), part.ids.clamp(min=0))
                assert not part.images[part.ids < 0].any()


def test_bytes_of_the_next_two_batches_are_read_while_dali_decodes(numbered, monkeypatch):
    n_read, all_read = count(1), threading.Event()
    read_together = LazyBytes.read_together

    def counted(data, memory):
        if next(n_read) == 3:
            all_read.set()
        return read_together(data, memory)

    monkeypatch.setattr(LazyBytes, "read_together", counted)
    with ImageStream(numbered, GEOMETRY, decoder="dali") as source:
        decode = source._decoder.decode

        def waiting(batch):
            assert all_read.wait(timeout=60)
            return decode(batch)

        monkeypatch.setattr(source._decoder, "decode", waiting)
        batches = list(source.epoch(BatchOrder(batch=4)))
    assert torch.equal(torch.cat([ids_by_pixels(part) for part in batches]), torch.arange(23))
    assert next(n_read) == 1 + len(batches)  # each once


def test_a_subset_keeps_the_ids_of_the_data_set(numbered):
    coreset = np.array([20, 3, 11, 4])
    with ImageStream(numbered, GEOMETRY, ids=coreset) as source:
        (part,) = source.epoch(BatchOrder(batch=10))
        assert len(source) == 4
        np.testing.assert_array_equal(source.labels, coreset % 3)
    np.testing.assert_array_equal(part.ids, coreset)
    assert torch.equal(ids_by_pixels(part), part.ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([0, 23]), r"ids must be in \[0, 23\).*another data set"),
        (np.array([-1, 2]), r"got -1 \.\. 2"),
        (np.array([1.0]), "must be int64"),
        (np.array([[1]]), "of one dimension"),
    ],
)
def test_ids_of_another_data_set_are_refused(numbered, ids, message):
    with pytest.raises(UsageError, match=message):
        ImageStream(numbered, GEOMETRY, ids=ids)


def test_two_epochs_at_once_do_not_disturb_each_other(numbered):
    orders = BatchOrder(batch=5), BatchOrder(batch=5, seed=1, shuffle=True)
    with ImageStream(numbered, GEOMETRY, decoder="dali", workers=2) as source:
        for pair in zip(*map(source.epoch, orders), strict=True):
            for part in pair:
                assert torch.equal(ids_by_pixels(part), part.ids)


@pytest.fixture
def one_damaged(packed, images):
    """9 photos, of which that of id 5 cannot be decoded."""
    stored = [images.jpeg(40, 30, seed=i) for i in range(9)]
    return packed([*stored[:5], images.cut(40, 30), *stored[6:]]), stored


@pytest.mark.parametrize("decoder", ["turbo", "dali"])
def test_a_corrupt_member_is_named_alone_and_after_the_good_batches(one_damaged, decoder):
    dataset, _ = one_damaged
    offset = dataset.ints("offset")[5]
    seen = []
    message = rf"^shard-000001\.tar:{offset}:class2/image5 \(.*cannot be decoded; run `coreset"
    with (
        ImageStream(dataset, GEOMETRY, decoder=decoder, workers=2) as source,
        pytest.raises(ManifestError, match=message),
    ):
        seen.extend(ids_of(source.epoch(BatchOrder(batch=2))))
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("decoder", ["turbo", "dali"])
@pytest.mark.parametrize("pad", [False, True])
def test_a_corrupt_member_is_left_out_and_nothing_else_where_damage_is_skipped(
    one_damaged, decoder, pad
):
    dataset, stored = one_damaged
    expected = [torch.from_numpy(decode_with_pillow(one.data, GEOMETRY)) for one in stored]
    with ImageStream(dataset, GEOMETRY, decoder=decoder, skip_damaged=True) as source:
        for _ in range(2):
            parts = list(source.epoch(BatchOrder(batch=4, pad=pad)))
            assert [len(part.ids) for part in parts] == ([4, 4, 4] if pad else [4, 3, 1])
            ids = torch.cat([part.ids for part in parts])
            pixels = torch.cat([part.images for part in parts]).permute(0, 2, 3, 1)
            assert ids[ids >= 0].tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
            labels = torch.cat([part.labels for part in parts])
            assert torch.equal(labels, torch.where(ids < 0, -1, ids % 3))
            assert not pixels[ids < 0].any()
            difference = pixels[ids >= 0].int() - torch.stack(expected).int()[ids[ids >= 0]]
            assert difference.float().abs().mean() < 1
        assert list(source.undecodable) == [5]


@pytest.mark.parametrize("geometry", [GEOMETRY, Geometry(20)], ids=["resized", "as stored"])
@pytest.mark.parametrize("decoder", ["turbo", "dali"])
@pytest.mark.parametrize("late", [True, False], ids=["cut after looking", "cut before"])
def test_a_cut_shard_costs_its_samples_only_or_stops_the_epoch(
    packed, images, monkeypatch, *, geometry, decoder, late
):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(9)])
    shard, end = dataset.shard_paths()[1], dataset.ints("offset")[7]

    def cut_it(*_: object) -> bool:
        os.truncate(shard, end)
        return late

    monkeypatch.setattr("coreset.engine.data.reader.all_cached", cut_it)
    with ImageStream(dataset, geometry, decoder=decoder, skip_damaged=True) as source:
        assert list(ids_of(source.epoch(BatchOrder(batch=4)))) == [0, 1, 2, 3, 4, 5, 6]
        assert sorted(source.undecodable) == [7, 8]
        assert source.undecodable[7].endswith("bytes")
    seen = []
    with (
        ImageStream(dataset, geometry, decoder=decoder) as source,
        pytest.raises(ManifestError, match=r"shard-000001\.tar:\d+:class1/image7 has 0 of its"),
    ):
        seen.extend(ids_of(source.epoch(BatchOrder(batch=4))))
    assert seen == [0, 1, 2, 3]


def test_more_than_ten_undecodable_samples_stop_even_a_stream_that_skips_damage(packed, images):
    broken = images.Stored(b"<html>", 20, 20)
    with (
        ImageStream(packed([broken] * 12), GEOMETRY, skip_damaged=True) as source,
        pytest.raises(ManifestError, match="11 samples cannot be read"),
    ):
        list(source.epoch(BatchOrder(batch=4)))


def test_crops_depend_on_the_sample_and_the_epoch_but_not_on_its_batch(packed, images):
    dataset = packed([images.jpeg(90, 60, seed=i) for i in range(7)])

    def pixels(batch, epoch, seed=0):
        order = BatchOrder(batch=batch, epoch=epoch, crops=Crops(), seed=seed, shuffle=batch == 5)
        with ImageStream(dataset, GEOMETRY, workers=2) as source:
            parts = list(source.epoch(order))
        ids = torch.cat([part.ids for part in parts])
        return torch.cat([part.images for part in parts])[ids.argsort()]

    first = pixels(3, 0)
    assert torch.equal(first, pixels(5, 0))
    assert not torch.equal(first, pixels(3, 1))
    assert not torch.equal(first, pixels(3, 0, seed=1))
