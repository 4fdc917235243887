import os
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Crops, Geometry
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.shards.errors import ManifestError, UsageError

GEOMETRY = Geometry(16, 16)
BRIGHTNESS_PER_ID = 10


def ids_by_pixels(batch):
    """What the images themselves say: brightness is ten times the id."""
    return (batch.images.float().mean(dim=(1, 2, 3)) / BRIGHTNESS_PER_ID).round().long()


def ids_of(batches):
    for part in batches:
        yield from part.ids.tolist()


def background_threads():
    names = ("ahead", "decode")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


@settings(max_examples=30)
@given(
    place=st.fixed_dictionaries(
        {"batch": st.integers(1, 30), "epoch": st.integers(0, 3), "shuffle": st.booleans()}
    ),
    workers=st.integers(1, 5),
    world=st.integers(1, 4),
    decoder=st.sampled_from(["turbo", "dali"]),
)
def test_each_image_comes_once_with_its_id_and_label(numbered, place, workers, world, decoder):
    seen = []
    with ImageStream(numbered, GEOMETRY, decoder=decoder, workers=workers) as source:
        for rank in range(world):
            for part in source.epoch(BatchOrder(**place, seed=2, rank=rank, world=world)):
                assert torch.equal(ids_by_pixels(part), part.ids)
                assert torch.equal(part.labels, part.ids % 3)
                assert part.labels.dtype == part.ids.dtype == torch.int64
                assert 1 <= len(part.ids) <= place["batch"]
                seen += part.ids.tolist()
    assert sorted(seen) == list(range(23))


@given(st.integers(1, 9), st.integers(0, 24))
@settings(max_examples=20)
def test_an_interrupted_epoch_continues_where_it_stopped(numbered, batch, start_batch):
    with ImageStream(numbered, GEOMETRY, workers=2) as source:
        whole = list(source.epoch(BatchOrder(batch=batch, epoch=3, shuffle=True)))
        rest = list(source.epoch(BatchOrder(batch=batch, epoch=3, shuffle=True, start=start_batch)))
    assert [part.ids.tolist() for part in rest] == [
        part.ids.tolist() for part in whole[start_batch:]
    ]
    for one, other in zip(rest, whole[start_batch:], strict=True):
        assert torch.equal(one.images, other.images)


def test_the_order_is_that_of_the_batch_order(numbered):
    order = BatchOrder(batch=4, epoch=5, seed=6, shuffle=True)
    with ImageStream(numbered, GEOMETRY) as source:
        seen = torch.cat([part.ids for part in source.epoch(order)])
    np.testing.assert_array_equal(seen, order.positions(23))


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


def test_leaving_an_epoch_early_ends_its_threads(numbered):
    with ImageStream(numbered, GEOMETRY, workers=2) as source:
        for _ in source.epoch(BatchOrder(batch=2)):
            break
        assert [t for t in background_threads() if t.name.startswith("ahead")] == []
        assert sum(len(part.ids) for part in source.epoch(BatchOrder(batch=2))) == 23
    assert background_threads() == []


def test_two_epochs_at_once_do_not_disturb_each_other(numbered):
    with ImageStream(numbered, GEOMETRY, decoder="dali", workers=2) as source:
        pairs = zip(
            source.epoch(BatchOrder(batch=5)),
            source.epoch(BatchOrder(batch=5, seed=1, shuffle=True)),
            strict=True,
        )
        for one, other in pairs:
            assert torch.equal(ids_by_pixels(one), one.ids)
            assert torch.equal(ids_by_pixels(other), other.ids)


@pytest.mark.parametrize("decoder", ["turbo", "dali"])
def test_a_corrupt_member_is_named_alone_and_after_the_good_batches(packed, images, decoder):
    stored = [images.jpeg(40, 30, seed=i) for i in range(8)]
    stored[5] = images.Stored(stored[5].data[:500], 40, 30)
    dataset = packed(stored)
    offset = dataset.ints("offset")[5]
    seen = []
    with ImageStream(dataset, GEOMETRY, decoder=decoder, workers=2) as source:
        message = rf"^shard-000001\.tar:{offset}:class2/image5 \(.*cannot be decoded; run `coreset"
        with pytest.raises(ManifestError, match=message):
            seen.extend(ids_of(source.epoch(BatchOrder(batch=2))))
    with ImageStream(dataset, GEOMETRY, decoder=decoder, ids=np.array([4, 6, 7])) as source:
        (rest,) = source.epoch(BatchOrder(batch=3))
    assert seen == [0, 1, 2, 3]
    assert rest.ids.tolist() == [4, 6, 7]


