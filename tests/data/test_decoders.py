"""Both decoders against torchvision on Pillow images, and on what goes wrong."""

import io
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coreset.engine.data.decoders.base import (
    DecoderName,
    EncodedBatch,
    Normalisation,
    UndecodableImagesError,
)
from coreset.engine.data.decoders.choose import (
    choose_decoder,
    decoder_notice,
    decoder_reason,
    make_decoder,
)
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.decoders.tolerances import TOLERANCES
from coreset.engine.data.geometry import Geometry
from coreset.shards.errors import MachineError, UsageError

DECODERS = ["turbo", "dali", "pillow"]
GEOMETRIES = [Geometry(64, 72), Geometry(48, 48), Geometry(56), Geometry(100, 110)]


def batch_of(stored, crops=None):
    sizes = np.array([(one.width, one.height) for one in stored], dtype=np.int64).reshape(-1, 2)
    return EncodedBatch([one.data for one in stored], sizes[:, 0], sizes[:, 1], crops)


def decoded(name, geometry, stored, workers=2, crops=None):
    decoder = make_decoder(name, geometry, device="cpu", workers=workers)
    try:
        return decoder.decode(batch_of(stored, crops)).permute(0, 2, 3, 1).numpy()
    finally:
        decoder.close()


def torchvision_pixels(stored, geometry):
    from torchvision.transforms import v2

    resize = geometry.resize or [geometry.size, geometry.size]
    transform = v2.Compose([v2.Resize(resize), v2.CenterCrop(geometry.size)])
    opened = [Image.open(io.BytesIO(one.data)).convert("RGB") for one in stored]
    return np.stack([np.asarray(transform(image)) for image in opened])


def assert_close(name, pixels, expected):
    tolerance = TOLERANCES[DecoderName(name)]
    assert not tolerance.exceeded_by(tolerance.difference(pixels, expected))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_resized_pixels_are_close_to_torchvision(images, name, geometry):
    sizes = [(150, 110), (110, 151), (120, 120), (75, 300), (300, 75), (50, 40)]
    stored = [images.jpeg(*size, seed=i) for i, size in enumerate(sizes)]
    assert_close(name, decoded(name, geometry, stored), torchvision_pixels(stored, geometry))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("geometry", [Geometry(224, 256), Geometry(64, 64), Geometry(128)])
def test_pixels_of_real_images_are_close_to_torchvision(real_images, name, geometry):
    pixels = decoded(name, geometry, real_images)
    assert_close(name, pixels, torchvision_pixels(real_images, geometry))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"keep_rgb": True}],
)
def test_without_resize_pixels_equal_those_of_pillow(images, name, options):
    stored = [images.jpeg(64, 64, seed=i, **options) for i in range(3)]
    expected = torchvision_pixels(stored, Geometry(64, 64))
    np.testing.assert_array_equal(decoded(name, Geometry(64, 64), stored), expected)


@pytest.mark.parametrize("name", DECODERS)
def test_a_crop_without_resize_equals_that_of_pillow(images, name):
    stored = [images.jpeg(91, 64), images.jpeg(64, 90)]
    expected = torchvision_pixels(stored, Geometry(48, 64))
    np.testing.assert_array_equal(decoded(name, Geometry(48, 64), stored), expected)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("size", [20, 64, 150])
def test_a_random_crop_is_cut_first_and_resized_then(images, name, size):
    from torchvision.transforms.v2 import functional

    stored = [images.jpeg(150, 110, seed=1), images.encode(images.photo(64, 90), "PNG")]
    crops = np.array([[10, 3, 130, 99], [0, 80, 64, 90]])
    expected = []
    for one, (left, top, right, bottom) in zip(stored, crops.tolist(), strict=True):
        image: Any = Image.open(io.BytesIO(one.data)).convert("RGB")
        box = (top, left, bottom - top, right - left)
        expected.append(np.asarray(functional.resized_crop(image, *box, [size, size])))
    pixels = decoded(name, Geometry(size, size + 8), stored, crops=crops)
    assert_close(name, pixels, np.stack(expected))


