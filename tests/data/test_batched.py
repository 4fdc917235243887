"""Batches decoded by one call per thread, beside the same batches decoded one by one."""

import sys

import numpy as np
import pytest
import simplejpeg

from coreset.engine.data.decoders import batched as squares
from coreset.engine.data.decoders import libjpeg
from coreset.engine.data.decoders.base import (
    DecoderName,
    EncodedBatch,
    Normalisation,
    UndecodableImagesError,
)
from coreset.engine.data.decoders.batched import crop_batch, has_squares
from coreset.engine.data.decoders.choose import make_decoder
from coreset.engine.data.decoders.threads import ThreadedDecoder
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


def batch_of(stored, data=None):
    sizes = np.array([(one.width, one.height) for one in stored], np.int64)
    return EncodedBatch(data or [one.data for one in stored], sizes[:, 0], sizes[:, 1])


def decoded(batch, geometry, name="turbo", normalisation=None, workers=2):
    decoder = make_decoder(
        name, geometry, device="cpu", workers=workers, normalisation=normalisation
    )
    try:
        return decoder.decode(batch).numpy()
    finally:
        decoder.close()


def tried(decoder, batch):
    """Pixels, and reasons by the position of what cannot be decoded."""
    try:
        return decoder.decode(batch).numpy(), {}
    except UndecodableImagesError as error:
        return error.images.numpy(), error.reasons


@pytest.fixture
def one_by_one(monkeypatch):
    """Decode as where Pillow's libjpeg cannot be called."""

    def decode(*those, **how):
        with monkeypatch.context() as patched:
            patched.setattr(libjpeg, "_version", lambda: None)
            return decoded(*those, **how)

    return decode


@pytest.fixture
def left(monkeypatch):
    """Positions that were not decoded as squares, batch by batch."""
    found = []
    theirs = squares.BatchDecode.left
    monkeypatch.setattr(
        squares.BatchDecode, "left", lambda self: found.append(theirs(self)) or found[-1]
    )
    return found


@pytest.mark.parametrize("name", ["turbo", "fast"])
@pytest.mark.parametrize("normalisation", [None, NORMALISATION], ids=["uint8", "float32"])
@pytest.mark.parametrize(
    ("geometry", "sizes"),
    [
        (Geometry(64), [(64, 64)]),
        (Geometry(37), [(37, 37)]),
        (Geometry(16, 16), [(16, 90), (301, 16), (16, 16)]),
        (Geometry(96, 110), [(110, 110), (110, 111), (401, 110), (110, 203)]),
        (Geometry(51, 56), [(56, 56), (57, 56), (56, 99)]),
        (Geometry(1, 3), [(3, 3), (9, 3)]),
    ],
    ids=str,
)
def test_squares_hold_the_pixels_of_images_decoded_one_by_one(
    images, one_by_one, left, *, name, normalisation, geometry, sizes
):
    """At widths that are multiples of 32 pixels are written past the caches."""
    stored = [
        images.jpeg(*size, seed=seed, **kind) for seed, kind in enumerate(KINDS) for size in sizes
    ]
    batch = batch_of(stored)
    found = decoded(batch, geometry, name, normalisation)
    assert left == [[]]
    np.testing.assert_array_equal(found, one_by_one(batch, geometry, name, normalisation))


def test_squares_are_read_from_their_shards(packed, images, left):
    stored = [images.jpeg(48, 48, seed=i) for i in range(12)]
    ids = np.array([7, 0, 11, 7, 3])
    with ShardReader(packed(stored)) as reader:
        found = decoded(batch_of([stored[i] for i in ids], reader.fetch(ids)), Geometry(48))
    assert left == [[]]
    expected = [simplejpeg.decode_jpeg(stored[i].data) for i in ids]
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), expected)