@pytest.mark.parametrize("decoder", ["turbo", "dali"])
@pytest.mark.parametrize("pad", [False, True])
def test_a_tolerant_source_leaves_out_what_is_corrupt_and_nothing_else(
    packed, images, decoder, pad
):
    stored = [images.jpeg(40, 30, seed=i) for i in range(9)]
    expected = torch.stack(
        [torch.from_numpy(decode_with_pillow(one.data, GEOMETRY)) for one in stored]
    ).permute(0, 3, 1, 2)
    stored[4] = images.Stored(stored[4].data[:500], 40, 30)
    damaged = packed(stored)
    with ImageStream(damaged, GEOMETRY, decoder=decoder, skip_damaged=True) as source:
        for _ in range(2):
            parts = list(source.epoch(BatchOrder(batch=3, pad=pad)))
            ids = torch.cat([part.ids for part in parts])
            assert ids[ids >= 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
            assert [len(part.ids) for part in parts] == ([3, 3, 3] if pad else [3, 2, 3])
            pixels = torch.cat([part.images for part in parts])
            difference = pixels[ids >= 0].int() - expected[ids[ids >= 0]].int()
            assert difference.float().abs().mean() < 1
            assert not pixels[ids < 0].any()
        assert list(source.undecodable) == [4]


def test_a_tolerant_source_goes_on_after_a_shard_that_ends_early(packed, images):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(9)])
    shard = dataset.shard_paths()[1]
    shard.write_bytes(shard.read_bytes()[: dataset.ints("offset")[7]])
    with ImageStream(dataset, GEOMETRY, skip_damaged=True) as source:
        assert list(ids_of(source.epoch(BatchOrder(batch=4)))) == [0, 1, 2, 3, 4, 5, 6]
        assert sorted(source.undecodable) == [7, 8]
        assert source.undecodable[7].endswith("bytes")


@pytest.mark.parametrize("geometry", [GEOMETRY, Geometry(20)], ids=["resized", "as stored"])
@pytest.mark.parametrize("decoder", ["turbo", "dali"])
@pytest.mark.parametrize("skip_damaged", [True, False])
def test_a_shard_cut_between_looking_and_decoding_costs_its_samples_only(
    packed, images, monkeypatch, *, geometry, decoder, skip_damaged
):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(9)])
    shard, end = dataset.shard_paths()[1], dataset.ints("offset")[7]

    def cut_it_and_say_it_is_cached(*_: object) -> bool:
        os.truncate(shard, end)
        return True

    monkeypatch.setattr("coreset.engine.data.reader.all_cached", cut_it_and_say_it_is_cached)
    with ImageStream(dataset, geometry, decoder=decoder, skip_damaged=skip_damaged) as source:
        if not skip_damaged:
            with pytest.raises(ManifestError, match="has 0 of its"):
                list(source.epoch(BatchOrder(batch=4)))
            return
        assert list(ids_of(source.epoch(BatchOrder(batch=4)))) == [0, 1, 2, 3, 4, 5, 6]
        assert sorted(source.undecodable) == [7, 8]


def test_more_than_a_few_undecodable_samples_stop_even_a_tolerant_source(packed, images):
    broken = images.Stored(b"<html>", 20, 20)
    with (
        ImageStream(packed([broken] * 12), GEOMETRY, skip_damaged=True) as source,
        pytest.raises(ManifestError, match="11 samples cannot be read"),
    ):
        list(source.epoch(BatchOrder(batch=4)))


@given(st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=15)
def test_padded_ranks_have_equally_many_whole_batches(numbered, batch, world):
    with ImageStream(numbered, GEOMETRY, workers=2) as source:
        ranks = [
            list(
                source.epoch(
                    BatchOrder(batch=batch, shuffle=True, rank=rank, world=world, pad=True)
                )
            )
            for rank in range(world)
        ]
    assert len({len(parts) for parts in ranks}) == 1
    parts = [part for rank in ranks for part in rank]
    assert {len(part.ids) for part in parts} == {batch}
    ids = torch.cat([part.ids for part in parts])
    assert sorted(ids[ids >= 0].tolist()) == list(range(23))
    for part in parts:
        assert torch.equal(part.labels, torch.where(part.ids < 0, -1, part.ids % 3))
        assert not part.images[part.ids < 0].any()


def test_crops_depend_on_the_sample_and_the_epoch_but_not_on_its_batch(packed, images):
    dataset = packed([images.jpeg(90, 60, seed=i) for i in range(7)])

    def pixels(batch, epoch, **options):
        with ImageStream(dataset, GEOMETRY, workers=2) as source:
            parts = list(
                source.epoch(BatchOrder(batch=batch, epoch=epoch, crops=Crops(), **options))
            )
        ids = torch.cat([part.ids for part in parts])
        return torch.cat([part.images for part in parts])[ids.argsort()]

    first = pixels(3, 0)
    assert torch.equal(first, pixels(5, 0, seed=0))
    assert not torch.equal(first, pixels(3, 1))
    assert not torch.equal(first, pixels(3, 0, seed=1))


def test_members_of_other_formats_come_in_their_places(packed, images):
    photo = images.photo(16, 16)
    stored = [
        images.jpeg(16, 16),
        images.encode(photo, "PNG"),
        images.encode(photo, "WEBP", lossless=True),
        images.jpeg(16, 16),
    ]
    with ImageStream(packed(stored), GEOMETRY) as source:
        (part,) = source.epoch(BatchOrder(batch=4))
    for position in (1, 2):
        np.testing.assert_array_equal(part.images[position].permute(1, 2, 0), np.asarray(photo))
    assert torch.equal(part.images[0], part.images[3])


def test_a_cut_shard_is_refused_in_the_middle_of_an_epoch(packed, images):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(9)])
    shard = dataset.shard_paths()[1]
    shard.write_bytes(shard.read_bytes()[:600])
    seen = []
    with (
        ImageStream(dataset, GEOMETRY) as source,
        pytest.raises(ManifestError, match=r"shard-000001\.tar"),
    ):
        seen.extend(ids_of(source.epoch(BatchOrder(batch=3))))
    assert seen == [0, 1, 2]
