import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coreset.engine.data.geometry import Geometry, Placement
from coreset.shards.errors import UsageError

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
