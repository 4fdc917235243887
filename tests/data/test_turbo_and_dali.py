"""Decoders alone: parts of a JPEG by turbo; regions, graphs and pipelines of DALI."""

import ctypes
import gc
import weakref

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coreset.engine.data.decoders import Normalisation, dali, tuning, turbo
from coreset.engine.data.decoders.dali import DaliDecoder, define_pipeline
from coreset.engine.data.decoders.turbo import decode_jpeg, decode_region, worth_cropping
from coreset.engine.data.geometry import Geometry
from coreset.shards.errors import MachineError

WIDTH, HEIGHT = 301, 227
KINDS = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "grey": {},
    "RGB": {"keep_rgb": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "coarse": {"quality": 20},
}


@pytest.fixture(scope="module")
def stored(images):
    """A photograph of every kind that plain JPEGs come in."""
    photo = images.photo(WIDTH, HEIGHT, 3)
    made = {
        f"4:{sampling[1:]}": simplejpeg.encode_jpeg(np.asarray(photo), colorsubsampling=sampling)
        for sampling in ("440", "411")
    }
    modes = {name: "L" if name == "grey" else "RGB" for name in KINDS}
    return made | {
        name: images.encode(photo.convert(modes[name]), **kind).data for name, kind in KINDS.items()
    }


def span(rng: np.random.Generator, length: int) -> tuple[int, int]:
    """Beginning and end of some of ``length`` pixels, often of one."""
    n = 1 if rng.random() < 0.2 else int(rng.integers(1, length + 1))
    begin = int(rng.integers(0, length - n + 1))
    return begin, begin + n


def part_of(data: bytes, part, *, coarse: bool = False) -> np.ndarray:
    decoded = decode_region(data, part, coarse=coarse)
    assert decoded is not None
    pixels, first = decoded
    return pixels[:, part[0] - first : part[2] - first]


@pytest.mark.parametrize("coarse", [False, True], ids=["exact", "coarse"])
@pytest.mark.parametrize("kind", [*KINDS, "4:40", "4:11"])
def test_a_part_holds_the_pixels_of_the_whole_image(stored, kind, coarse):
    whole = simplejpeg.decode_jpeg(stored[kind], fastdct=coarse, fastupsample=coarse)
    rng = np.random.default_rng(0)
    for _ in range(300):
        (left, right), (top, bottom) = span(rng, WIDTH), span(rng, HEIGHT)
        np.testing.assert_array_equal(
            part_of(stored[kind], (left, top, right, bottom), coarse=coarse),
            whole[top:bottom, left:right],
        )


