import io
import os
import tarfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import coreset
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.reader import ShardReader
from coreset.engine.data.webdataset import as_webdataset
from coreset.shards.errors import ManifestError, UsageError

N = 23


def ids_of(pipeline):
    return [sample_id for _, _, sample_id in pipeline]


def members_of(shard):
    with tarfile.open(shard) as tar:
        return tar.getmembers()


def test_stored_bytes_labels_and_ids_are_ours(numbered):
    with ShardReader(numbered) as reader:
        ours = reader.read(np.arange(N))
    theirs = list(coreset.as_webdataset(numbered.path, decode=False))
    assert [sample["jpg"] for sample in theirs] == ours
    assert [int(sample["cls"]) for sample in theirs] == numbered.labels.tolist()
    assert [sample["__id__"] for sample in theirs] == list(range(N))
    assert [sample["__key__"] for sample in theirs] == [f"{i:09d}" for i in range(N)]


def test_decoded_images_of_every_kind_are_ours(packed, images):
    photo, exif = images.photo(16, 16), Image.Exif()
    exif[0x0112] = 6
    stored = [
        images.encode(photo),
        images.encode(photo, exif=exif),
        images.encode(photo.convert("L")),
        images.encode(photo.convert("CMYK")),
        images.encode(photo, "PNG"),
        images.encode(Image.fromarray(np.full((16, 16), 25_700, np.uint16)), "PNG"),
        images.encode(photo, "WEBP", lossless=True),
    ]
    found = list(as_webdataset(packed(stored).path))
    for one, (image, label, sample_id) in zip(stored, found, strict=True):
        expected = decode_with_pillow(one.data, Geometry(16, 16))
        np.testing.assert_array_equal(np.asarray(image), expected)
        assert label == sample_id % 3
    assert [sample_id for _, _, sample_id in found] == list(range(7))


def test_ids_count_the_packed_samples_where_some_were_refused(make_photos, tmp_path):
    from coreset.engine.stages.pack import Pack
    from coreset.shards.format.dataset import Dataset

    photos = make_photos(tmp_path / "photos", per_class=4)
    next(photos.rglob("*.png")).write_bytes(b"not an image")
    Pack(src=photos, data=tmp_path / "DATA", samples_per_shard=5).run()
    dataset = Dataset.open(tmp_path / "DATA")
    found = list(as_webdataset(tmp_path / "DATA", decode=False))
    members = dataset.table(["member"])["member"].to_pylist()
    assert len(found) == 11
    assert [sample["__id__"] for sample in found] == list(range(11))
    assert [sample["__key__"] for sample in found] == [name.split(".")[0] for name in members]


def test_shuffled_epochs_hold_every_sample_once_each_in_another_order(numbered):
    pipeline = as_webdataset(numbered.path, shuffle=8, seed=1)
    epochs = [ids_of(pipeline) for _ in range(3)]
    assert [sorted(ids) for ids in epochs] == [list(range(N))] * 3
    assert len({tuple(ids) for ids in [*epochs, range(N)]}) == 4
    assert ids_of(as_webdataset(numbered.path, shuffle=8, seed=1)) == epochs[0]
    assert ids_of(as_webdataset(numbered.path, shuffle=8, seed=2)) != epochs[0]


@pytest.fixture
def as_worker(monkeypatch):
    """Be one worker of one node: the variables that webdataset asks before it asks torch."""

    def become(rank, world, worker, workers):
        place = {"RANK": rank, "WORLD_SIZE": world, "WORKER": worker, "NUM_WORKERS": workers}
        for name, number in place.items():
            monkeypatch.setenv(name, str(number))

    return become


@pytest.mark.parametrize(("world", "workers", "shuffle"), [(1, 2, 0), (2, 3, 4), (3, 1, 4)])
def test_nodes_and_workers_share_the_shards(numbered, as_worker, world, workers, shuffle):
    seen = []
    for rank, worker in product(range(world), range(workers)):
        as_worker(rank, world, worker, workers)
        seen += ids_of(as_webdataset(numbered.path, shuffle=shuffle))
    assert sorted(seen) == list(range(N))