def test_what_is_no_square_is_decoded_one_by_one(images, one_by_one, left):
    stored = [
        images.jpeg(40, 40, seed=1),
        images.encode(images.photo(40, 40, 2), "PNG"),
        images.encode(images.photo(40, 40, 3).convert("CMYK")),
        images.jpeg(60, 50, seed=4),
        images.encode(images.photo(40, 40, 5).convert("L")),
        images.jpeg(40, 40, seed=6, comment=bytes(40_000), quality=95),
        images.jpeg(40, 40, seed=7),
    ]
    stored.append(images.Stored(stored[0].data + bytes(MOST_BYTES), 40, 40))
    found = decoded(batch_of(stored), Geometry(40))
    assert left == [[1, 2, 3, 7]]
    np.testing.assert_array_equal(found, one_by_one(batch_of(stored), Geometry(40)))


def test_a_batch_of_few_squares_is_decoded_one_by_one(images):
    sizes = np.array([40, 40, 41, 42, 43])
    assert not has_squares(Geometry(40), sizes, sizes)
    assert has_squares(Geometry(40), sizes[:4], sizes[:4])
    assert not has_squares(Geometry(40), sizes[:0], sizes[:0])
    stored = [images.jpeg(40, 40)] * 2
    batch = batch_of(stored)
    assert crop_batch(batch, Geometry(40)) is not None
    assert crop_batch(batch.part([], []), Geometry(40)) is None
    crops = np.array([[0, 0, 20, 20]] * 2)
    cropped = EncodedBatch(batch.data, batch.widths, batch.heights, crops)
    assert crop_batch(cropped, Geometry(40)) is None


@pytest.mark.parametrize("normalisation", [None, NORMALISATION], ids=["uint8", "float32"])
@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_damage_anywhere_costs_the_image_alone(images, left, capfd, kind, normalisation):
    good = [images.jpeg(64, 64, seed=i, **kind) for i in range(3)]
    expected = decoded(batch_of(good), Geometry(64), normalisation=normalisation)
    rng = np.random.default_rng(2)
    decoder = ThreadedDecoder(
        Geometry(64), DecoderName.TURBO, workers=2, normalisation=normalisation
    )
    left.clear()
    for number in range(60):
        damaged = bytearray(good[1].data)
        for at in rng.integers(2, len(damaged) if number % 2 else 700, 3):
            damaged[at] = rng.integers(256)
        batch = batch_of([good[0], images.Stored(bytes(damaged), 64, 64), good[2]])
        found, reasons = tried(decoder, batch)
        assert set(reasons) <= {1}
        np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
        del found
    refused = sum(map(bool, left))
    assert 10 < refused < 60
    assert capfd.readouterr() == ("", "")
    # What libjpeg left by a jump holds no memory of batches.
    assert [sys.getrefcount(memory) for memory in decoder._memory._arrays] == [3]
    decoder.close()


@pytest.mark.parametrize("size", [(64, 63), (63, 64), (2000, 2000)])
def test_an_image_of_another_size_than_the_index_says_is_not_written(images, left, size):
    good = images.jpeg(64, 64, seed=1)
    wrong = images.Stored(images.jpeg(*size).data, 64, 64)
    with pytest.raises(UndecodableImagesError) as caught:
        decoded(batch_of([good, wrong]), Geometry(64))
    assert left == [[1]]
    assert set(caught.value.reasons) == {1}
    found = caught.value.images[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(good.data))


def test_what_ends_early_is_left_to_a_complete_decoder(images, left):
    data = images.jpeg(64, 64).data
    for cut in (data[:-1], data[:-2], data[: len(data) // 2]):
        batch = batch_of([images.Stored(cut, 64, 64), images.jpeg(64, 64, seed=3)])
        decoder = make_decoder("turbo", Geometry(64), device="cpu", workers=2)
        assert set(tried(decoder, batch)[1]) <= {0}
        decoder.close()
    assert left == [[0]] * 3


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_any_number_of_threads_decodes_each_image_once(images, workers):
    stored = [images.jpeg(32, 32, seed=i) for i in range(50)]
    found = decoded(batch_of(stored), Geometry(32), workers=workers)
    expected = [simplejpeg.decode_jpeg(one.data) for one in stored]
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), expected)