@pytest.mark.parametrize(
    ("geometry", "crop"),
    [
        (Geometry(64, 72), None),
        (Geometry(227, 227), None),  # not resized
        (Geometry(64), (20, 30, 120, 110)),
        (Geometry(100), (10, 20, 110, 120)),  # not resized
        (Geometry(5), (3, 3, 203, 223)),
    ],
    ids=str,
)
def test_batches_hold_the_same_with_and_without_the_decoder_of_parts(
    stored, monkeypatch, geometry, crop
):
    data, size = stored["4:2:0"], (WIDTH, HEIGHT)
    placement = geometry.place(*size, crop)
    outputs = np.zeros((2, geometry.size, geometry.size, 3), np.uint8)
    monkeypatch.setattr(turbo, "_MOST_TAKEN", 1)
    parts = []
    monkeypatch.setattr(
        turbo,
        "decode_region",
        lambda *those, **how: parts.append(decode_region(*those, **how)) or parts[0],
    )
    assert decode_jpeg(data, size, placement, outputs[0])
    monkeypatch.setattr(turbo, "_version", lambda: None)
    assert decode_jpeg(data, size, placement, outputs[1])
    assert [part is not None for part in parts] == [True]
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_what_ends_early_is_noticed_unless_it_ends_below_the_part(stored, capfd):
    data = stored["4:2:0"]
    cut, into = data[: len(data) // 2], np.zeros((64, 64, 3), np.uint8)
    assert decode_region(cut, (0, 0, 50, HEIGHT)) is None
    assert decode_region(b"<html>", (0, 0, 50, 20)) is None
    for beside in ((0, 0, 10, HEIGHT + 1), (WIDTH + 50, 0, WIDTH + 60, 5)):
        assert decode_region(data, beside) is None
    expected = simplejpeg.decode_jpeg(data)[:20, :50]
    np.testing.assert_array_equal(part_of(cut, (0, 0, 50, 20)), expected)
    assert capfd.readouterr() == ("", "")
    assert not decode_jpeg(cut, (WIDTH, HEIGHT), Geometry(64, 72).place(WIDTH, HEIGHT), into)


PART = (500, 375), (86, 23, 414, 352)  # 0.58 of it


def test_a_part_is_decoded_alone_where_that_saves_time():
    assert worth_cropping(*PART)
    assert worth_cropping((256, 256), (16, 16, 240, 240))
    assert not worth_cropping((500, 375), (0, 0, 450, 340))
    assert not worth_cropping((120, 120), (50, 50, 80, 80))


def other_pixels(decoder, data, part, into):
    found = DECODE(decoder, data, part, into)
    into[:] ^= 1
    return found


DECODE = turbo.RegionDecoder.decode
WAYS = {
    "without libjpeg": lambda patch: patch.setattr(turbo, "_library", lambda: ctypes.CDLL(None)),
    "not there": lambda patch: patch.setattr(turbo, "_library", lambda: ctypes.CDLL("none.so")),
    "switched off": lambda patch: patch.setenv("CORESET_OWN_JPEG", "0"),
    "another layout": lambda patch: patch.setattr(
        turbo, "VERSIONS", (80,) if turbo._version() == 62 else (62,)
    ),
    "other pixels": lambda patch: patch.setattr(turbo.RegionDecoder, "decode", other_pixels),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_library_that_cannot_be_called_or_decodes_otherwise_is_not_used(monkeypatch, way):
    WAYS[way](monkeypatch)
    turbo._version.cache_clear()
    try:
        assert not worth_cropping(*PART)
        assert decode_region(b"", (0, 0, 16, 16)) is None
    finally:
        monkeypatch.undo()
        turbo._version.cache_clear()


# DALI.


NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def decoder():
    made = DaliDecoder(Geometry(64, 72), device="cpu", workers=2)
    yield made
    made.close()


def test_pixels_around_a_crop_never_enter(images, decoder):
    # Blocks of 8 x 8 pixels without chroma subsampling do not depend on one another.
    photo, crop = images.photo(160, 128), (32, 16, 96, 112)
    alone = Image.new("RGB", photo.size, "red")
    alone.paste(photo.crop(crop), crop)
    stored = [images.encode(one, subsampling=0, quality=95) for one in (photo, alone)]
    cut, around = decoder.decode(images.batch(stored, np.array([crop, crop])))
    assert torch.equal(cut, around)


def test_a_gpu_without_memory_is_no_fault_of_the_images(images, decoder, monkeypatch):
    class Exhausted:
        def build(self):
            pass

        def run(self, *_, **__):
            raise RuntimeError("CUDA runtime API error cudaErrorMemoryAllocation (2)")

    monkeypatch.setattr(dali, "define_pipeline", lambda *_, **__: Exhausted())
    with pytest.raises(RuntimeError, match="cudaErrorMemoryAllocation"):
        decoder.decode(images.batch([images.jpeg(50, 40, seed=i) for i in range(3)]))


def test_a_driver_that_is_too_old_for_dali_is_one_line_with_a_remedy(images, decoder, monkeypatch):
    class Old:
        def build(self):
            raise RuntimeError("CUDA driver version is insufficient\nfor CUDA runtime version")

    monkeypatch.setattr(dali, "define_pipeline", lambda *_, **__: Old())
    with pytest.raises(MachineError, match=r"DALI cannot start on cpu \(CUDA driver"):
        decoder.decode(images.batch([images.jpeg(50, 40)]))


def test_batches_with_and_without_crops_may_alternate_until_pipelines_are_deleted(images, decoder):
    stored = [images.jpeg(80 + i, 70, seed=i) for i in range(5)]
    batches = [images.batch(stored), images.batch(stored, np.array([[5, 6, 70, 60]] * 5))]
    first = [decoder.decode(batch) for batch in batches]
    built = dict(decoder._pipelines)
    again = [decoder.decode(batch) for batch in batches]
    assert decoder._pipelines == built
    assert all(map(torch.equal, first, again))
    assert not torch.equal(*first)
    pipelines = [weakref.ref(pipeline) for pipeline in built.values()]
    built.clear()
    decoder.close()
    gc.collect()
    assert [pipeline() for pipeline in pipelines] == [None, None]


sides = st.integers(1, 3000)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=9), st.integers(1, 400), st.data())
def test_regions_of_a_batch_are_the_placements_of_its_images(stored_sizes, size, data):
    resize = data.draw(st.none() | st.integers(size, 2 * size))
    geometry = Geometry(size, resize)
    widths, heights = np.array(stored_sizes).T
    for region, (width, height) in zip(
        geometry.regions(widths, heights), stored_sizes, strict=True
    ):
        _, target_width, target_height, (left, top, right, bottom) = geometry.place(width, height)
        ends = [[top * height / target_height, left * width / target_width]]
        ends += [[bottom * height / target_height, right * width / target_width]]
        assert region.tolist() == ends
    crops = np.array([(w // 3, h // 2, w, h) for w, h in stored_sizes])
    assert geometry.regions(widths, heights, crops).tolist() == [
        [[top, left], [bottom, right]] for left, top, right, bottom in crops
    ]


def serialised(decode_device, **settings):
    pipeline = define_pipeline(224, decode_device, batch=8, workers=2, device_id=None, **settings)
    return pipeline.serialize()


@pytest.mark.parametrize("normalisation", [None, NORMALISATION])
@pytest.mark.parametrize(("crops", "operator"), [(False, b"Image"), (True, b"ImageSlice")])
def test_the_graphs_of_a_gpu_are_defined_without_one(monkeypatch, crops, operator, normalisation):
    graph = serialised("mixed", crops=crops, normalisation=normalisation)
    for part in (
        b"mixed",
        b"hw_decoder_load",
        b"jpeg_fancy_upsampling",
        b"preallocate_width_hint",
        b"decoders__" + operator,
    ):
        assert part in graph
    assert (b"ImageSlice" in graph) is crops
    assert (b"CropMirrorNormalize" in graph) is (normalisation is not None)
    on_cpu = serialised("cpu", crops=crops, normalisation=normalisation)
    assert b"hw_decoder_load" not in on_cpu
    assert b"preallocate" not in on_cpu
    monkeypatch.setitem(dali.GPU_SETTINGS, "preallocate_widht_hint", 1024)
    with pytest.raises((KeyError, TypeError), match="preallocate_widht_hint"):
        serialised("mixed", crops=crops)


def test_the_share_of_the_jpeg_engines_is_the_one_that_was_kept_for_the_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("CORESET_CACHE", str(tmp_path / "cache"))
    assert tuning.best_load("H200") == tuning.DEFAULT_LOAD
    tuning.keep_best_load("A100", 0.5)
    file = tuning.keep_best_load("H200", 0.8)
    assert (tuning.best_load("H200"), tuning.best_load("A100")) == (0.8, 0.5)
    for damaged in ("", "[]", '{"H200": 7.0}', '{"H200": "all"}'):
        file.write_text(damaged)
        assert tuning.best_load("H200") == tuning.DEFAULT_LOAD
