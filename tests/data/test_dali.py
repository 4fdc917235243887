"""DALI alone: two graphs, regions of crops, settings of a GPU, pipelines that end."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coreset.engine.data.decoders import Normalisation, dali
from coreset.engine.data.decoders.dali import DaliDecoder, define_pipeline, regions_of
from coreset.engine.data.geometry import Geometry

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

        def run(self, **_):
            raise RuntimeError("CUDA runtime API error cudaErrorMemoryAllocation (2)")

    monkeypatch.setattr(dali, "define_pipeline", lambda *_, **__: Exhausted())
    with pytest.raises(RuntimeError, match="cudaErrorMemoryAllocation"):
        decoder.decode(images.batch([images.jpeg(50, 40, seed=i) for i in range(3)]))


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


@given(sides, sides, st.data())
def test_a_crop_is_its_own_region_and_a_squash_takes_everything(width, height, data):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    geometry = Geometry(data.draw(st.integers(1, 400)))
    cut = geometry.place(width, height, (left, top, right, bottom))
    assert regions_of([cut, geometry.place(width, height)]).tolist() == [
        [[top, left], [bottom, right]],
        [[0, 0], [height, width]],
    ]


def serialised(decode_device, **settings):
    pipeline = define_pipeline(224, decode_device, batch=8, workers=2, device_id=None, **settings)
    return pipeline.serialize()


@pytest.mark.parametrize("normalisation", [None, NORMALISATION])
@pytest.mark.parametrize(("crops", "operator"), [(False, b"Image"), (True, b"ImageSlice")])
def test_the_graphs_of_a_gpu_are_defined_without_one(monkeypatch, crops, operator, normalisation):
    graph = serialised("mixed", crops=crops, normalisation=normalisation)
    for part in (b"mixed", b"hw_decoder_load", b"preallocate_width_hint", b"decoders__" + operator):
        assert part in graph
    assert (b"ImageSlice" in graph) is crops
    assert (b"CropMirrorNormalize" in graph) is (normalisation is not None)
    on_cpu = serialised("cpu", crops=crops, normalisation=normalisation)
    assert b"hw_decoder_load" not in on_cpu
    assert b"preallocate" not in on_cpu
    monkeypatch.setitem(dali.GPU_SETTINGS, "preallocate_widht_hint", 1024)
    with pytest.raises((KeyError, TypeError), match="preallocate_widht_hint"):
        serialised("mixed", crops=crops)
