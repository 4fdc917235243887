"""Both decoders against torchvision on Pillow images, and on what goes wrong."""

import gc
import io
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from engine.decode.decoder import (
    DecoderName,
    EncodedBatch,
    UndecodableImagesError,
    choose_decoder,
    make_decoder,
)
from engine.decode.geometry import Geometry
from engine.decode.pillow import decode_with_pillow
from shards.errors import MachineError, UsageError

# Largest and mean difference from torchvision; DALI repeats the edge pixels of an image that Pillow
# leaves out of its filter, so its bound holds two pixels inside.
LARGEST = {"turbo": 2, "dali": 1}
MEAN = {"turbo": 0.25, "dali": 0.25}
EDGE = {"turbo": 0, "dali": 2}
DECODERS = ["turbo", "dali"]
GEOMETRIES = [Geometry(64, 72), Geometry(48, 48), Geometry(56), Geometry(100, 110)]


def batch_of(stored):
    sizes = np.array([(one.width, one.height) for one in stored], dtype=np.int64).reshape(-1, 2)
    return EncodedBatch([one.data for one in stored], sizes[:, 0], sizes[:, 1])


def decoded(name, geometry, stored, workers=2):
    decoder = make_decoder(name, geometry, device="cpu", workers=workers)
    try:
        return decoder.decode(batch_of(stored)).permute(0, 2, 3, 1).numpy()
    finally:
        decoder.close()


def torchvision_pixels(stored, geometry):
    from torchvision.transforms import v2

    resize = geometry.resize or [geometry.size, geometry.size]
    transform = v2.Compose([v2.Resize(resize), v2.CenterCrop(geometry.size)])
    opened = [Image.open(io.BytesIO(one.data)).convert("RGB") for one in stored]
    return np.stack([np.asarray(transform(image)) for image in opened])


def assert_close(name, pixels, expected):
    difference = np.abs(pixels.astype(int) - expected)
    edge = EDGE[name]
    inside = difference[:, edge : difference.shape[1] - edge, edge : difference.shape[2] - edge]
    assert inside.max() <= LARGEST[name]
    assert inside.mean() <= MEAN[name]


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


def test_the_gpu_graph_is_defined_and_serialised_without_a_gpu():
    from engine.decode.dali import define_pipeline

    graph = define_pipeline(224, "mixed", batch=8, workers=2, device_id=None).serialize()
    assert b"mixed" in graph


def test_a_closed_dali_decoder_has_no_pipeline_left(images):
    from engine.decode.dali import DaliDecoder

    decoder = DaliDecoder(Geometry(16, 16), device="cpu", workers=1)
    decoder.decode(batch_of([images.jpeg(20, 20)]))
    pipeline = weakref.ref(decoder._pipeline)
    decoder.close()
    gc.collect()
    assert pipeline() is None


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
    with pytest.raises(UsageError, match="decoder must be one of auto, dali, turbo, got opencv"):
        choose_decoder("opencv", "cpu")


def test_dali_that_is_not_installed_is_named_with_the_other_decoder(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MachineError, match="use --decoder turbo"):
        make_decoder("dali", Geometry(8), device="cpu", workers=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(MachineError, match="device cuda is not available here; use --device cpu"):
        make_decoder("turbo", Geometry(8), device="cuda", workers=1)
