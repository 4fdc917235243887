"""Re-encoding of images: pixels, descriptions, sizes and refusals."""

from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coreset.bench.robustness.faults import encoded
from coreset.shards.images.flags import Flag, Reason, Refusal
from coreset.shards.images.probe import Probe, probe
from coreset.shards.packing.encode import reencode, resized_pixels, target_size

RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((200, 150))
GLASS = SMOOTH.convert("RGBA")
GLASS.putalpha(Image.linear_gradient("L").resize(SMOOTH.size))
DEEP_VALUES = np.linspace(0, 65535, 200 * 150).astype(np.uint16).reshape(150, 200)


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def shrunk(data: bytes, short_side: int = 64, quality: int = 90):
    return reencode(data, probe(data), short_side=short_side, quality=quality)


SOURCES = {
    "jpeg": encoded(SMOOTH, "JPEG", quality=95),
    "progressive jpeg": encoded(SMOOTH, "JPEG", progressive=True),
    "grey jpeg": encoded(SMOOTH.convert("L"), "JPEG", quality=95),
    "cmyk jpeg": encoded(SMOOTH.convert("CMYK"), "JPEG"),
    "rotated jpeg": encoded(SMOOTH, "JPEG", exif=rotated()),
    "png": encoded(SMOOTH, "PNG"),
    "palette png": encoded(SMOOTH.convert("P"), "PNG"),
    "transparent palette png": encoded(SMOOTH.convert("P"), "PNG", transparency=bytes(range(256))),
    "alpha png": encoded(GLASS, "PNG"),
    "grey png": encoded(SMOOTH.convert("L"), "PNG"),
    "grey alpha png": encoded(GLASS.convert("LA"), "PNG"),
    "black and white png": encoded(SMOOTH.convert("1"), "PNG"),
    "webp": encoded(SMOOTH, "WEBP"),
    "alpha webp": encoded(GLASS, "WEBP", lossless=True),
}
GREYS = {"grey jpeg", "grey png", "grey alpha png", "black and white png"}
PLAIN = {"jpeg", "progressive jpeg", "grey jpeg", "rotated jpeg"}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the reference
@pytest.mark.parametrize("name", SOURCES)
def test_pixels_are_those_of_pillow_and_the_stored_image_is_described(name):
    data = SOURCES[name]
    with Image.open(BytesIO(data)) as image:
        expected = image.convert("RGB").resize((85, 64), Image.Resampling.BILINEAR)
    pixels = resized_pixels(data, probe(data), short_side=64).astype(int)
    assert pixels.shape == (64, 85, 1 if name in GREYS else 3)
    assert np.abs(pixels - np.asarray(expected).astype(int)).max() <= 1
    stored, described = shrunk(data, quality=100)
    flags = Flag.GREY if name in GREYS else Flag(0)
    assert probe(stored) == described == Probe("jpg", 85, 64, flags)
    assert shrunk(data, quality=100)[0] == stored
    # Chroma at half size costs dithered and palette images most.
    assert np.abs(simplejpeg.decode_jpeg(stored, "RGB").astype(int) - pixels).mean() < 6


def test_sixteen_bit_grey_is_scaled_and_not_saturated():
    data = encoded(Image.fromarray(DEEP_VALUES), "PNG")
    assert probe(data).flags & Flag.DEEP
    pixels = resized_pixels(data, probe(data), short_side=150)
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(DEEP_VALUES / 257))
    assert shrunk(data)[1].flags == Flag.GREY


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 400))
def test_the_size_is_that_of_torchvision_and_never_larger(width, height, short_side):
    short, long = min(width, height), max(width, height)
    expected = (short, long)
    if short > short_side:
        expected = (short_side, int(short_side * long / short))
    target = target_size(width, height, short_side)
    assert (min(target), max(target)) == expected
    assert (target[0] < target[1]) <= (width < height)
    assert (target[0] > target[1]) <= (width > height)


@pytest.mark.parametrize("name", SOURCES)
def test_plain_jpegs_that_are_small_enough_keep_their_bytes_and_others_their_size(name):
    data = SOURCES[name]
    for short_side in (150, 151, 4000):
        stored, described = shrunk(data, short_side)
        assert (stored is data) is (name in PLAIN)
        assert probe(stored) == described
        assert (described.format, described.width, described.height) == ("jpg", 200, 150)


def test_higher_quality_costs_bytes_and_comes_closer():
    data = SOURCES["jpeg"]
    pixels = resized_pixels(data, probe(data), short_side=64).astype(int)
    stored = [shrunk(data, quality=quality)[0] for quality in (20, 60, 95)]
    errors = [np.abs(simplejpeg.decode_jpeg(image) - pixels).mean() for image in stored]
    assert [len(image) for image in stored] == sorted(len(image) for image in stored)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", ["jpeg", "grey jpeg", "cmyk jpeg", "png", "webp"])
def test_damage_that_appears_only_now_is_a_refusal(name):
    data = SOURCES[name]
    with pytest.raises(Refusal) as caught:
        reencode(data[: len(data) // 2], probe(data), short_side=64, quality=90)
    assert caught.value.reason in {Reason.TRUNCATED, Reason.UNDECODABLE}
    assert "0x" not in caught.value.detail


def test_an_image_too_long_for_jpeg_is_refused_before_it_is_decoded():
    for image, limit in (
        (Probe("png", 65_501, 1, Flag(0)), 64),
        (Probe("png", 10**7, 8, Flag(0)), 4),
    ):
        with pytest.raises(Refusal, match=r"^too-large: .* pixels, limit 65,500 a side"):
            reencode(b"not a png", image, short_side=limit, quality=90)
