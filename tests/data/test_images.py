from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coreset.engine.data.geometry import Crops, Geometry, Placement
from coreset.engine.data.images import DecodedImages, load_into_memory
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.shards.errors import MachineError, ManifestError, UsageError

GEOMETRY = Geometry(16, 20)


@pytest.fixture(scope="module")
def streamed(numbered):
    with ImageStream(numbered, GEOMETRY, ids=np.arange(22, 2, -1)) as source:
        yield source


@pytest.fixture(scope="module")
def pixels(streamed):
    return load_into_memory(streamed)


@settings(max_examples=20)
@given(
    place=st.builds(
        dict,
        batch=st.integers(1, 25),
        epoch=st.integers(0, 3),
        seed=st.integers(0, 3),
        start=st.integers(0, 3),
        shuffle=st.booleans(),
        pad=st.booleans(),
        block=st.integers(0, 3),
    ),
    world=st.integers(1, 3),
)
def test_resident_batches_equal_streamed_batches(streamed, pixels, same_batches, place, world):
    for rank in range(world):
        order = BatchOrder(**place, rank=rank, world=world)
        same_batches(streamed.epoch(order), pixels.epoch(order))


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("pad", [False, True])
def test_samples_that_cannot_be_decoded_are_left_out_or_stop_as_in_the_source(
    packed, images, same_batches, batch, pad
):
    stored = [images.jpeg(40, 30, seed=i) for i in range(9)]
    dataset = packed([*stored[:4], images.cut(40, 30, 200), *stored[5:]])
    ids = np.array([8, 4, 2, 4, 0])
    with ImageStream(dataset, GEOMETRY, skip_damaged=True, ids=ids) as source:
        pixels = load_into_memory(source)
        for epoch in range(2):
            place: dict[str, Any] = {"batch": batch, "epoch": epoch, "shuffle": True, "pad": pad}
            same_batches(source.epoch(BatchOrder(**place)), pixels.epoch(BatchOrder(**place)))
    assert list(pixels.undecodable) == [4]
    assert not pixels.images[[1, 3]].any()
    with (
        ImageStream(dataset, GEOMETRY) as source,
        pytest.raises(ManifestError, match="class1/image4"),
    ):
        load_into_memory(source)


@pytest.fixture(scope="module")
def noise():
    """12 noisy images of 20 pixels, their labels and ids."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (12, 20, 20, 3), dtype=np.uint8))
    return images.permute(0, 3, 1, 2), np.arange(12) % 3, np.arange(12) * 5


def test_random_crops_of_decoded_images_are_refused(noise):
    with pytest.raises(UsageError, match=r"crop the batches with .*kernels\.augment"):
        DecodedImages(*noise).epoch(BatchOrder(batch=4, crops=Crops()))


def test_batches_are_copies_that_are_not_overwritten_while_they_are_held(noise):
    images = noise[0].clone()
    pixels = DecodedImages(images, *noise[1:])
    held = list(pixels.epoch(BatchOrder(batch=2)))
    for part in held:
        part.images.zero_()
    for _ in range(3):
        list(pixels.epoch(BatchOrder(batch=2)))
    assert not any(part.images.any() for part in held)
    assert torch.equal(images, noise[0])


def test_pixels_that_do_not_fit_are_refused_before_decoding(streamed, monkeypatch):
    n_bytes = 20 * 3 * 16 * 16
    monkeypatch.setattr("coreset.engine.data.residency.available_bytes", lambda: 2 * n_bytes - 1)
    with pytest.raises(
        MachineError, match=r"20 images of 16 pixels need .* GB, .*choose a smaller"
    ):
        load_into_memory(streamed)


# Which square of an image is taken.

lengths = st.integers(1, 700)


@given(lengths, lengths, st.integers(1, 64), st.integers(0, 20))
def test_resized_size_is_the_one_of_torchvision(width, height, size, extra):
    from torchvision.transforms import v2

    width, height = min(width, 30 * height), min(height, 30 * width)
    place = Geometry(size, size + extra).place(width, height)
    expected = v2.Resize(size + extra)(Image.new("L", (width, height))).size
    assert (place.width, place.height) == expected


@given(st.integers(1, 64), st.integers(0, 80), st.integers(0, 80))
def test_crop_is_the_one_of_torchvision(size, extra_width, extra_height):
    from torchvision.transforms import v2

    width, height = size + extra_width, size + extra_height
    image = Image.linear_gradient("L").resize((width, height))
    place = Geometry(size, min(width, height)).place(width, height)
    assert (place.width, place.height) == (width, height)
    assert image.crop(place.box).tobytes() == v2.CenterCrop(size)(image).tobytes()


def test_the_whole_image_or_a_crop_is_squashed_and_half_pixels_round_to_even():
    whole, crop = (0, 0, 500, 375), (3, 4, 50, 60)
    assert Geometry(64).place(500, 375) == Placement(whole, 64, 64, (0, 0, 64, 64))
    assert Geometry(24, 48).place(500, 375, crop) == Placement(crop, 24, 24, (0, 0, 24, 24))
    expected = Placement(whole, 341, 256, (58, 16, 282, 240))  # as in torchvision
    assert Geometry(224, 256).place(500, 375) == expected


@given(
    st.integers(1, 40),
    st.none() | st.integers(0, 9),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1),
)
def test_squares_are_the_placements_without_resampling(size, extra, sizes):
    geometry = Geometry(size, None if extra is None else size + extra)
    sizes += [(geometry.resize or size, 60), (60, geometry.resize or size), (size, size)]
    columns = np.array(sizes).T
    for stored, taken, *corner in zip(sizes, *geometry.needs_no_resize(*columns), strict=True):
        region, width, height, box = geometry.place(*stored)
        assert region == (0, 0, *stored)
        assert taken == ((width, height) == stored)
        if taken:
            assert box == (*corner, corner[0] + size, corner[1] + size)


@pytest.mark.parametrize(("size", "resize"), [(64, 63), (0, None)])
def test_a_crop_beyond_the_image_and_an_empty_output_are_refused(size, resize):
    with pytest.raises(UsageError, match="must be at least"):
        Geometry(size, resize)