def test_a_cut_shard_is_told_to_the_worker_that_has_it(packed, images, as_worker):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(12)])
    cut_after(dataset.shard_paths()[1], members=4)
    as_worker(0, 1, 0, 2)
    assert ids_of(as_webdataset(dataset.path)) == [0, 1, 2, 3, 4, 10, 11]
    as_worker(0, 1, 1, 2)
    with pytest.raises(ManifestError, match=r"shard-000001\.tar holds 2 of its 5 samples"):
        ids_of(as_webdataset(dataset.path))


@pytest.mark.slow
def test_two_worker_processes_give_every_sample_once(numbered):
    from torch.utils.data import DataLoader

    pipeline: Any = as_webdataset(numbered.path, shuffle=4).map_tuple(np.array)
    loader = DataLoader(pipeline, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sorted(ids_of(loader)) == list(range(N))


def cut_after(shard, *, members, more=0):
    """Keep so many members and some bytes of what follows, without an end mark."""
    end = members_of(shard)[members].offset
    os.truncate(shard, end + more)


@pytest.mark.parametrize(("members", "whole"), [(2, 1), (3, 1), (8, 4), (9, 4)])
@pytest.mark.parametrize("more", [0, 100])
def test_a_shard_cut_between_members_or_amid_a_header_is_told(packed, images, members, whole, more):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(12)])
    shard = dataset.shard_paths()[1]
    cut_after(shard, members=members, more=more)
    seen = []
    message = (
        rf"shard-000001\.tar holds {whole} of its 5 samples; run `coreset verify {shard.parent}`"
    )
    with pytest.raises(ManifestError, match=message):
        seen.extend(sample_id for _, _, sample_id in as_webdataset(dataset.path))
    assert seen == list(range(5 + whole))


def test_a_shard_cut_amid_an_image_or_at_its_start_is_told(packed, images):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(12)])
    shard = dataset.shard_paths()[1]
    second_image = members_of(shard)[2].offset_data
    for size in (second_image + 100, 600, 100, 0):
        os.truncate(shard, size)
        with pytest.raises(ManifestError, match=r"shard-000001\.tar (cannot be read|holds 0 of)"):
            ids_of(as_webdataset(dataset.path))


def test_a_damaged_header_is_told(packed, images):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(12)])
    shard = dataset.shard_paths()[1]
    content = bytearray(shard.read_bytes())
    content[members_of(shard)[4].offset + 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ManifestError, match=r"shard-000001\.tar holds 2 of its 5 samples"):
        ids_of(as_webdataset(dataset.path))


def test_a_missing_shard_is_told(packed, images):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(12)])
    dataset.shard_paths()[2].unlink()
    seen = []
    with pytest.raises(ManifestError, match=r"shard-000002\.tar cannot be read \(FileNotFound"):
        seen.extend(sample_id for _, _, sample_id in as_webdataset(dataset.path))
    assert seen == list(range(10))


def test_a_damaged_image_is_named(packed, images):
    stored = [images.jpeg(40, 30, seed=i) for i in range(7)]
    stored[5] = images.Stored(stored[5].data[:500], 40, 30)
    dataset = packed(stored)
    message = r"^000000005 in .*shard-000001\.tar cannot be decoded \(.*; run `coreset verify"
    with pytest.raises(ManifestError, match=message):
        ids_of(as_webdataset(dataset.path))


def test_members_that_pack_does_not_write_are_passed_over(packed, images):
    dataset = packed([images.jpeg(20, 20)], n_classes=1)
    with tarfile.open(dataset.shard_paths()[0], "a") as tar:
        member = tarfile.TarInfo("000000000.pkl")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"cos"))
    (sample,) = as_webdataset(dataset.path, decode=False)
    assert set(sample) == {"__key__", "__url__", "__id__", "jpg", "cls"}


def test_leaving_early_closes_the_shard(numbered):
    for _ in as_webdataset(numbered.path):
        break
    opened = [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]
    assert not [path for path in opened if path.is_relative_to(numbered.path)]


def test_stages_of_webdataset_follow(numbered):
    pipeline: Any = as_webdataset(numbered.path).map_tuple(np.asarray).batched(10)
    assert [images.shape for images, _, _ in pipeline] == [(10, 24, 24, 3)] * 2 + [(3, 24, 24, 3)]


def test_what_is_not_a_data_set_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a packed data set"):
        as_webdataset(tmp_path)
