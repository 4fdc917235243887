"""Re-encoding of images: pixels, descriptions, sizes and refusals."""

from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coreset.shards.images.flags import Flag
from coreset.shards.images.probe import Probe, Reason, Refusal, probe
from coreset.shards.packing.encode import reencode, resized_pixels, target_size

RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((200, 150))
DEEP_VALUES = np.linspace(0, 65535, 200 * 150).astype(np.uint16).reshape(150, 200)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def shrunk(data: bytes, short_side: int = 64, quality: int = 90):
    return reencode(data, probe(data), short_side=short_side, quality=quality)


JPEG = encode(SMOOTH, "JPEG", quality=95)
GREY = encode(SMOOTH.convert("L"), "JPEG", quality=95)
SOURCES = {
    "jpeg": (JPEG, Flag(0)),
    "progressive jpeg": (encode(SMOOTH, "JPEG", progressive=True), Flag(0)),
    "grey jpeg": (GREY, Flag.GREY),
    "cmyk jpeg": (encode(SMOOTH.convert("CMYK"), "JPEG"), Flag(0)),
    "rotated jpeg": (encode(SMOOTH, "JPEG", exif=rotated()), Flag(0)),
    "png": (encode(SMOOTH, "PNG"), Flag(0)),
    "palette png": (encode(SMOOTH.convert("P"), "PNG"), Flag(0)),
    "transparent palette png": (
        encode(SMOOTH.convert("P"), "PNG", transparency=bytes(range(256))),
        Flag(0),
    ),
    "alpha png": (encode(with_alpha(SMOOTH), "PNG"), Flag(0)),
    "grey png": (encode(SMOOTH.convert("L"), "PNG"), Flag.GREY),
    "grey alpha png": (encode(with_alpha(SMOOTH).convert("LA"), "PNG"), Flag.GREY),
    "black and white png": (encode(SMOOTH.convert("1"), "PNG"), Flag.GREY),
    "webp": (encode(SMOOTH, "WEBP"), Flag(0)),
    "alpha webp": (encode(with_alpha(SMOOTH), "WEBP", lossless=True), Flag(0)),
}
every_source = pytest.mark.parametrize("data", [row[0] for row in SOURCES.values()], ids=SOURCES)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the reference
@every_source
def test_pixels_are_within_one_level_of_pillow_before_the_encoding(data):
    with Image.open(BytesIO(data)) as image:
        expected = image.convert("RGB").resize((85, 64), Image.Resampling.BILINEAR)
    pixels = resized_pixels(data, probe(data), short_side=64)
    assert np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_sixteen_bit_grey_is_scaled_and_not_saturated():
    data = encode(Image.fromarray(DEEP_VALUES), "PNG")
    assert probe(data).flags & Flag.DEEP
    pixels = resized_pixels(data, probe(data), short_side=150)
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(DEEP_VALUES / 257))
    assert shrunk(data)[1].flags == Flag.GREY


@pytest.mark.parametrize(("data", "flags"), SOURCES.values(), ids=SOURCES)
def test_the_description_is_what_a_probe_of_the_stored_bytes_finds(data, flags):
    stored, described = shrunk(data)
    assert probe(stored) == described == Probe("jpg", 85, 64, flags)


@every_source
def test_the_stored_image_looks_like_the_resized_one(data):
    pixels = resized_pixels(data, probe(data), short_side=64)
    decoded = simplejpeg.decode_jpeg(shrunk(data, quality=100)[0], "RGB")
    # Chroma at half size costs dithered and palette images most.
    assert np.abs(decoded.astype(int) - pixels).mean() < 6


@every_source
def test_the_same_image_gives_the_same_bytes(data):
    assert shrunk(data) == shrunk(data)


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


@pytest.mark.parametrize("short_side", [150, 151, 4000])
def test_a_plain_jpeg_that_is_small_enough_keeps_its_bytes_and_flags(short_side):
    for name in ("jpeg", "progressive jpeg", "grey jpeg", "rotated jpeg"):
        data = SOURCES[name][0]
        stored, described = shrunk(data, short_side)
        assert stored is data
        assert described == probe(data)


@pytest.mark.parametrize("name", ["cmyk jpeg", "png", "webp", "palette png"])
def test_other_formats_become_jpeg_at_their_own_size_when_they_are_small_enough(name):
    stored, described = shrunk(SOURCES[name][0], 150)
    assert probe(stored) == described == Probe("jpg", 200, 150, Flag(0))


def test_grey_is_stored_with_one_channel():
    assert simplejpeg.decode_jpeg_header(shrunk(GREY)[0])[2] == "Gray"
    assert resized_pixels(GREY, probe(GREY), short_side=64).shape == (64, 85, 1)


def test_higher_quality_costs_bytes_and_comes_closer():
    pixels = resized_pixels(JPEG, probe(JPEG), short_side=64).astype(int)
    stored = [shrunk(JPEG, quality=quality)[0] for quality in (20, 60, 95)]
    errors = [np.abs(simplejpeg.decode_jpeg(data) - pixels).mean() for data in stored]
    assert [len(data) for data in stored] == sorted(len(data) for data in stored)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", ["jpeg", "grey jpeg", "cmyk jpeg", "png", "webp"])
def test_damage_that_appears_only_now_is_a_refusal(name):
    data = SOURCES[name][0]
    with pytest.raises(Refusal) as caught:
        reencode(data[: len(data) // 2], probe(data), short_side=64, quality=90)
    assert caught.value.reason in {Reason.TRUNCATED, Reason.UNDECODABLE}
    assert "0x" not in caught.value.detail


def test_an_image_too_long_for_jpeg_is_refused():
    data = encode(Image.new("L", (65_501, 1)), "PNG")
    with pytest.raises(Refusal, match="65501 x 1 pixels, limit 65,500 a side") as caught:
        shrunk(data)
    assert caught.value.reason == Reason.TOO_LARGE


def test_an_image_that_would_be_too_long_is_refused_before_it_is_decoded():
    image = Probe("png", 10_000_000, 8, Flag(0))
    with pytest.raises(Refusal, match="5000000 x 4 pixels, limit 65,500 a side"):
        reencode(b"not a png", image, short_side=4, quality=90)
