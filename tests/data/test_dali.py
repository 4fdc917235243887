"""What DALI alone does: two graphs, crops while decoding, planes, and settings of a GPU."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coreset.engine.data.decoders import dali
from coreset.engine.data.decoders.base import EncodedBatch, Normalisation, UndecodableImagesError
from coreset.engine.data.decoders.dali import DaliDecoder, define_pipeline, regions_of
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.kernels.augment import normalised
from coreset.kernels.crops import crop_boxes

LARGEST, MEAN, EDGE = 1, 0.25, 1
NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SQUARE = Geometry(64, 72)


def batch_of(stored, crops=None):
    sizes = np.array([(one.width, one.height) for one in stored], dtype=np.int64).reshape(-1, 2)
    return EncodedBatch([one.data for one in stored], sizes[:, 0], sizes[:, 1], crops)


def crops_of(stored, *, seed=0, scale=(0.08, 1.0)):
    widths, heights = np.array([(one.width, one.height) for one in stored], dtype=np.int64).T
    return crop_boxes(np.arange(len(stored)), widths, heights, seed, scale, (3 / 4, 4 / 3))


@pytest.fixture
def decoder_of():
    """``DaliDecoder`` on the CPU, closed when the test ends."""
    opened = []

    def make(geometry=SQUARE, **settings):
        opened.append(DaliDecoder(geometry, device="cpu", workers=2, **settings))
        return opened[-1]

    yield make
    for decoder in opened:
        decoder.close()


def pixels_of(images_bchw):
    return images_bchw.permute(0, 2, 3, 1).numpy()


def by_pillow(stored, geometry, crops):
    boxes = [None] * len(stored) if crops is None else [tuple(box) for box in crops.tolist()]
    return np.stack(
        [
            decode_with_pillow(one.data, geometry, None, box)
            for one, box in zip(stored, boxes, strict=True)
        ]
    )


def assert_close(pixels, expected):
    difference = np.abs(pixels.astype(int) - expected)
    inside = difference[:, EDGE : difference.shape[1] - EDGE, EDGE : difference.shape[2] - EDGE]
    assert inside.max() <= LARGEST
    assert inside.mean() <= MEAN


@pytest.mark.parametrize("size", [20, 64, 150])
def test_a_crop_is_cut_first_and_resized_then(images, decoder_of, size):
    shapes = [(150, 110), (110, 151), (75, 300), (300, 75), (50, 40)]
    stored = [images.jpeg(*shape, seed=i) for i, shape in enumerate(shapes * 3)]
    geometry, crops = Geometry(size, size + 8), crops_of(stored)
    pixels = pixels_of(decoder_of(geometry).decode(batch_of(stored, crops)))
    assert_close(pixels, by_pillow(stored, geometry, crops))


@pytest.mark.parametrize("size", [64, 224])
def test_crops_of_real_images_are_close_to_pillow(real_images, decoder_of, size):
    crops = crops_of(real_images, seed=1)
    pixels = pixels_of(decoder_of(Geometry(size)).decode(batch_of(real_images, crops)))
    assert_close(pixels, by_pillow(real_images, Geometry(size), crops))


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"keep_rgb": True}],
)
def test_crops_without_resize_equal_those_of_pillow(images, decoder_of, options):
    stored = [images.jpeg(91, 70, seed=i, **options) for i in range(6)]
    corners = np.array([(0, 0), (43, 22), (16, 16), (7, 5), (1, 22), (43, 3)])
    crops = np.concatenate([corners, corners + 48], axis=1)
    pixels = pixels_of(decoder_of(Geometry(48)).decode(batch_of(stored, crops)))
    np.testing.assert_array_equal(pixels, by_pillow(stored, Geometry(48), crops))


def test_pixels_around_a_crop_never_enter(images, decoder_of):
    # Blocks of 8 x 8 pixels without chroma subsampling do not depend on one another.
    photo, crop = images.photo(160, 128), (32, 16, 96, 112)
    alone = Image.new("RGB", photo.size, "red")
    alone.paste(photo.crop(crop), crop)
    stored = [images.encode(one, subsampling=0, quality=95) for one in (photo, alone)]
    cut, around = decoder_of().decode(batch_of(stored, np.array([crop, crop])))
    assert torch.equal(cut, around)


def kinds(images):
    """Stored images of every kind, for the position of each in a batch."""
    photo, exif = images.photo(90, 64), Image.Exif()
    exif[0x0112] = 6
    return {
        "plain": images.encode(photo),
        "exif": images.encode(photo, exif=exif),
        "grey": images.encode(photo.convert("L")),
        "cmyk": images.encode(photo.convert("CMYK")),
        "png": images.encode(photo, "PNG"),
        "webp": images.encode(photo, "WEBP", lossless=True),
        "dot": images.jpeg(1, 1),
        "wide": images.jpeg(1500, 3),
        "tall": images.jpeg(2, 1500),
        "trailing": images.Stored(images.encode(photo).data + b"trailing bytes", 90, 64),
    }


@pytest.mark.parametrize("cropped", [False, True])
def test_every_kind_of_image_decodes_in_its_place(images, decoder_of, cropped):
    stored = list(kinds(images).values())
    crops = crops_of(stored, scale=(0.2, 0.9)) if cropped else None
    pixels = pixels_of(decoder_of().decode(batch_of(stored, crops)))
    assert_close(pixels, by_pillow(stored, SQUARE, crops))


@pytest.mark.parametrize("cropped", [False, True])
def test_normalised_batches_are_planes_of_the_same_pixels(images, decoder_of, cropped):
    stored = list(kinds(images).values())
    batch = batch_of(stored, crops_of(stored) if cropped else None)
    planes = decoder_of(normalisation=NORMALISATION).decode(batch)
    pixels = decoder_of().decode(batch)
    expected = normalised(pixels, NORMALISATION.mean, NORMALISATION.std)
    assert planes.dtype == torch.float32
    assert planes.is_contiguous()
    torch.testing.assert_close(planes, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalisation", [None, NORMALISATION])
def test_a_bad_image_costs_itself_alone_also_with_crops(images, decoder_of, normalisation):
    stored = [images.jpeg(64, 64, seed=i) for i in range(7)]
    stored[2] = images.Stored(stored[2].data[:700], 64, 64)
    stored[5] = images.Stored(b"<html>", 64, 64)
    stored[6] = images.encode(images.photo(64, 64), "PNG")
    crops, decoder = crops_of(stored), decoder_of(normalisation=normalisation)
    with pytest.raises(UndecodableImagesError) as raised:
        decoder.decode(batch_of(stored, crops))
    assert list(raised.value.reasons) == [2, 5]
    good = [0, 1, 3, 4, 6]
    after = decoder.decode(batch_of([stored[position] for position in good], crops[good]))
    assert torch.equal(raised.value.images[good], after)


def test_a_gpu_without_memory_is_no_fault_of_the_images(images, decoder_of, monkeypatch):
    class Exhausted:
        def build(self):
            pass

        def run(self, **_):
            raise RuntimeError("CUDA runtime API error cudaErrorMemoryAllocation (2)")

    decoder = decoder_of()
    monkeypatch.setattr(decoder, "_defined_pipeline", lambda **_: Exhausted())
    with pytest.raises(RuntimeError, match="cudaErrorMemoryAllocation"):
        decoder.decode(batch_of([images.jpeg(50, 40, seed=i) for i in range(3)]))


def test_batches_with_and_without_crops_may_alternate(images, decoder_of):
    stored = [images.jpeg(80 + i, 70, seed=i) for i in range(5)]
    crops, decoder = crops_of(stored), decoder_of()
    whole, cut = batch_of(stored), batch_of(stored, crops)
    first = [decoder.decode(batch) for batch in (whole, cut)]
    built = dict(decoder._pipelines)
    again = [decoder.decode(batch) for batch in (whole, cut)]
    assert decoder._pipelines == built
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(*first)


def test_a_closed_decoder_has_no_pipeline_left(images, decoder_of):
    stored, decoder = [images.jpeg(20, 20)], decoder_of()
    for crops in (None, crops_of(stored)):
        decoder.decode(batch_of(stored, crops))
    pipelines = [weakref.ref(pipeline) for pipeline in decoder._pipelines.values()]
    assert len(pipelines) == 2
    decoder.close()
    gc.collect()
    assert [pipeline() for pipeline in pipelines] == [None, None]


sides = st.integers(1, 3000)


@given(sides, sides, st.data())
def test_a_crop_is_its_own_region_and_a_squash_takes_everything(width, height, data):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    geometry = Geometry(data.draw(st.integers(1, 400)))
    cut = geometry.place(width, height, (left, top, right, bottom))
    squashed = geometry.place(width, height)
    assert regions_of([cut, squashed]).tolist() == [
        [[top, left], [bottom, right]],
        [[0, 0], [height, width]],
    ]


def test_a_central_crop_is_scaled_to_the_stored_image():
    # 500 x 375 becomes 341 x 256, of which columns 58 to 282 and rows 16 to 240 stay.
    (region,) = regions_of([Geometry(224, 256).place(500, 375)])
    expected = [[16 * 375 / 256, 58 * 500 / 341], [240 * 375 / 256, 282 * 500 / 341]]
    np.testing.assert_allclose(region, expected)


def serialised(decode_device, **settings):
    pipeline = define_pipeline(224, decode_device, batch=8, workers=2, device_id=None, **settings)
    return pipeline.serialize()


@pytest.mark.parametrize("normalisation", [None, NORMALISATION])
@pytest.mark.parametrize(("crops", "operator"), [(False, b"Image"), (True, b"ImageSlice")])
def test_the_graphs_of_a_gpu_are_defined_without_one(crops, operator, normalisation):
    graph = serialised("mixed", crops=crops, normalisation=normalisation, hw_decoder_load=0.9)
    for part in (b"mixed", b"hw_decoder_load", b"preallocate_width_hint", b"decoders__" + operator):
        assert part in graph
    assert (b"ImageSlice" in graph) is crops
    assert (b"CropMirrorNormalize" in graph) is (normalisation is not None)


def test_settings_of_a_gpu_stay_out_of_the_graph_of_a_cpu():
    graph = serialised("cpu")
    assert b"hw_decoder_load" not in graph
    assert b"preallocate" not in graph


@pytest.mark.parametrize("crops", [False, True])
def test_a_misspelt_setting_of_the_gpu_does_not_pass_the_definition(monkeypatch, crops):
    monkeypatch.setitem(dali.PREALLOCATION, "preallocate_widht_hint", 1024)
    with pytest.raises((KeyError, TypeError), match="preallocate_widht_hint"):
        serialised("mixed", crops=crops)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("cropped", [False, True])
def test_planes_from_a_gpu_are_near_those_of_the_cpu(images, decoder_of, cropped):
    stored = [images.jpeg(150, 110, seed=i) for i in range(4)]
    batch = batch_of(stored, crops_of(stored) if cropped else None)
    decoder = DaliDecoder(SQUARE, device="cuda", workers=2, normalisation=NORMALISATION)
    planes = decoder.decode(batch).cpu()
    decoder.close()
    difference = planes - decoder_of(normalisation=NORMALISATION).decode(batch)
    assert difference.abs().mean() < 2 / 255 / 0.225
