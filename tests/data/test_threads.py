"""Batches decoded by one call per thread, beside the same batches decoded one by one."""

import sys

import numpy as np
import pytest
import simplejpeg

from coreset.engine.data.decoders import (
    DecoderName,
    EncodedBatch,
    Normalisation,
    UndecodableImagesError,
    make_decoder,
    turbo,
)
from coreset.engine.data.decoders.threads import ThreadedDecoder, crop_batch
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.reader import ShardReader
from coreset.kernels.jpeg.batch import MOST_BYTES

NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINDS = [
    {},
    {"subsampling": 0},
    {"subsampling": 1},
    {"progressive": True},
    {"keep_rgb": True},
    {"restart_marker_rows": 1},
    {"quality": 5},
]


def decoded(batch, geometry, name="turbo", normalisation=None, workers=2):
    decoder = make_decoder(
        name, geometry, device="cpu", workers=workers, normalisation=normalisation
    )
    try:
        return decoder.decode(batch).numpy()
    finally:
        decoder.close()


def tried(decoder, batch):
    """Pixels, and the positions of what cannot be decoded."""
    try:
        return decoder.decode(batch).numpy(), set()
    except UndecodableImagesError as error:
        return error.images.numpy(), set(error.reasons)


@pytest.fixture
def one_by_one(monkeypatch):
    """Decode as where Pillow's libjpeg cannot be called."""

    def decode(*those):
        with monkeypatch.context() as patched:
            patched.setattr(turbo, "_version", lambda: None)
            return decoded(*those)

    return decode


@pytest.fixture
def left(monkeypatch):
    """Positions that were not decoded by the call for the batch, batch by batch."""
    found = []
    theirs = ThreadedDecoder._decode_crops
    monkeypatch.setattr(
        ThreadedDecoder, "_decode_crops", lambda *those: found.append(theirs(*those)) or found[-1]
    )
    return found


@pytest.mark.parametrize("name", ["turbo", "fast"])
@pytest.mark.parametrize("normalisation", [None, NORMALISATION], ids=["uint8", "float32"])
@pytest.mark.parametrize(
    ("geometry", "sizes"),
    [
        (Geometry(64), [(64, 64)]),  # a multiple of 32 pixels is written past the caches
        (Geometry(37), [(37, 37)]),
        (Geometry(16, 16), [(16, 90), (301, 16), (16, 16)]),
        (Geometry(96, 110), [(110, 110), (110, 111), (401, 110), (110, 203)]),
        (Geometry(1, 3), [(3, 3), (9, 3)]),
    ],
    ids=str,
)
def test_batches_hold_the_pixels_of_images_decoded_one_by_one(
    images, one_by_one, left, *, name, normalisation, geometry, sizes
):
    stored = [
        images.jpeg(*size, seed=seed, **kind) for seed, kind in enumerate(KINDS) for size in sizes
    ]
    how = images.batch(stored), geometry, name, normalisation
    found = decoded(*how)
    assert left == [[]]
    np.testing.assert_array_equal(found, one_by_one(*how))


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_any_number_of_threads_reads_each_image_once_from_its_shard(packed, images, left, workers):
    stored = [images.jpeg(48, 48, seed=i) for i in range(12)]
    ids = np.array([7, 0, 11, 7, 3] * 4)
    with ShardReader(packed(stored)) as reader:
        batch = images.batch([stored[i] for i in ids], data=reader.fetch(ids))
        found = decoded(batch, Geometry(48), workers=workers)
    assert left == [[]]
    expected = [simplejpeg.decode_jpeg(stored[i].data) for i in ids]
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), expected)


def test_what_is_resampled_odd_or_large_is_decoded_one_by_one(images, one_by_one, left):
    stored = [
        images.jpeg(40, 40, seed=1),
        images.encode(images.photo(40, 40, 2), "PNG"),
        images.encode(images.photo(40, 40, 3).convert("CMYK")),
        images.jpeg(60, 50, seed=4),
        images.encode(images.photo(40, 40, 5).convert("L")),
        images.jpeg(40, 40, seed=6, comment=bytes(40_000), quality=95),
    ]
    stored.append(images.Stored(stored[0].data + bytes(MOST_BYTES), 40, 40))
    found = decoded(images.batch(stored), Geometry(40))
    assert left == [[1, 2, 3, 6]]
    np.testing.assert_array_equal(found, one_by_one(images.batch(stored), Geometry(40)))


@pytest.mark.parametrize("n", range(7))
def test_half_of_a_batch_must_need_no_resampling(images, n):
    stored = [images.jpeg(40, 40)] * n + [images.jpeg(41, 42)] * 3
    assert (crop_batch(images.batch(stored), Geometry(40)) is not None) == (n >= 3)
    crops = np.array([[0, 0, 20, 20]] * len(stored))
    assert crop_batch(images.batch(stored, crops), Geometry(40)) is None
    assert crop_batch(EncodedBatch([], *np.zeros((2, 0), np.int64)), Geometry(40)) is None


@pytest.mark.parametrize("normalisation", [None, NORMALISATION], ids=["uint8", "float32"])
@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_damage_anywhere_costs_the_image_alone(images, left, capfd, kind, normalisation):
    good = [images.jpeg(64, 64, seed=i, **kind) for i in range(3)]
    expected = decoded(images.batch(good), Geometry(64), normalisation=normalisation)
    rng = np.random.default_rng(2)
    decoder = ThreadedDecoder(
        Geometry(64), DecoderName.TURBO, workers=2, normalisation=normalisation
    )
    left.clear()
    for number in range(60):
        damaged = bytearray(good[1].data)
        for at in rng.integers(2, len(damaged) if number % 2 else 700, 3):
            damaged[at] = rng.integers(256)
        batch = images.batch([good[0], images.Stored(bytes(damaged), 64, 64), good[2]])
        found, refused = tried(decoder, batch)
        assert refused <= {1}
        np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
        del found
    assert 10 < sum(map(bool, left)) < 60
    assert capfd.readouterr() == ("", "")
    # What libjpeg left by a jump holds no memory of batches.
    assert [sys.getrefcount(memory) for memory in decoder._memory._arrays] == [3]
    decoder.close()


def test_files_that_are_cut_or_of_another_size_are_left_to_a_complete_decoder(images, left):
    good = images.jpeg(64, 64, seed=1)
    data = [good.data[:-1], good.data[:-2], good.data[: len(good.data) // 2]]
    data += [images.jpeg(*size).data for size in ((64, 63), (63, 64), (2000, 2000))]
    stored = [*(images.Stored(one, 64, 64) for one in data), *[good] * 7]
    decoder = make_decoder("turbo", Geometry(64), device="cpu", workers=2)
    found, refused = tried(decoder, images.batch(stored))
    decoder.close()
    assert left == [[0, 1, 2, 3, 4, 5]]
    assert {3, 4, 5} <= refused <= {0, 1, 2, 3, 4, 5}
    np.testing.assert_array_equal(found[6].transpose(1, 2, 0), simplejpeg.decode_jpeg(good.data))
