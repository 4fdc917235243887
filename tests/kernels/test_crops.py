import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.kernels.crops import crop_boxes

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWS = 4000
CHANCE = 2.23 * math.sqrt(2 / DRAWS)
"""Gap that two samples of ``DRAWS`` from one law exceed in one of 10,000 comparisons."""
sides = st.one_of(st.integers(1, 20), st.integers(1, 65_535))
sizes = st.lists(st.tuples(sides, sides), min_size=1, max_size=20)


def boxes_of(ids, width, height, *, seed=0, scale=SCALE):
    ids = np.asarray(ids, dtype=np.int64)
    widths, heights = np.full(len(ids), width), np.full(len(ids), height)
    return crop_boxes(ids, widths, heights, seed, scale, RATIO)


def by_torchvision(n, width, height, *, scale=SCALE):
    import torch
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty((3, height, width))
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        drawn = [RandomResizedCrop.get_params(image, [*scale], [*RATIO]) for _ in range(n)]
    tops, lefts, heights, widths = np.array(drawn).T
    return np.stack([lefts, tops, lefts + widths, tops + heights], axis=1)


def features_of(boxes):
    """Place, size, area and aspect ratio."""
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    return {
        "left": left, "top": top, "right": right, "bottom": bottom, "width": width,
        "height": height, "area": width * height, "aspect": width / height,
    }  # fmt: skip


def largest_gap(a, b):
    """The two-sample Kolmogorov-Smirnov statistic."""
    places = np.union1d(a, b)
    below_a = np.searchsorted(np.sort(a), places, "right") / len(a)
    below_b = np.searchsorted(np.sort(b), places, "right") / len(b)
    return np.abs(below_a - below_b).max()


@pytest.mark.parametrize("scale", [SCALE, (0.5, 1.0)])
@pytest.mark.parametrize(("width", "height"), [(224, 224), (500, 375), (90, 500), (7, 5)])
def test_boxes_are_distributed_as_in_torchvision(width, height, scale):
    ours = features_of(boxes_of(np.arange(DRAWS), width, height, seed=5, scale=scale))
    theirs = features_of(by_torchvision(DRAWS, width, height, scale=scale))
    gaps = {name: largest_gap(ours[name], theirs[name]) for name in ours}
    assert all(gap < CHANCE for gap in gaps.values()), gaps


@given(sizes, st.integers(-(2**70), 2**70), st.floats(0.01, 1), st.floats(0.1, 9))
def test_boxes_lie_inside_their_images_and_are_never_empty(images, seed, least, narrowest):
    widths, heights = np.array(images).T
    ratio = (narrowest, narrowest * 1.5)
    boxes = crop_boxes(np.arange(len(images)), widths, heights, seed, (least, 1.0), ratio)
    left, top, right, bottom = boxes.T
    assert boxes.shape == (len(images), 4)
    assert boxes.dtype == np.int64
    assert ((left >= 0) & (left < right) & (right <= widths)).all()
    assert ((top >= 0) & (top < bottom) & (bottom <= heights)).all()


@given(sizes, st.data())
def test_a_box_depends_on_its_own_image_alone(images, data):
    (widths, heights), ids = np.array(images).T, np.arange(len(images)) * 17
    whole = crop_boxes(ids, widths, heights, 1, SCALE, RATIO)
    some = np.array(data.draw(st.lists(st.integers(0, len(images) - 1), min_size=1)))
    again = crop_boxes(ids[some], widths[some], heights[some], 1, SCALE, RATIO)
    np.testing.assert_array_equal(again, whole[some])


def test_ids_and_seeds_decide_and_repeat():
    boxes = boxes_of([5, 6, 5, -1], 500, 375, seed=9)
    assert boxes[0].tolist() == boxes[2].tolist()
    assert len(np.unique(boxes, axis=0)) == 3
    assert (boxes_of([5, 6, 5, -1], 500, 375, seed=10) != boxes).any(axis=1).all()
    np.testing.assert_array_equal(boxes_of([5, 6, 5, -1], 500, 375, seed=9 + 2**64), boxes)


def test_neighbouring_ids_and_seeds_are_unrelated():
    lefts = [boxes_of(np.arange(4000), 10_000, 10_000, seed=seed)[:, 0] for seed in (0, 1)]
    first, second = lefts
    for a, b in [(first[:-1], first[1:]), (first, second), (first[1:], second[:-1])]:
        # Five standard deviations of the correlation of unrelated numbers.
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(4000)


@pytest.mark.parametrize(
    ("width", "height"), [(1000, 3), (3, 1000), (100, 10), (10, 100), (1, 65_535), (65_535, 1)]
)
def test_the_central_box_is_that_of_torchvision_where_no_try_fits(width, height):
    expected = by_torchvision(1, width, height, scale=(0.9, 1.0))
    boxes = boxes_of(np.arange(50), width, height, scale=(0.9, 1.0))
    np.testing.assert_array_equal(np.unique(boxes, axis=0), expected)


def test_boxes_of_a_seed_stay_what_they_are():
    boxes = boxes_of([0, 1, 10**6], 400, 400, seed=42)
    assert boxes.tolist() == [[110, 57, 393, 303], [23, 54, 346, 357], [29, 14, 352, 375]]
    assert boxes_of([], 5, 5).shape == (0, 4)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="at least 1 pixel, got 4 x 0 at position 1; leave"):
        crop_boxes(np.arange(2), np.array([3, 4]), np.array([3, 0]), 0, SCALE, RATIO)