@pytest.mark.parametrize("name", DECODERS)
def test_normalised_batches_are_planes_of_the_same_pixels(images, name):
    stored = [images.jpeg(60, 50), images.jpeg(70, 50), images.encode(images.photo(40, 40), "PNG")]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    decoder = make_decoder(
        name, Geometry(32, 40), device="cpu", workers=2, normalisation=Normalisation(mean, std)
    )
    planes = decoder.decode(batch_of(stored))
    decoder.close()
    pixels = decoded(name, Geometry(32, 40), stored).transpose(0, 3, 1, 2)
    expected = (pixels / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert planes.dtype == torch.float32
    assert planes.is_contiguous()
    np.testing.assert_allclose(planes, expected, atol=1e-5)


@pytest.mark.parametrize("size", [16, 30, 100])
def test_the_fast_decoder_comes_near_on_smooth_images(images, size):
    stored = [images.encode(images.photo(301, 203, seed=i)) for i in range(3)]
    crops = np.array([[0, 0, 301, 203], [40, 30, 240, 180], [7, 5, 107, 105]])
    fast = decoded("fast", Geometry(size), stored, crops=crops).astype(int)
    reference = decoded("pillow", Geometry(size), stored, crops=crops)
    assert 0 < np.abs(fast - reference).mean() < 6


def test_memory_of_a_batch_is_used_again_only_once_nobody_holds_it(images):
    stored = [images.jpeg(40, 40, seed=i) for i in range(3)]
    decoder = make_decoder("turbo", Geometry(40, 40), device="cpu", workers=2)
    first = decoder.decode(batch_of(stored))
    view, kept = first[1:2], first.clone()
    del first
    second = decoder.decode(batch_of(stored[::-1]))
    assert torch.equal(view, kept[1:2])
    assert torch.equal(second, kept.flip(0))
    place = second.data_ptr()
    del second
    assert decoder.decode(batch_of(stored[:2])).data_ptr() == place
    assert torch.equal(view, kept[1:2])
    decoder.close()
    assert torch.equal(view, kept[1:2])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("geometry", [Geometry(16, 20), Geometry(16)])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (900, 3), (2, 2)], ids=str)
def test_the_smallest_and_the_longest_images_decode(images, name, geometry, size):
    (pixels,) = decoded(name, geometry, [images.jpeg(*size)])
    expected = decode_with_pillow(images.jpeg(*size).data, geometry)
    inside = slice(1, 15)
    difference = np.abs(pixels.astype(int) - expected)[inside, inside]
    assert difference.max() <= 1


@pytest.mark.parametrize("value", [True, False])
def test_what_auto_picked_is_told_and_what_was_named_is_not(value):
    told = decoder_notice("auto", "cpu", exact=value)
    assert told == (decoder_reason(DecoderName.PILLOW if value else DecoderName.TURBO, "cpu"),)
    assert decoder_notice("pillow", "cpu", exact=value) == ()


def variants(images):
    photo, exif = images.photo(64, 64), Image.Exif()
    exif[0x0112] = 6
    return {
        "plain": images.encode(photo),
        "exif": images.encode(photo, exif=exif),
        "grey": images.encode(photo.convert("L")),
        "cmyk": images.encode(photo.convert("CMYK")),
        "png": images.encode(photo, "PNG"),
        "sixteen": images.encode(Image.fromarray(np.full((64, 64), 25_700, np.uint16)), "PNG"),
        "webp": images.encode(photo, "WEBP", lossless=True),
        "trailing": images.Stored(images.encode(photo).data + b"trailing bytes", 64, 64),
    }


@pytest.mark.parametrize("name", DECODERS)
def test_every_stored_kind_of_image_decodes_in_its_place(images, name):
    stored = list(variants(images).values())
    expected = [decode_with_pillow(one.data, Geometry(64, 64)) for one in stored]
    np.testing.assert_array_equal(decoded(name, Geometry(64, 64), stored), expected)


@pytest.mark.parametrize("name", DECODERS)
def test_output_is_uint8_stored_channels_last(images, name):
    decoder = make_decoder(name, Geometry(32, 40), device="cpu", workers=2)
    images_bchw = decoder.decode(batch_of([images.jpeg(60, 50), images.jpeg(70, 50)]))
    decoder.close()
    assert images_bchw.shape == (2, 3, 32, 32)
    assert images_bchw.dtype == torch.uint8
    assert images_bchw.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", DECODERS)
