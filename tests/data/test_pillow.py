"""The reference: every kind of image, extreme proportions, odd samplings, damage, memory."""

import subprocess
import sys
import warnings
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coreset.bench.robustness import crafted
from coreset.bench.robustness.faults import png_bomb
from coreset.engine.data.decoders import TOLERANCES, DecoderName, EncodedBatch, make_decoder
from coreset.engine.data.decoders.pillow import decode_with_pillow, enlarged_box
from coreset.engine.data.geometry import Geometry

WHOLE = Geometry(40, 40)
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
# Peak memory that one decode adds to what an ordinary one took.
GROWTH = """
import resource, sys
from pathlib import Path
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.decoders.pillow import decode_with_pillow

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

ordinary, *extreme = (Path(name).read_bytes() for name in sys.argv[1:])
geometries = Geometry(224, 256), Geometry(224, 224, bicubic=True)
for geometry in geometries:
    decode_with_pillow(ordinary, geometry)
before = peak()
for geometry in geometries:
    for data in extreme:
        decode_with_pillow(data, geometry)
print(peak() - before)
"""


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def stored_kinds(images):
    """Files by kind, and the pixels that they must have."""
    image, exif = images.photo(40, 40), Image.Exif()
    exif[0x0112] = 6
    exif[0x0131] = "a maker of software with a long name"
    grey, palette, transparent = image.convert("L"), image.quantize(16), image.copy()
    transparent.putalpha(7)
    values = np.linspace(0, 65535, 1600).round().astype(np.uint16).reshape(40, 40)
    cmyk = images.encode(image.convert("CMYK"))
    upright = Image.open(BytesIO(images.encode(image).data))
    png = {"transparency": bytes(range(16))}
    return {
        "rotated by EXIF": (images.encode(image, exif=exif), upright),
        "damaged EXIF": (images.encode(image, exif=exif.tobytes()[:-20]), upright),
        "PNG": (images.encode(image, "PNG"), image),
        "WebP": (images.encode(image, "WEBP", lossless=True), image),
        "grey is repeated": (images.encode(grey, "PNG"), grey.convert("RGB")),
        "alpha is dropped, not blended": (images.encode(transparent, "PNG"), image),
        "palette": (images.encode(palette, "PNG", **png), palette.convert("RGB")),
        "CMYK": (cmyk, Image.open(BytesIO(cmyk.data)).convert("RGB")),
        "16 bits are scaled, not saturated": (
            images.encode(Image.fromarray(values), "PNG"),
            Image.fromarray(np.round(values / 65535 * 255).astype(np.uint8)).convert("RGB"),
        ),
    }


def test_every_kind_of_image_is_decoded_without_a_warning(images):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind, (stored, expected) in stored_kinds(images).items():
            pixels = decode_with_pillow(stored.data, WHOLE)
            np.testing.assert_array_equal(pixels, np.asarray(expected), kind)
    assert caught == []


def test_what_is_no_image_or_cut_or_of_another_size_is_refused(images):
    whole = [images.encode(images.photo(64, 64), kind).data for kind in ("JPEG", "PNG", "WEBP")]
    cut = [data[: len(data) // 2] for data in whole]
    for data in (b"", b"<html></html>", bytes(500), png_bomb(30_000), b"GIF89a" + bytes(50), *cut):
        with pytest.raises(ValueError, match=r"."):
            decode_with_pillow(data, WHOLE)
    message = r"it has \(9000, 9000\) pixels, the index says \(40, 40\)"
    with pytest.raises(ValueError, match=message):
        decode_with_pillow(png_bomb(9000), WHOLE, (40, 40))


@given(st.data())
def test_a_box_of_an_enlarged_image_is_that_of_pillow(data):
    width, height = (data.draw(st.integers(1, 40)) for _ in range(2))
    to_width = data.draw(st.integers(width, 300))
    to_height = data.draw(st.integers(height, 300))
    left, top = data.draw(st.integers(0, to_width - 1)), data.draw(st.integers(0, to_height - 1))
    box = (left, top, data.draw(st.integers(left + 1, to_width)),
           data.draw(st.integers(top + 1, to_height)))  # fmt: skip
    image = noise(width, height, data.draw(st.integers(0, 9)))
    bicubic = data.draw(st.booleans())
    whole = image.resize((to_width, to_height), FILTERS[bicubic])
    found = enlarged_box(np.asarray(image), to_width, to_height, box, bicubic=bicubic)
    np.testing.assert_array_equal(found, np.asarray(whole.crop(box)))


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (3, 700), (40, 900), (900, 70)])
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("JPEG", "CMYK")])
@pytest.mark.parametrize("geometry", [Geometry(56, 64), Geometry(64, 64, bicubic=True)], ids=str)
def test_a_crop_of_an_image_in_extreme_proportions_has_the_pixels_of_the_whole(
    images, size, kind, mode, geometry
):
    stored = images.encode(noise(*size).convert(mode), kind)
    _, width, height, box = geometry.place(*size)
    with Image.open(BytesIO(stored.data)) as image:
        whole = image.convert("RGB").resize((width, height), FILTERS[geometry.bicubic])
    np.testing.assert_array_equal(decode_with_pillow(stored.data, geometry), whole.crop(box))


def test_memory_follows_the_image_and_not_what_it_would_be_resized_to(images, tmp_path):
    files = []
    for image, kind in (
        (noise(300, 300), "PNG"),
        (noise(1, 6000), "PNG"),
        (noise(6000, 1), "WEBP"),
        (noise(2, 6000).convert("CMYK"), "JPEG"),
    ):
        files.append(tmp_path / str(len(files)))
        files[-1].write_bytes(images.encode(image, kind).data)
    told = subprocess.run(
        [sys.executable, "-c", GROWTH, *files], check=True, capture_output=True, text=True
    )
    assert int(told.stdout) < 50_000, "KiB; the whole would take 1.6 GB"


# Resized; cut out as it is, whole and in part, by the kernels; a crop of its own.
WAYS = [
    (Geometry(32, 40), None),
    (Geometry(50, 50), None),
    (Geometry(40, 50), None),
    (Geometry(32), (5, 9, 60, 41)),
]


@pytest.mark.parametrize("name", ["turbo", "fast", "dali", "pillow"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_odd_samplings_have_the_pixels_of_pillow_in_every_decoder(images, name, way):
    geometry, crop = way
    data = [crafted.sampled_jpeg(70, 50, factors) for factors in crafted.odd_samplings()]
    stored = [images.Stored(one, 70, 50) for one in data]
    crops = None if crop is None else np.array([crop] * len(stored))
    decoder = make_decoder(name, geometry, device="cpu", workers=2)
    found = decoder.decode(images.batch(stored, crops)).permute(0, 2, 3, 1).numpy()
    decoder.close()
    expected = np.stack([decode_with_pillow(one, geometry, crop=crop) for one in data])
    if name == "fast":  # what needs no resizing, by coarser arithmetic
        tolerance = TOLERANCES[DecoderName.FAST]
        assert not tolerance.exceeded_by(tolerance.difference(found, expected))
    else:
        np.testing.assert_array_equal(found, expected)


def test_a_lossless_jpeg_is_decoded_in_full_by_the_fast_decoder():
    """simplejpeg would write all pixels of it into memory for an eighth of them."""
    data = crafted.lossless_jpeg(640, 480)
    batch = EncodedBatch([data], np.array([640]), np.array([480]))
    decoder = make_decoder("fast", Geometry(32, 40), device="cpu", workers=1)
    assert (decoder.decode(batch) == 128).all()
    decoder.close()
