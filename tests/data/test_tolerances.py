"""Each decoder keeps its tolerance to torchvision on Pillow images, and the tolerances mean it."""

import numpy as np
import pytest
from PIL import Image

from coreset.bench.pixels import Images, decoded, reference
from coreset.engine.data.decoders.base import DecoderName
from coreset.engine.data.decoders.tolerances import TOLERANCES, Tolerance
from coreset.engine.data.geometry import Crops, Geometry

DECODERS = list(TOLERANCES)
SIZES = [(500, 375), (333, 500), (256, 256), (180, 420), (90, 70)]
GEOMETRIES = [Geometry(64, 73), Geometry(100, 100), Geometry(64), Geometry(224)]


def collected(stored):
    sizes = np.array([(one.width, one.height) for one in stored], dtype=np.int64)
    return Images(
        name="tests",
        data=[one.data for one in stored],
        widths=sizes[:, 0],
        heights=sizes[:, 1],
    )


def photographs(images):
    """Pictures of several shapes, in colour and grey, one progressive, one turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    options = [{}, {"subsampling": 0}, {"progressive": True}, {"exif": exif}, {"quality": 60}]
    plain = [
        images.jpeg(*size, seed=i, **some)
        for i, (size, some) in enumerate(zip(SIZES, options, strict=True))
    ]
    return collected([*plain, images.encode(images.photo(300, 200).convert("L"))])


def random_boxes(photos):
    ids = np.arange(len(photos), dtype=np.int64)
    return Crops().boxes(ids, photos.widths, photos.heights, seed=3, epoch=1)


def complaints(name, geometry, photos, boxes=None, judge=None):
    tolerance = TOLERANCES[judge or name]
    found = decoded(name, geometry, photos, boxes)
    return tolerance.exceeded_by(tolerance.difference(found, reference(photos, geometry, boxes)))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_decoder_keeps_its_tolerance(images, name, geometry):
    assert not complaints(name, geometry, photographs(images))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("size", [64, 224])
def test_every_decoder_keeps_its_tolerance_in_random_crops(images, name, size):
    photos = photographs(images)
    assert not complaints(name, Geometry(size), photos, random_boxes(photos))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("geometry", [Geometry(224, 256), Geometry(64, 64)], ids=str)
def test_every_decoder_keeps_its_tolerance_on_real_images(real_images, name, geometry):
    assert not complaints(name, geometry, collected(real_images[:20]))


@pytest.mark.parametrize("name", [DecoderName.TURBO, DecoderName.DALI, DecoderName.PILLOW])
def test_what_is_not_resized_equals_the_reference(images, name):
    photos = collected([images.jpeg(224, 224, seed=i) for i in range(2)])
    np.testing.assert_array_equal(
        decoded(name, Geometry(224), photos), reference(photos, Geometry(224))
    )


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", ["png", "webp", "cmyk", "palette"])
def test_what_only_pillow_reads_equals_the_reference_in_every_decoder(images, name, kind):
    photo = images.photo(150, 110)
    photos = {
        "png": lambda: images.encode(photo, "PNG"),
        "webp": lambda: images.encode(photo, "WEBP"),
        "cmyk": lambda: images.encode(photo.convert("CMYK")),
        "palette": lambda: images.encode(photo.quantize(40), "PNG"),
    }
    one = collected([photos[kind]()])
    np.testing.assert_array_equal(
        decoded(name, Geometry(64, 73), one), reference(one, Geometry(64, 73))
    )


@pytest.mark.parametrize(
    ("name", "judge"),
    [
        (DecoderName.TURBO, DecoderName.PILLOW),
        (DecoderName.DALI, DecoderName.PILLOW),
        (DecoderName.DALI, DecoderName.TURBO),
        (DecoderName.FAST, DecoderName.TURBO),
        (DecoderName.FAST, DecoderName.DALI),
    ],
)
def test_a_coarser_decoder_does_not_pass_for_a_finer_one(images, name, judge):
    assert complaints(name, Geometry(64, 64), photographs(images), judge=judge)


@pytest.mark.parametrize("wrong", [np.s_[..., ::-1], np.s_[:, ::-1], np.s_[::-1]])
def test_the_coarsest_tolerance_still_refuses_another_image(images, wrong):
    photos, tolerance = photographs(images), TOLERANCES[DecoderName.FAST]
    expected = reference(photos, Geometry(64))
    assert tolerance.exceeded_by(tolerance.difference(expected[wrong], expected))


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


def test_only_the_reference_itself_is_promised_to_be_exact():
    exact = [name for name, one in TOLERANCES.items() if one.largest == one.mean == 0]
    assert exact == [DecoderName.PILLOW]
    assert {*TOLERANCES} == {*DecoderName} - {DecoderName.AUTO}
