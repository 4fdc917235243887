"""One contract for all decoders: near torchvision on Pillow images, whatever is stored."""

import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from coreset.bench.pixels import reference_pixels
from coreset.engine.data.decoders import (
    TOLERANCES,
    DecoderName,
    Normalisation,
    Tolerance,
    UndecodableImagesError,
    choose_decoder,
    decoder_reason,
    make_decoder,
)
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.engine.stages.options import Decoding
from coreset.kernels.seeds import crop_boxes
from coreset.shards.errors import MachineError, UsageError

EXACT_UNRESIZED = ["turbo", "dali", "pillow"]
NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GEOMETRIES = [Geometry(64, 72), Geometry(48, 48), Geometry(64), Geometry(100, 110), Geometry(224)]


@pytest.fixture
def decoder_of():
    """``decoder_of(name, geometry)``: a decoder on two threads that is closed after the test."""
    opened = []

    def make(name, geometry, *, device="cpu", **options):
        opened.append(make_decoder(name, geometry, device=device, workers=2, **options))
        return opened[-1]

    yield make
    for decoder in opened:
        decoder.close()


@pytest.fixture
def decoded(decoder_of, images):
    """Pixels of stored images, uint8 of shape (b, s, s, 3)."""

    def decode(name, geometry, stored, crops=None):
        batch = images.batch(stored, crops)
        return decoder_of(name, geometry).decode(batch).permute(0, 2, 3, 1).numpy()

    return decode


def expected_of(stored, geometry, crops=None):
    boxes = [None] * len(stored) if crops is None else [tuple(box) for box in crops.tolist()]
    pairs = zip(stored, boxes, strict=True)
    return np.stack([reference_pixels(one.data, geometry, box) for one, box in pairs])


def random_crops(stored, scale=(0.08, 1.0)):
    widths, heights = np.array([(one.width, one.height) for one in stored], dtype=np.int64).T
    return crop_boxes(np.arange(len(stored)), widths, heights, 0, scale, (3 / 4, 4 / 3))


def complaints(pixels, expected, name):
    tolerance = TOLERANCES[DecoderName(name)]
    return tolerance.exceeded_by(tolerance.difference(pixels, expected))


def photographs(images):
    """Photos of several shapes and of every kind that plain JPEGs come in."""
    exif = Image.Exif()
    exif[0x0112] = 6
    sizes = [(500, 375), (333, 500), (256, 256), (180, 420), (90, 70), (75, 300)]
    kinds = [{}, {"subsampling": 0}, {"progressive": True}, {"exif": exif}, {"keep_rgb": True}, {}]
    stored = [images.jpeg(*size, seed=i, **kinds[i]) for i, size in enumerate(sizes)]
    return [*stored, images.encode(images.photo(300, 200).convert("L"))]


@pytest.mark.parametrize("name", list(TOLERANCES))
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_resized_pixels_keep_the_tolerance_to_torchvision(images, decoded, name, geometry):
    stored = photographs(images)
    crops = random_crops(stored)
    assert not complaints(decoded(name, geometry, stored), expected_of(stored, geometry), name)
    pixels = decoded(name, geometry, stored, crops)
    assert not complaints(pixels, expected_of(stored, geometry, crops), name)


@pytest.mark.parametrize("name", list(TOLERANCES))
@pytest.mark.parametrize("geometry", [Geometry(224, 256), Geometry(64, 64), Geometry(128)], ids=str)
def test_pixels_of_real_images_keep_the_tolerance(real_images, decoded, name, geometry):
    for crops in (None, random_crops(real_images)):
        pixels = decoded(name, geometry, real_images, crops)
        assert not complaints(pixels, expected_of(real_images, geometry, crops), name)


@pytest.mark.parametrize("name", EXACT_UNRESIZED)
def test_without_resize_every_stored_kind_has_the_pixels_of_pillow_in_its_place(
    images, decoded, name
):
    kinds = images.kinds(64, 64) + [
        images.jpeg(64, 64, seed=1, **options)
        for options in ({"subsampling": 0}, {"subsampling": 1}, {"progressive": True})
    ]
    expected = [decode_with_pillow(one.data, Geometry(64, 64)) for one in kinds]
    np.testing.assert_array_equal(decoded(name, Geometry(64, 64), kinds), expected)
    stored = [images.jpeg(91, 64), images.jpeg(64, 90)]
    cut = decoded(name, Geometry(48, 64), stored)
    np.testing.assert_array_equal(cut, expected_of(stored, Geometry(48, 64)))
    crops = np.array([[43, 16, 91, 64], [1, 22, 49, 70]])
    cropped = decoded(name, Geometry(48), stored, crops)
    np.testing.assert_array_equal(cropped, expected_of(stored, Geometry(48), crops))


