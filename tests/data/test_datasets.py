import io
import os
import tarfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coreset
from coreset.engine.data.datasets import as_webdataset
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.reader import ShardReader
from coreset.shards.errors import ManifestError

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
    stored = images.kinds(16, 16)
    found = list(as_webdataset(packed(stored).path))
    assert [(label, sample_id) for _, label, sample_id in found] == [(i % 3, i) for i in range(9)]
    for one, (image, *_) in zip(stored, found, strict=True):
        expected = decode_with_pillow(one.data, Geometry(16, 16))
        np.testing.assert_array_equal(np.asarray(image), expected)


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


def cut_after(shard, *, members, more=0):
    """Keep so many members and some bytes of what follows, without an end mark."""
    end = members_of(shard)[members].offset
    os.truncate(shard, end + more)


def damage_header(shard):
    content = bytearray(shard.read_bytes())
    content[members_of(shard)[4].offset + 3] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "whole", "message"),
    [
        (lambda shard: cut_after(shard, members=2), 1, "holds 1 of its 5 samples"),
        (lambda shard: cut_after(shard, members=3, more=100), 1, "holds 1 of its 5 samples"),
        (lambda shard: cut_after(shard, members=9), 4, "holds 4 of its 5 samples"),
        (lambda shard: cut_after(shard, members=2, more=612), 0, "cannot be read"),
        (lambda shard: os.truncate(shard, 600), 0, "cannot be read"),
        (lambda shard: os.truncate(shard, 0), 0, "(cannot be read|holds 0 of)"),
        (damage_header, 2, "holds 2 of its 5 samples"),
        (Path.unlink, 0, r"cannot be read \(FileNotFound"),
    ],
)
def test_a_shard_that_is_not_whole_is_told(packed, images, damage, whole, message):
    dataset = packed([images.jpeg(20, 20, seed=i) for i in range(12)])
    shard = dataset.shard_paths()[1]
    damage(shard)
    seen = []
    with pytest.raises(ManifestError, match=rf"shard-000001\.tar {message}.*; run `coreset verify"):
        seen.extend(sample_id for _, _, sample_id in as_webdataset(dataset.path))
    assert seen == list(range(5 + whole))


def test_a_damaged_image_is_named(packed, images):
    dataset = packed([images.jpeg(40, 30)] * 5 + [images.cut(40, 30)])
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


def test_stages_of_webdataset_follow_and_leaving_early_closes_the_shard(numbered):
    pipeline: Any = as_webdataset(numbered.path).map_tuple(np.asarray).batched(10)
    assert [images.shape for images, _, _ in pipeline] == [(10, 24, 24, 3)] * 2 + [(3, 24, 24, 3)]
    for _ in as_webdataset(numbered.path):
        break
    opened = [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]
    assert not [path for path in opened if path.is_relative_to(numbered.path)]
