import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry

WHOLE = Geometry(40, 40)


def torchvision_pixels(image, geometry):
    from torchvision.transforms import v2

    resize = geometry.resize or [geometry.size, geometry.size]
    return np.asarray(v2.Compose([v2.Resize(resize), v2.CenterCrop(geometry.size)])(image))


@pytest.mark.parametrize(
    "geometry", [Geometry(32, 36), Geometry(48, 48), Geometry(20), Geometry(90)]
)
@pytest.mark.parametrize("size", [(70, 50), (50, 71), (60, 60), (3, 5)])
def test_pixels_are_those_of_torchvision(images, geometry, size):
    stored = images.jpeg(*size)
    expected = torchvision_pixels(Image.open(io.BytesIO(stored.data)).convert("RGB"), geometry)
    np.testing.assert_array_equal(decode_with_pillow(stored.data, geometry), expected)


def test_exif_rotation_is_ignored(images):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = images.jpeg(60, 40)
    rotated = images.jpeg(60, 40, exif=exif)
    np.testing.assert_array_equal(
        decode_with_pillow(rotated.data, WHOLE), decode_with_pillow(upright.data, WHOLE)
    )


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_lossless_formats_keep_their_pixels(images, file_format):
    image = images.photo(40, 40)
    stored = images.encode(image, file_format, lossless=True)
    np.testing.assert_array_equal(decode_with_pillow(stored.data, WHOLE), np.asarray(image))


def test_grey_is_repeated(images):
    grey = images.photo(40, 40).convert("L")
    stored = images.encode(grey, "PNG")
    np.testing.assert_array_equal(
        decode_with_pillow(stored.data, WHOLE), np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    )


def test_alpha_is_dropped_and_not_blended(images):
    image = images.photo(40, 40)
    transparent = image.copy()
    transparent.putalpha(7)
    stored = images.encode(transparent, "PNG")
    np.testing.assert_array_equal(decode_with_pillow(stored.data, WHOLE), np.asarray(image))


def test_palettes_with_transparency_are_resolved_without_a_warning(images):
    palette = images.photo(40, 40).quantize(16)
    stored = images.encode(palette, "PNG", transparency=bytes(range(16)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = decode_with_pillow(stored.data, WHOLE)
    assert caught == []
    np.testing.assert_array_equal(pixels, np.asarray(palette.convert("RGB")))


def test_a_damaged_exif_block_is_read_without_a_warning(images):
    exif = Image.Exif()
    exif[0x0131] = "a maker of software with a long name"
    block = exif.tobytes()
    stored = images.jpeg(40, 40, exif=block[: len(block) - 20])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_with_pillow(stored.data, WHOLE)
    assert caught == []


def test_cmyk_is_converted_as_pillow_does(images):
    stored = images.encode(images.photo(40, 40).convert("CMYK"))
    expected = np.asarray(Image.open(io.BytesIO(stored.data)).convert("RGB"))
    np.testing.assert_array_equal(decode_with_pillow(stored.data, WHOLE), expected)


def test_sixteen_bits_are_scaled_and_not_saturated(images):
    values = np.linspace(0, 65535, 1600).round().astype(np.uint16).reshape(40, 40)
    stored = images.encode(Image.fromarray(values), "PNG")
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode_with_pillow(stored.data, WHOLE)[..., 0], expected)


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(side):
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body)


@pytest.mark.parametrize(
    "data",
    [b"", b"<html></html>", bytes(500), bomb(30_000), b"GIF89a" + bytes(50)],
    ids=["empty", "html", "zeros", "bomb", "gif"],
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ValueError, match=r"."):
        decode_with_pillow(data, WHOLE)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_are_refused(images, file_format):
    data = images.encode(images.photo(64, 64), file_format).data
    with pytest.raises(ValueError, match=r"."):
        decode_with_pillow(data[: len(data) // 2], WHOLE)


def test_an_image_of_another_size_than_the_index_says_is_refused_before_decoding():
    with pytest.raises(
        ValueError, match=r"it has \(9000, 9000\) pixels, the index says \(40, 40\)"
    ):
        decode_with_pillow(bomb(9000), WHOLE, (40, 40))
