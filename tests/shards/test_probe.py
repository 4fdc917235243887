import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coreset.shards.images.flags import Flag
from coreset.shards.images.probe import (
    Probe,
    Reason,
    Refusal,
    decode_jpeg,
    glance,
    misnamed,
    probe,
)

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def refusal_of(data: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        probe(data)
    return caught.value


def verdict_on(data: bytes) -> Probe | Reason:
    try:
        return probe(data)
    except Refusal as refusal:
        return refusal.reason


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + zlib.crc32(kind + content).to_bytes(4, "big")
    )


PHOTO = Image.radial_gradient("L").resize((90, 70)).convert("RGB")
JPEG = encode(NOISE, "JPEG")
PNG = encode(NOISE, "PNG")
WEBP = encode(NOISE, "WEBP")
LOSSLESS = encode(NOISE, "WEBP", lossless=True)
ANIMATION = {"save_all": True, "append_images": [NOISE.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]}
DEEP = Image.fromarray(np.arange(37 * 53, dtype=np.uint16).reshape(37, 53))

ACCEPTED: list[tuple[str, bytes, str, Flag]] = [
    ("jpeg", JPEG, "jpg", Flag(0)),
    ("bytes after the image", JPEG + b"after the end", "jpg", Flag(0)),
    ("grey jpeg", encode(NOISE.convert("L"), "JPEG"), "jpg", Flag.GREY),
    ("cmyk jpeg", encode(NOISE.convert("CMYK"), "JPEG"), "jpg", Flag.CMYK),
    ("progressive jpeg", encode(NOISE, "JPEG", progressive=True), "jpg", Flag.PROGRESSIVE),
    ("rotated jpeg", encode(NOISE, "JPEG", exif=rotated(6)), "jpg", Flag.EXIF_ROTATED),
    ("upright exif", encode(NOISE, "JPEG", exif=rotated(1)), "jpg", Flag(0)),
    ("damaged exif", encode(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff"), "jpg", Flag(0)),
    ("short exif", encode(NOISE, "JPEG", exif=b"Exif\0\0II*\0"), "jpg", Flag(0)),
    ("png", PNG, "png", Flag(0)),
    ("grey png", encode(NOISE.convert("L"), "PNG"), "png", Flag.GREY),
    ("palette png", encode(NOISE.convert("P"), "PNG"), "png", Flag.PALETTE),
    ("alpha png", encode(NOISE.convert("RGBA"), "PNG"), "png", Flag.ALPHA),
    ("grey alpha png", encode(NOISE.convert("LA"), "PNG"), "png", Flag.GREY | Flag.ALPHA),
    ("transparent colour", encode(NOISE, "PNG", transparency=(0, 0, 0)), "png", Flag.ALPHA),
    ("deep png", encode(DEEP, "PNG"), "png", Flag.DEEP | Flag.GREY),
    ("rotated png", encode(NOISE, "PNG", exif=rotated(8)), "png", Flag.EXIF_ROTATED),
    ("webp", WEBP, "webp", Flag(0)),
    ("lossless webp", LOSSLESS, "webp", Flag(0)),
    ("rotated webp", encode(NOISE, "WEBP", exif=rotated(3)), "webp", Flag.EXIF_ROTATED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "extension", "flags"),
    [row[1:] for row in ACCEPTED],
    ids=[row[0].replace(" ", "-") for row in ACCEPTED],
)
def test_a_whole_image_is_described(data: bytes, extension: str, flags: Flag):
    assert probe(data) == Probe(extension, 53, 37, flags)


def test_one_pixel_is_an_image():
    assert probe(encode(NOISE.resize((1, 1)), "JPEG")) == Probe("jpg", 1, 1, Flag(0))


@pytest.mark.parametrize("lossless", [True, False])
def test_transparency_of_webp_is_flagged(lossless: bool):
    image = NOISE.convert("RGBA")
    image.putalpha(100)
    assert probe(encode(image, "WEBP", lossless=lossless)).flags == Flag.ALPHA


REFUSED: list[tuple[str, bytes, Reason, str]] = [
    ("nothing", b"", Reason.EMPTY, "0 bytes"),
    ("html", b"<!DOCTYPE html><html>404</html>", Reason.NOT_AN_IMAGE, "text/html"),
    ("random bytes", bytes(range(1, 90)), Reason.NOT_AN_IMAGE, "begins with 01 02"),
    ("one byte", b"\xff", Reason.NOT_AN_IMAGE, "begins with ff"),
    ("gif", encode(NOISE, "GIF"), Reason.UNSUPPORTED_FORMAT, "image/gif"),
    ("bmp", encode(NOISE, "BMP"), Reason.UNSUPPORTED_FORMAT, "image/bmp"),
    ("tiff", encode(NOISE, "TIFF"), Reason.UNSUPPORTED_FORMAT, "image/tiff"),
    ("animated png", encode(NOISE, "PNG", **ANIMATION), Reason.UNSUPPORTED_FORMAT, "animated"),
    ("animated webp", encode(NOISE, "WEBP", **ANIMATION), Reason.UNSUPPORTED_FORMAT, "animated"),
    ("half a jpeg", JPEG[: len(JPEG) // 2], Reason.TRUNCATED, "Premature end"),
    ("no end of jpeg", JPEG[:-2], Reason.TRUNCATED, "Premature end"),
    ("jpeg header", JPEG[:30], Reason.TRUNCATED, "before the frame header"),
    ("half a png", PNG[: len(PNG) // 2], Reason.TRUNCATED, "before the end chunk"),
    ("no end of png", PNG[:-12], Reason.TRUNCATED, "before the end chunk"),
    ("half a webp", WEBP[: len(WEBP) // 2], Reason.TRUNCATED, "bytes of"),
    ("zeros in a jpeg", JPEG[:1200] + bytes(99) + JPEG[1299:], Reason.UNDECODABLE, "Corrupt"),
    ("png without header", PNG[:8] + PNG[33:], Reason.UNDECODABLE, "IHDR"),
    ("unknown webp", WEBP.replace(b"VP8 ", b"VP9 ", 1), Reason.UNDECODABLE, "b'VP9 '"),
    ("damaged webp", LOSSLESS[:25] + b"\xff" * (len(LOSSLESS) - 25), Reason.UNDECODABLE, ""),
    (
        "jpeg without marker",
        b"\xff\xd8\xff\xe0\x00\x04ab" + b"garbage",
        Reason.UNDECODABLE,
        "no marker at byte 8",
    ),
]


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [row[1:] for row in REFUSED],
    ids=[row[0].replace(" ", "-") for row in REFUSED],
)
def test_what_is_not_a_whole_image_is_refused_with_a_reason(
    data: bytes, reason: Reason, detail: str
):
    refusal = refusal_of(data)
    assert refusal.reason == reason
    assert detail in refusal.detail


def test_a_flipped_bit_in_png_pixels_is_refused():
    flipped = bytearray(PNG)
    flipped[len(PNG) // 2] ^= 1
    assert refusal_of(bytes(flipped)).reason == Reason.UNDECODABLE


def png_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    frame = JPEG.index(b"\xff\xc0")
    return JPEG[: frame + 5] + struct.pack(">HH", 30_000, 30_000) + JPEG[frame + 9 :]


def webp_bomb() -> bytes:
    canvas = bytes(4) + (16_382).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + canvas


@pytest.mark.parametrize("bomb", [png_bomb, jpeg_bomb, webp_bomb])
def test_a_decompression_bomb_is_refused_by_its_header(bomb: Callable[[], bytes]):
    assert refusal_of(bomb()).reason == Reason.TOO_LARGE


@settings(max_examples=300)
@given(st.sampled_from([JPEG, PNG, WEBP]), st.data())
def test_damage_ends_in_an_answer_and_cuts_in_a_refusal(whole: bytes, data: st.DataObject):
    cut = data.draw(st.integers(0, len(whole) - 1))
    refusal_of(whole[:cut])
    damaged = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    verdict = verdict_on(bytes(damaged))
    assert isinstance(verdict, Probe) or verdict in set(Reason)


def test_what_pillow_says_of_a_damaged_image_is_the_same_in_every_run():
    def what_is_wrong():
        with pytest.raises(Refusal) as caught:
            probe(b"RIFF\x24\x00\x00\x00WEBPVP8 " + b"\x01" * 40)
        return str(caught.value)

    assert what_is_wrong() == what_is_wrong()
    assert "0x" not in what_is_wrong()


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
def test_a_decode_at_an_eighth_finds_what_a_full_decode_finds(mode: str, options: dict[str, Any]):
    rng = random.Random(f"{mode} {options}")
    whole = encode(PHOTO.convert(mode), "JPEG", **options)
    damaged = [corrupted(whole, rng) for _ in range(300)]
    in_full = [full_decode_fails(data) for data in damaged]
    assert [decode_fails(data) for data in damaged] == in_full
    assert 30 < sum(in_full) < 300


def n_pixels(data: bytes) -> int:
    height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
    return height * width


def full_decode_fails(data: bytes) -> bool:
    """Whether libjpeg-turbo refuses the file at full size; bombs are left to the header check."""
    try:
        if n_pixels(data) >= 10**7:
            return True
        simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return True
    return False


def decode_fails(data: bytes) -> bool:
    try:
        if n_pixels(data) >= 10**7:
            return True
        decode_jpeg(data)
    except (ValueError, Refusal):
        return True
    return False


@pytest.mark.parametrize(
    ("name", "flag"),
    [("a.JPEG", Flag(0)), ("a.jpg", Flag(0)), ("a.png", Flag.MISNAMED), ("a", Flag(0)),
     ("a.tmp", Flag(0)), ("x.png/a.jpeg", Flag(0))],
)  # fmt: skip
def test_an_extension_of_another_format_is_flagged(name: str, flag: Flag):
    assert misnamed(probe(JPEG), name).flags == flag


@pytest.mark.parametrize("data", [JPEG, PNG, WEBP, LOSSLESS])
def test_a_glance_says_what_a_probe_says_of_a_whole_file(data: bytes):
    assert glance(data) == probe(data)


def test_a_glance_does_not_decode():
    cut = JPEG[: len(JPEG) * 2 // 3]
    assert glance(cut) == probe(JPEG)
    assert refusal_of(cut).reason is Reason.TRUNCATED