@pytest.mark.parametrize("name", EXACT_UNRESIZED)
@pytest.mark.parametrize("cropped", [False, True])
def test_normalised_batches_are_planes_of_the_same_pixels(
    images, decoder_of, decoded, name, cropped
):
    stored = [*photographs(images), *images.kinds(64, 64)]
    crops = random_crops(stored) if cropped else None
    decoder = decoder_of(name, Geometry(32, 40), normalisation=NORMALISATION)
    planes = decoder.decode(images.batch(stored, crops))
    pixels = decoded(name, Geometry(32, 40), stored, crops).transpose(0, 3, 1, 2)
    mean, std = (np.reshape(part, (3, 1, 1)) for part in (NORMALISATION.mean, NORMALISATION.std))
    assert planes.dtype == torch.float32
    assert planes.is_contiguous()
    np.testing.assert_allclose(planes, (pixels / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("name", EXACT_UNRESIZED)
@pytest.mark.parametrize("geometry", [Geometry(16, 20), Geometry(16)])
def test_the_smallest_and_the_longest_images_decode(images, decoded, name, geometry):
    stored = [images.jpeg(*size) for size in ((1, 1), (1, 40), (900, 3), (2, 2), (2, 1500))]
    expected = [decode_with_pillow(one.data, geometry) for one in stored]
    difference = np.abs(decoded(name, geometry, stored).astype(int) - expected)
    assert difference[:, 1:15, 1:15].max() <= 1


@pytest.mark.parametrize("name", EXACT_UNRESIZED)
def test_batches_of_any_length_follow_one_another_channels_last(images, decoder_of, name):
    stored = [images.jpeg(30 + i, 40, seed=i) for i in range(9)]
    decoder = decoder_of(name, Geometry(24, 28))
    whole = decoder.decode(images.batch(stored))
    assert (whole.shape, whole.dtype) == ((9, 3, 24, 24), torch.uint8)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    for first, last in [(0, 4), (4, 9), (8, 9), (3, 3), (0, 9)]:
        part = decoder.decode(images.batch(stored[first:last]))
        assert torch.equal(part, whole[first:last])


def test_memory_of_a_batch_is_used_again_only_once_nobody_holds_it(images, decoder_of):
    stored = [images.jpeg(40, 40, seed=i) for i in range(3)]
    decoder = decoder_of("turbo", Geometry(40, 40))
    first = decoder.decode(images.batch(stored))
    view, kept = first[:1], first.clone()
    del first
    second = decoder.decode(images.batch(stored[::-1]))
    assert torch.equal(view, kept[:1])
    assert torch.equal(second, kept.flip(0))
    place = second.data_ptr()
    del second
    assert decoder.decode(images.batch(stored[:2])).data_ptr() == place
    decoder.close()
    assert torch.equal(view, kept[:1])


@pytest.mark.parametrize("name", EXACT_UNRESIZED)
@pytest.mark.parametrize("cropped", [False, True])
def test_bad_images_are_reported_and_the_good_ones_of_their_batch_kept(
    images, decoder_of, name, cropped
):
    good = images.jpeg(64, 64, seed=5)
    stored = [
        good,
        images.Stored(good.data[: len(good.data) // 3], 64, 64),
        images.jpeg(64, 64, seed=6),
        images.encode(images.photo(64, 64), "PNG"),
        images.Stored(b"", 64, 64),
        images.Stored(good.data, 60, 64),
        images.Stored(b"<html>", 64, 64, "png"),
    ]
    crops = np.array([[0, 0, 64, 64]] * 7) if cropped else None
    decoder = decoder_of(name, Geometry(64, 64))
    with pytest.raises(UndecodableImagesError) as raised:
        decoder.decode(images.batch(stored, crops))
    assert list(raised.value.reasons) == [1, 4, 5, 6]
    assert "the index says (60, 64)" in raised.value.reasons[5]
    decodable = [stored[0], stored[2], stored[3]]
    expected = [decode_with_pillow(one.data, Geometry(64, 64)) for one in decodable]
    kept = raised.value.images[[0, 2, 3]].permute(0, 2, 3, 1)
    np.testing.assert_array_equal(kept, expected)
    after = decoder.decode(images.batch(decodable)).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("name", EXACT_UNRESIZED)
@pytest.mark.parametrize(
    ("marker", "stray"),
    [(b"\xff\xda", b"\xff\x00"), (b"\xff\xd9", b"\x12\x34" * 40)],
    ids=["before the pixels", "after the pixels"],
)
def test_stray_bytes_that_pillow_skips_do_not_cost_the_image(images, decoded, name, marker, stray):
    good = images.jpeg(64, 64)
    odd = images.Stored((stray + marker).join(good.data.rsplit(marker, 1)), 64, 64)
    pixels = decoded(name, Geometry(64, 64), [good, odd, good])
    np.testing.assert_array_equal(pixels[1], pixels[0])


def test_auto_means_dali_on_a_gpu_and_turbo_on_a_cpu_and_what_it_picked_is_told():
    assert choose_decoder("auto", "cuda:1") is DecoderName.DALI
    assert choose_decoder("dali", "cpu") is DecoderName.DALI
    for exact, name in ((False, DecoderName.TURBO), (True, DecoderName.PILLOW)):
        assert choose_decoder("auto", "cpu", exact=exact) is name
        assert Decoding(device="cpu", decoder_exact=exact).notice() == (
            decoder_reason(name, "cpu"),
        )
        assert Decoding(device="cpu", decoder="pillow", decoder_exact=exact).notice() == ()


def test_bicubic_geometries_are_left_to_pillow_and_dali(images, decoder_of):
    assert choose_decoder("auto", "cpu", bicubic=True) is DecoderName.PILLOW
    assert choose_decoder("auto", "cuda", bicubic=True) is DecoderName.DALI
    assert choose_decoder("dali", "cpu", bicubic=True) is DecoderName.DALI
    told = Decoding(device="cpu").notice(bicubic=True)
    assert told == (decoder_reason(DecoderName.PILLOW, "cpu"),)
    geometry, stored = Geometry(64, 64, bicubic=True), images.jpeg(301, 200)
    for name in ("turbo", "fast"):
        with pytest.raises(UsageError, match=f"decoder {name} resizes bilinearly.*pillow or dali"):
            decoder_of(name, geometry)
    with Image.open(BytesIO(stored.data)) as image:
        expected = image.resize((96, 64), Image.Resampling.BICUBIC).crop((16, 0, 80, 64))
    (found,) = decoder_of("auto", geometry).decode(images.batch([stored])).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(found, expected)


BICUBIC = [
    Geometry(224, 224, bicubic=True),
    Geometry(64, 72, bicubic=True),
    Geometry(96, bicubic=True),
]


@pytest.mark.parametrize("geometry", BICUBIC, ids=str)
def test_bicubic_pixels_by_dali_differ_where_pillow_clips_between_its_passes(
    real_images, decoded, geometry
):
    expected, bilinear = (
        np.stack([decode_with_pillow(one.data, way) for one in real_images])
        for way in (geometry, replace(geometry, bicubic=False))
    )
    found = decoded("dali", geometry, real_images)
    tolerance = TOLERANCES[DecoderName.DALI]
    assert not replace(tolerance, largest=32).exceeded_by(tolerance.difference(found, expected))
    inside = np.abs(found.astype(np.int16) - expected)[:, 2:-2, 2:-2]
    assert (inside > 1).mean() < 1e-3
    assert (np.abs(bilinear.astype(np.int16) - expected) > 1).mean() > 0.1


def test_decoders_that_are_not_there_are_refused_with_the_others(monkeypatch):
    with pytest.raises(UsageError, match="one of auto, dali, turbo, fast, pillow, got opencv"):
        choose_decoder("opencv", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="device cuda is not available here; use --device cpu"):
        make_decoder("turbo", Geometry(8), device="cuda", workers=1)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MachineError, match="use --decoder turbo"):
        make_decoder("dali", Geometry(8), device="cpu", workers=1)


@pytest.mark.parametrize("wrong", [np.s_[..., ::-1], np.s_[:, ::-1], np.s_[::-1]])
def test_tolerances_refuse_another_image_and_a_coarser_decoder(images, decoded, wrong):
    stored = photographs(images)
    expected = expected_of(stored, Geometry(64))
    assert complaints(expected[wrong], expected, "fast")
    assert complaints(decoded("fast", Geometry(64), stored), expected, "dali")
    assert complaints(decoded("dali", Geometry(64), stored), expected, "turbo")


def test_each_part_of_a_tolerance_is_judged_where_it_holds():
    tolerance = Tolerance(largest=1, mean=0.02, edge=2, largest_at_edge=9)
    expected = np.full((2, 40, 40, 3), 100, np.uint8)

    def judged(row, column, level):
        images = expected.copy()
        images[1, row, column, 0] = level
        return tolerance.exceeded_by(tolerance.difference(images, expected))

    assert judged(20, 20, 99) == judged(1, 20, 109) == judged(20, 38, 91) == ()
    assert judged(20, 20, 102) == ("largest difference is 2, allowed 1",)
    assert judged(37, 20, 109) == ("largest difference is 9, allowed 1",)
    (complaint,) = judged(20, 39, 90)
    assert complaint == "largest difference in the outer 2 pixels is 10, allowed 9"
    found = tolerance.difference(expected + np.uint8(1), expected)
    assert tolerance.exceeded_by(found) == ("mean difference of an image is 1, allowed 0.02",)
    exact = [name for name, one in TOLERANCES.items() if one.largest == one.mean == 0]
    assert exact == [DecoderName.PILLOW]
