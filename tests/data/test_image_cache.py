"""Decoded pixels on disk: equal to decoding, continued after a kill, refused where they are not."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.data import image_cache
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.image_cache import (
    INDEX_NAME,
    PIXELS_NAME,
    PixelsIndex,
    begun,
    open_cache,
    write_cache,
)
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.shards.errors import StoreError, UsageError

SQUARE, SQUASHED = Geometry(16, 16), Geometry(16)
IMAGE_BYTES = 3 * 16 * 16


@pytest.fixture
def mixed(packed, images):
    """11 photos, of other shapes, one of them damaged."""
    stored = [images.jpeg(30 + 5 * i, 60 - 3 * i, seed=i) for i in range(11)]
    stored[4] = images.Stored(stored[4].data[:200], stored[4].width, stored[4].height)
    return packed(stored)


def stream(dataset, geometry=SQUARE, **options):
    return ImageStream(dataset, geometry, skip_damaged=True, workers=2, **options)


def decoded(dataset, path, geometry=SQUARE, **options):
    """A finished artifact, as the command makes it."""
    binds = {"content": dataset.manifest.content}
    provenance = Provenance(kind="pixels", stage="decode", config={}, binds=binds)
    with create_artifact(path, provenance) as work, stream(dataset, geometry, **options) as source:
        write_cache(source, work.scratch, lambda *_: None)
    return path


@pytest.mark.parametrize("decoder", ["turbo", "dali"])
@pytest.mark.parametrize("geometry", [SQUARE, SQUASHED])
def test_epochs_of_the_pixels_are_those_of_decoding_bit_for_bit(
    mixed, tmp_path, same_batches, decoder, geometry
):
    path = decoded(mixed, tmp_path / "PIXELS", geometry, decoder=decoder)
    pixels = open_cache(path, mixed)
    places: list[dict[str, Any]] = [
        {"batch": 3, "shuffle": True, "epoch": 2, "seed": 7},
        {"batch": 2, "shuffle": True, "pad": True, "rank": 1, "world": 3},
        {"batch": 1},
        {"batch": 1, "pad": True, "start": 3},
        {"batch": 4, "shuffle": True, "block": 2},
    ]
    with stream(mixed, geometry, decoder=decoder) as source:
        for order in (BatchOrder(**place) for place in places):
            same_batches(source.epoch(order), pixels.epoch(order))
        assert pixels.undecodable == source.undecodable
    assert list(pixels.undecodable) == [4]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_chosen_samples_come_as_from_a_stream_of_them(mixed, tmp_path, same_batches, device):
    path, ids = decoded(mixed, tmp_path / "PIXELS"), np.array([1, 3, 4, 8, 9])
    order = BatchOrder(batch=2, shuffle=True, seed=3)
    pixels = open_cache(path, mixed, ids=ids)
    with stream(mixed, ids=ids) as source:
        same_batches(source.epoch(order), pixels.epoch(order))
    mapped = torch.from_numpy(np.arange(11 * 12, dtype=np.uint8).reshape(11, 2, 2, 3))
    resident = image_cache._resident(mapped, ids, torch.device(device))
    assert (resident.shape, resident.device.type) == ((5, 2, 2, 3), device)
    assert device == "meta" or torch.equal(resident, mapped[ids])


def test_the_index_says_what_the_file_holds(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "CHUNK_BYTES", 4 * IMAGE_BYTES)
    path = decoded(mixed, tmp_path / "PIXELS")
    index = json.loads((path / INDEX_NAME).read_bytes())
    assert (index["n_samples"], index["geometry"]) == (11, {"size": 16, "resize": 16})
    assert list(index["undecodable"]) == ["4"]
    data = (path / PIXELS_NAME).read_bytes()
    cuts = range(0, len(data), 4 * IMAGE_BYTES)
    expected = [xxhash.xxh3_128_hexdigest(data[cut : cut + 4 * IMAGE_BYTES]) for cut in cuts]
    assert index["chunks"] == expected
    rows = np.frombuffer(data, np.uint8).reshape(11, 16, 16, 3)
    with stream(mixed) as source:
        for part in source.epoch(BatchOrder(batch=1)):
            np.testing.assert_array_equal(rows[part.ids.tolist()], part.images.permute(0, 2, 3, 1))
    assert not rows[4].any()


@pytest.mark.parametrize(("size", "n", "batch", "per_chunk"), [
    (176, 10**6, 256, 512), (224, 10**6, 256, 256), (600, 10**6, 62, 62), (5000, 9, 1, 1),
    (16, 3, 3, 87381),
])  # fmt: skip
def test_chunks_are_whole_batches_of_at_most_64_mib(size, n, batch, per_chunk):
    index = PixelsIndex.of(n, Geometry(size))
    assert (index.batch, index.batches_per_chunk * index.batch) == (batch, per_chunk)


def test_the_index_names_only_chunks_that_are_on_the_disk(numbered, tmp_path, monkeypatch, disk):
    monkeypatch.setattr(image_cache, "CHUNK_BYTES", 3 * IMAGE_BYTES)
    with stream(numbered) as source:
        index = write_cache(source, tmp_path, lambda *_: None)
    assert len(index.chunks) > 2
    namings = [one for one in disk.namings if one.path.name == INDEX_NAME]
    for n_chunks, naming in enumerate(namings, start=1):
        recorded = json.loads(naming.beside[INDEX_NAME])["chunks"]
        assert recorded == list(index.chunks[:n_chunks])
        pixels, step = naming.beside[PIXELS_NAME], 3 * IMAGE_BYTES
        on_disk = [
            xxhash.xxh3_128_hexdigest(pixels[at : at + step]) for at in range(0, len(pixels), step)
        ]
        assert on_disk[:n_chunks] == recorded, "the index was written before its pixels"
    survivors = disk.survivors()
    for name in (INDEX_NAME, PIXELS_NAME):
        assert survivors[name] == (tmp_path / name).read_bytes()
    (tmp_path / INDEX_NAME).write_bytes(namings[0].beside[INDEX_NAME])  # as in the second chunk
    with stream(numbered) as source:
        assert write_cache(source, tmp_path, lambda *_: None) == index
    assert (tmp_path / PIXELS_NAME).read_bytes() == survivors[PIXELS_NAME]


def test_pixels_that_vanished_after_they_were_recorded_are_not_continued(mixed, tmp_path):
    with stream(mixed) as source:
        write_cache(source, tmp_path, lambda *_: None)
    with (tmp_path / PIXELS_NAME).open("r+b") as file:
        file.truncate(5)
    with pytest.raises(StoreError, match=r"lost pixels that were on the disk; remove .*run again"):
        begun(tmp_path)


@pytest.fixture
def path(numbered, tmp_path):
    return decoded(numbered, tmp_path / "PIXELS")


def test_what_is_written_to_the_pixels_does_not_reach_a_file_that_may_be_read_only(numbered, path):
    (path / PIXELS_NAME).chmod(0o444)
    before = (path / PIXELS_NAME).read_bytes()
    open_cache(path, numbered).images.zero_()
    assert (path / PIXELS_NAME).read_bytes() == before


def test_pixels_that_are_not_those_of_the_data_set_or_too_small_are_refused(mixed, path, tmp_path):
    with pytest.raises(UsageError, match=r"decoded from other images .* run `coreset decode"):
        open_cache(path, mixed)
    with create_artifact(tmp_path / "S", Provenance(kind="scores", stage="score", config={})):
        pass
    with pytest.raises(UsageError, match="is not pixels, but scores; run `coreset decode` first"):
        open_cache(tmp_path / "S", mixed)
    with pytest.raises(UsageError, match="does not exist"):
        open_cache(tmp_path / "no", mixed)


def test_a_cut_file_is_refused(numbered, path):
    with (path / PIXELS_NAME).open("r+b") as file:
        file.truncate(22 * IMAGE_BYTES)
    with pytest.raises(StoreError, match=r"has 16,896 of its 17,664 bytes; remove"):
        open_cache(path, numbered)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"pixels\.json cannot be read .* remove it"),
        ({"chunks": 1, "undecodable": 2}, r"pixels\.json cannot be read"),
        ({"format_version": 2}, "is of another version; decode again"),
        ({"batch": 0}, "has a number that is out of range"),
        ({"undecodable": {"23": "why"}}, "has a number that is out of range"),
    ],
)
def test_an_unreadable_index_is_refused(numbered, path, change, message):
    index = json.loads((path / INDEX_NAME).read_bytes())
    (path / INDEX_NAME).write_text("" if change is None else json.dumps(index | change))
    with pytest.raises(StoreError, match=message):
        open_cache(path, numbered)
