"""Extreme proportions and odd samplings: the reference's pixels, and memory as the image needs."""

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coreset.bench.robustness import crafted
from coreset.engine.data.decoders.base import DecoderName, EncodedBatch
from coreset.engine.data.decoders.choose import make_decoder
from coreset.engine.data.decoders.enlarge import enlarged_box
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.decoders.tolerances import TOLERANCES
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.engine.report.classes import thumbnail_uri

# Peak memory that one decode adds to what an ordinary one took.
GROWTH = """
import resource, sys
from pathlib import Path
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.decoders.pillow import decode_with_pillow

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

ordinary, *extreme = (Path(name).read_bytes() for name in sys.argv[1:])
decode_with_pillow(ordinary, Geometry(224, 256))
before = peak()
for data in extreme:
    decode_with_pillow(data, Geometry(224, 256))
print(peak() - before)
"""


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@given(st.data())
def test_a_box_of_an_enlarged_image_is_that_of_pillow(data):
    width, height = (data.draw(st.integers(1, 40)) for _ in range(2))
    to_width = data.draw(st.integers(width, 300))
    to_height = data.draw(st.integers(height, 300))
    left, top = data.draw(st.integers(0, to_width - 1)), data.draw(st.integers(0, to_height - 1))
    box = (left, top, data.draw(st.integers(left + 1, to_width)),
           data.draw(st.integers(top + 1, to_height)))  # fmt: skip
    image = noise(width, height, data.draw(st.integers(0, 9)))
    whole = image.resize((to_width, to_height), Image.Resampling.BILINEAR)
    found = enlarged_box(np.asarray(image), to_width, to_height, box)
    np.testing.assert_array_equal(found, np.asarray(whole.crop(box)))


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (3, 700), (40, 900), (900, 70)])
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("JPEG", "CMYK")])
def test_a_crop_of_an_image_in_extreme_proportions_has_the_pixels_of_the_whole(
    images, size, kind, mode
):
    stored = images.encode(noise(*size).convert(mode), kind)
    geometry = Geometry(56, 64)
    _, width, height, box = geometry.place(*size)
    with Image.open(BytesIO(stored.data)) as image:
        whole = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_with_pillow(stored.data, geometry), whole.crop(box))


def test_memory_follows_the_image_and_not_what_it_would_be_resized_to(images, tmp_path):
    made = [
        images.encode(image, kind)
        for image, kind in (
            (noise(300, 300), "PNG"),
            (noise(1, 6000), "PNG"),
            (noise(6000, 1), "WEBP"),
            (noise(2, 6000).convert("CMYK"), "JPEG"),
        )
    ]
    files = [tmp_path / str(at) for at in range(len(made))]
    for file, stored in zip(files, made, strict=True):
        file.write_bytes(stored.data)
    told = subprocess.run(
        [sys.executable, "-c", GROWTH, *files], check=True, capture_output=True, text=True
    )
    assert int(told.stdout) < 50_000, "KiB; the whole would take 1.6 GB"


def test_a_thumbnail_of_an_image_in_extreme_proportions_is_made(images):
    assert thumbnail_uri(images.encode(noise(1, 6000), "PNG").data)


def sampled(images, factors, width=70, height=50):
    return images.Stored(crafted.sampled_jpeg(width, height, factors), width, height)


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
    stored = [sampled(images, factors) for factors in crafted.odd_samplings()]
    sizes = np.array([(one.width, one.height) for one in stored])
    crops = None if crop is None else np.array([crop] * len(stored))
    batch = EncodedBatch([one.data for one in stored], sizes[:, 0], sizes[:, 1], crops)
    decoder = make_decoder(name, geometry, device="cpu", workers=2)
    found = decoder.decode(batch).permute(0, 2, 3, 1).numpy()
    decoder.close()
    expected = np.stack([decode_with_pillow(one.data, geometry, crop=crop) for one in stored])
    if name == "fast":  # what needs no resizing, by coarser arithmetic
        tolerance = TOLERANCES[DecoderName.FAST]
        assert not tolerance.exceeded_by(tolerance.difference(found, expected))
    else:
        np.testing.assert_array_equal(found, expected)


def test_a_data_set_with_odd_samplings_is_read(images, packed):
    stored = [sampled(images, factors) for factors in crafted.odd_samplings()]
    with ImageStream(packed(stored), Geometry(32, 40)) as source:
        (batch,) = source.epoch(BatchOrder(batch=len(stored)))
    for row, one in zip(batch.images, stored, strict=True):
        expected = torch.from_numpy(decode_with_pillow(one.data, Geometry(32, 40)))
        assert torch.equal(row.permute(1, 2, 0), expected)


def test_a_lossless_jpeg_is_decoded_in_full_by_the_fast_decoder():
    """simplejpeg would write all pixels of it into memory for an eighth of them."""
    data = crafted.lossless_jpeg(640, 480)
    batch = EncodedBatch([data], np.array([640]), np.array([480]))
    decoder = make_decoder("fast", Geometry(32, 40), device="cpu", workers=1)
    assert (decoder.decode(batch) == 128).all()
    decoder.close()
