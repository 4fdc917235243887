"""Image files: described or refused, and encoded again for packing."""

import random
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coreset.bench.robustness.faults import encoded, lying_jpeg, png_bomb
from coreset.shards.images.flags import Flag, Reason, Refusal
from coreset.shards.images.probe import Probe, decode_jpeg, glance, misnamed, probe
from coreset.shards.packing.encode import reencode, resized_pixels, target_size

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
PHOTO = Image.radial_gradient("L").resize((90, 70)).convert("RGB")


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def refusal_of(data: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        probe(data)
    return caught.value


JPEG = encoded(NOISE, "JPEG")
PNG = encoded(NOISE, "PNG")
WEBP = encoded(NOISE, "WEBP")
LOSSLESS = encoded(NOISE, "WEBP", lossless=True)
ANIMATION = {"save_all": True, "append_images": [NOISE.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]}
DEEP = Image.fromarray(np.arange(37 * 53, dtype=np.uint16).reshape(37, 53))
GLASS = NOISE.convert("RGBA")
GLASS.putalpha(100)

ACCEPTED: dict[str, tuple[bytes, str, Flag]] = {
    "jpeg": (JPEG, "jpg", Flag(0)),
    "bytes after the image": (JPEG + b"after the end", "jpg", Flag(0)),
    "grey jpeg": (encoded(NOISE.convert("L"), "JPEG"), "jpg", Flag.GREY),
    "cmyk jpeg": (encoded(NOISE.convert("CMYK"), "JPEG"), "jpg", Flag.CMYK),
    "progressive jpeg": (encoded(NOISE, "JPEG", progressive=True), "jpg", Flag.PROGRESSIVE),
    "rotated jpeg": (encoded(NOISE, "JPEG", exif=rotated(6)), "jpg", Flag.EXIF_ROTATED),
    "upright exif": (encoded(NOISE, "JPEG", exif=rotated(1)), "jpg", Flag(0)),
    "damaged exif": (encoded(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff"), "jpg", Flag(0)),
    "short exif": (encoded(NOISE, "JPEG", exif=b"Exif\0\0II*\0"), "jpg", Flag(0)),
    "png": (PNG, "png", Flag(0)),
    "grey png": (encoded(NOISE.convert("L"), "PNG"), "png", Flag.GREY),
    "palette png": (encoded(NOISE.convert("P"), "PNG"), "png", Flag.PALETTE),
    "alpha png": (encoded(GLASS, "PNG"), "png", Flag.ALPHA),
    "grey alpha png": (encoded(NOISE.convert("LA"), "PNG"), "png", Flag.GREY | Flag.ALPHA),
    "transparent colour": (encoded(NOISE, "PNG", transparency=(0, 0, 0)), "png", Flag.ALPHA),
    "deep png": (encoded(DEEP, "PNG"), "png", Flag.DEEP | Flag.GREY),
    "rotated png": (encoded(NOISE, "PNG", exif=rotated(8)), "png", Flag.EXIF_ROTATED),
    "webp": (WEBP, "webp", Flag(0)),
    "lossless webp": (LOSSLESS, "webp", Flag(0)),
    "rotated webp": (encoded(NOISE, "WEBP", exif=rotated(3)), "webp", Flag.EXIF_ROTATED),
    "alpha webp": (encoded(GLASS, "WEBP"), "webp", Flag.ALPHA),
    "lossless alpha webp": (encoded(GLASS, "WEBP", lossless=True), "webp", Flag.ALPHA),
}


@pytest.mark.parametrize(("data", "extension", "flags"), ACCEPTED.values(), ids=ACCEPTED)
def test_a_whole_image_is_described_by_a_probe_and_a_glance(data, extension, flags):
    assert probe(data) == glance(data) == Probe(extension, 53, 37, flags)


VP8X = bytes(4) + (16_382).to_bytes(3, "little") * 2  # a canvas of 16,383 x 16,383 pixels
WEBP_BOMB = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + VP8X
REFUSED: dict[str, tuple[bytes, Reason, str]] = {
    "nothing": (b"", Reason.EMPTY, "0 bytes"),
    "html": (b"<!DOCTYPE html><html>404</html>", Reason.NOT_AN_IMAGE, "text/html"),
    "random bytes": (bytes(range(1, 90)), Reason.NOT_AN_IMAGE, "begins with 01 02"),
    "one byte": (b"\xff", Reason.NOT_AN_IMAGE, "begins with ff"),
    "gif": (encoded(NOISE, "GIF"), Reason.UNSUPPORTED_FORMAT, "image/gif"),
    "bmp": (encoded(NOISE, "BMP"), Reason.UNSUPPORTED_FORMAT, "image/bmp"),
    "tiff": (encoded(NOISE, "TIFF"), Reason.UNSUPPORTED_FORMAT, "image/tiff"),
    "animated png": (encoded(NOISE, "PNG", **ANIMATION), Reason.UNSUPPORTED_FORMAT, "animated"),
    "animated webp": (encoded(NOISE, "WEBP", **ANIMATION), Reason.UNSUPPORTED_FORMAT, "animated"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], Reason.TRUNCATED, "Premature end"),
    "no end of jpeg": (JPEG[:-2], Reason.TRUNCATED, "Premature end"),
    "jpeg header": (JPEG[:30], Reason.TRUNCATED, "before the frame header"),
    "half a png": (PNG[: len(PNG) // 2], Reason.TRUNCATED, "before the end chunk"),
    "no end of png": (PNG[:-12], Reason.TRUNCATED, "before the end chunk"),
    "half a webp": (WEBP[: len(WEBP) // 2], Reason.TRUNCATED, "bytes of"),
    "zeros in a jpeg": (JPEG[:1200] + bytes(99) + JPEG[1299:], Reason.UNDECODABLE, "Corrupt"),
    "flipped bit of a png": (PNG[:99] + bytes([PNG[99] ^ 1]) + PNG[100:], Reason.UNDECODABLE, ""),
    # Behind the pixels Pillow compares no checksum.
    "end of a png": (PNG[:-1] + bytes([PNG[-1] ^ 1]), Reason.UNDECODABLE, "fails its checksum"),
    "png without header": (PNG[:8] + PNG[33:], Reason.UNDECODABLE, "IHDR"),
    "unknown webp": (WEBP.replace(b"VP8 ", b"VP9 ", 1), Reason.UNDECODABLE, "b'VP9 '"),
    "damaged webp": (LOSSLESS[:25] + b"\xff" * (len(LOSSLESS) - 25), Reason.UNDECODABLE, ""),
    "jpeg without marker": (
        b"\xff\xd8\xff\xe0\x00\x04ab" + b"garbage", Reason.UNDECODABLE, "no marker at byte 8"
    ),
    "jpeg bomb": (lying_jpeg(30_000), Reason.TOO_LARGE, "pixels"),
    "png bomb": (png_bomb(30_000), Reason.TOO_LARGE, "pixels"),
    "webp bomb": (WEBP_BOMB, Reason.TOO_LARGE, "pixels"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "reason", "detail"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_a_whole_image_is_refused_with_a_reason(data, reason, detail):
    refusal = refusal_of(data)
    assert refusal.reason == reason
    assert detail in refusal.detail


@settings(max_examples=300)
@given(st.sampled_from([JPEG, PNG, WEBP]), st.data())
def test_damage_ends_in_an_answer_and_cuts_in_a_refusal(whole, data):
    refusal_of(whole[: data.draw(st.integers(0, len(whole) - 1))])
    damaged = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    with suppress(Refusal):
        assert isinstance(probe(bytes(damaged)), Probe)


def corrupted(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip bits, or overwrite a stretch."""
    copy = bytearray(data)
    kind = rng.random()
    if kind < 0.3:
        return bytes(copy[: rng.randrange(2, len(copy))])
    if kind < 0.8:
        for _ in range(rng.choice((1, 1, 3))):
            copy[rng.randrange(2, len(copy))] ^= 1 << rng.randrange(8)
        return bytes(copy)
    start = rng.randrange(2, len(copy))
    copy[start : start + rng.randrange(1, 60)] = rng.randbytes(rng.randrange(60))
    return bytes(copy)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"progressive": True}), ("RGB", {"restart_marker_blocks": 3}),
     ("RGB", {"subsampling": 0}), ("L", {}), ("CMYK", {})],
)  # fmt: skip
def test_a_decode_at_an_eighth_finds_what_a_full_decode_finds(mode, options):
    rng = random.Random(f"{mode} {options}")
    whole = encoded(PHOTO.convert(mode), "JPEG", **options)
    damaged = [corrupted(whole, rng) for _ in range(300)]
    in_full = [fails(data, in_full=True) for data in damaged]
    assert [fails(data, in_full=False) for data in damaged] == in_full
    assert 30 < sum(in_full) < 300


def fails(data: bytes, *, in_full: bool) -> bool:
    try:
        height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
        if height * width >= 10**7:  # bombs are left to the header check
            return True
        simplejpeg.decode_jpeg(data, "RGB", strict=True) if in_full else decode_jpeg(data)
    except (ValueError, Refusal):
        return True
    return False


def test_an_extension_of_another_format_is_flagged():
    for name in ("a.JPEG", "a.jpg", "a", "a.tmp", "x.png/a.jpeg"):
        assert misnamed(probe(JPEG), name).flags == Flag(0)
    assert misnamed(probe(JPEG), "a.png").flags == Flag.MISNAMED


def test_a_glance_does_not_decode():
    cut = JPEG[: len(JPEG) * 2 // 3]
    assert glance(cut) == probe(JPEG)
    assert refusal_of(cut).reason is Reason.TRUNCATED


# Encoded again, smaller.


RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((200, 150))
SMOOTH_GLASS = SMOOTH.convert("RGBA")
SMOOTH_GLASS.putalpha(Image.linear_gradient("L").resize(SMOOTH.size))
DEEP_VALUES = np.linspace(0, 65535, 200 * 150).astype(np.uint16).reshape(150, 200)


def shrunk(data: bytes, short_side: int = 64, quality: int = 90):
    return reencode(data, probe(data), short_side=short_side, quality=quality)


SOURCES = {
    "jpeg": encoded(SMOOTH, "JPEG", quality=95),
    "progressive jpeg": encoded(SMOOTH, "JPEG", progressive=True),
    "grey jpeg": encoded(SMOOTH.convert("L"), "JPEG", quality=95),
    "cmyk jpeg": encoded(SMOOTH.convert("CMYK"), "JPEG"),
    "rotated jpeg": encoded(SMOOTH, "JPEG", exif=rotated(6)),
    "png": encoded(SMOOTH, "PNG"),
    "palette png": encoded(SMOOTH.convert("P"), "PNG"),
    "transparent palette png": encoded(SMOOTH.convert("P"), "PNG", transparency=bytes(range(256))),
    "alpha png": encoded(SMOOTH_GLASS, "PNG"),
    "grey png": encoded(SMOOTH.convert("L"), "PNG"),
    "grey alpha png": encoded(SMOOTH_GLASS.convert("LA"), "PNG"),
    "black and white png": encoded(SMOOTH.convert("1"), "PNG"),
    "webp": encoded(SMOOTH, "WEBP"),
    "alpha webp": encoded(SMOOTH_GLASS, "WEBP", lossless=True),
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