def test_batches_of_any_length_follow_one_another(images, name):
    stored = [images.jpeg(30 + i, 40, seed=i) for i in range(9)]
    decoder = make_decoder(name, Geometry(24, 28), device="cpu", workers=3)
    whole = decoder.decode(batch_of(stored))
    for first, last in [(0, 4), (4, 9), (8, 9), (3, 3), (0, 9)]:
        assert torch.equal(decoder.decode(batch_of(stored[first:last])), whole[first:last])
    assert torch.equal(whole, decoder.decode(batch_of(stored)))
    decoder.close()


def damaged(images):
    """Good images, three that nobody can decode, and one of another size than the index says."""
    good = images.jpeg(64, 64, seed=5)
    truncated = images.Stored(good.data[: len(good.data) // 2], 64, 64)
    return [
        good,
        truncated,
        images.jpeg(64, 64, seed=6),
        images.encode(images.photo(64, 64), "PNG"),
        images.Stored(b"", 64, 64),
        images.Stored(good.data, 60, 64),
        images.jpeg(64, 64, seed=7),
        images.Stored(b"<html>", 64, 64, "png"),
    ]


@pytest.mark.parametrize("name", DECODERS)
def test_bad_images_are_reported_and_the_good_ones_of_their_batch_kept(images, name):
    stored, geometry = damaged(images), Geometry(64, 64)
    decoder = make_decoder(name, geometry, device="cpu", workers=2)
    with pytest.raises(UndecodableImagesError) as raised:
        decoder.decode(batch_of(stored))
    assert list(raised.value.reasons) == [1, 4, 5, 7]
    assert "the index says (60, 64)" in raised.value.reasons[5]
    for good in (0, 2, 3, 6):
        expected = decode_with_pillow(stored[good].data, geometry)
        np.testing.assert_array_equal(raised.value.images[good].permute(1, 2, 0), expected)
    after = [stored[0], stored[6]]
    expected = [decode_with_pillow(one.data, geometry) for one in after]
    np.testing.assert_array_equal(decoder.decode(batch_of(after)).permute(0, 2, 3, 1), expected)
    decoder.close()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("marker", "stray"),
    [(b"\xff\xda", b"\xff\x00"), (b"\xff\xd9", b"\x12\x34" * 40)],
    ids=["before the pixels", "after the pixels"],
)
def test_stray_bytes_that_pillow_skips_do_not_cost_the_image(images, name, marker, stray):
    good = images.jpeg(64, 64)
    odd = images.Stored((stray + marker).join(good.data.rsplit(marker, 1)), 64, 64)
    pixels = decoded(name, Geometry(64, 64), [good, odd, good])
    np.testing.assert_array_equal(pixels[1], decode_with_pillow(odd.data, Geometry(64, 64)))
    np.testing.assert_array_equal(pixels[1], pixels[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_pixels_are_near_those_of_the_cpu(images):
    stored = [images.jpeg(150, 110, seed=i) for i in range(4)]
    decoder = make_decoder("dali", Geometry(64, 72), device="cuda", workers=2)
    pixels = decoder.decode(batch_of(stored)).permute(0, 2, 3, 1).cpu().numpy()
    decoder.close()
    difference = np.abs(pixels.astype(int) - decoded("dali", Geometry(64, 72), stored))
    assert difference.mean() < 2


def test_auto_means_dali_on_a_gpu_and_turbo_on_a_cpu():
    assert choose_decoder("auto", "cuda:1") is DecoderName.DALI
    assert choose_decoder("auto", "cpu") is DecoderName.TURBO
    assert choose_decoder("dali", "cpu") is DecoderName.DALI


def test_an_unknown_decoder_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="one of auto, dali, turbo, fast, pillow, got opencv"):
        choose_decoder("opencv", "cpu")


def test_dali_that_is_not_installed_is_named_with_the_other_decoder(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MachineError, match="use --decoder turbo"):
        make_decoder("dali", Geometry(8), device="cpu", workers=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(MachineError, match="device cuda is not available here; use --device cpu"):
        make_decoder("turbo", Geometry(8), device="cuda", workers=1)
