"""Resizing beside Pillow's, crops beside torchvision's."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp

from coreset.kernels.jpeg.batch import PLANE_ALIGNMENT, factors_of, normalised_planes
from coreset.kernels.jpeg.resize import reach, resize, warm_up
from coreset.kernels.seeds import crop_boxes

sides = st.one_of(st.integers(1, 12), st.integers(1, 150))
kinds = st.sampled_from(["noise", "black and white", "gradient", "constant"])


@pytest.fixture(scope="module", autouse=True)
def compiled():
    warm_up()


def picture(kind: str, height: int, width: int, seed: int = 0, channels: int = 3):
    rng = np.random.default_rng(seed)
    shape = (height, width, channels)
    match kind:
        case "noise":
            return rng.integers(0, 256, shape, dtype=np.uint8)
        case "black and white":
            return rng.choice(np.array([0, 255], np.uint8), shape)
        case "gradient":
            ramp = np.linspace(0, 255, height)[:, None] + np.linspace(0, 255, width)[None, :]
            return np.repeat((ramp / 2).astype(np.uint8)[:, :, None], channels, axis=2)
        case _:
            return np.full(shape, rng.integers(0, 256), np.uint8)


def by_pillow(image, width, height):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def largest_difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


@settings(max_examples=300)
@given(kinds, sides, sides, st.tuples(sides, sides), st.integers(0, 99))
def test_any_size_is_within_one_level_of_pillow(kind, height, width, target, seed):
    image = picture(kind, height, width, seed)
    assert largest_difference(resize(image, *target), by_pillow(image, *target)) <= 1


@settings(max_examples=100)
@given(kinds, sides, sides, st.tuples(sides, sides), st.integers(0, 99))
def test_fractions_of_levels_are_those_of_pillow_in_float32(kind, height, width, target, seed):
    image, (to_width, to_height) = picture(kind, height, width, seed), target
    found = np.empty((to_height, to_width, 3), np.uint16)
    assert resize(image, *target, out=found) is found
    channels = np.moveaxis(image, 2, 0).astype(np.float32)
    exact = np.stack([by_pillow(channel, *target) for channel in channels], axis=2)
    np.testing.assert_allclose(found / 256, exact, atol=0.06)
    assert largest_difference((found + 128) >> 8, resize(image, *target)) <= 1


@pytest.mark.parametrize("kind", ["noise", "black and white", "gradient"])
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((500, 375), (341, 256)),
        ((1200, 700), (123, 71)),
        ((3001, 2), (64, 1)),
        ((2, 5000), (3, 1)),
        ((1, 1), (40, 70)),
        ((2500, 1), (1, 1)),
        ((33, 33), (1, 1)),
        ((1, 900), (500, 7)),
    ],
    ids=str,
)
def test_photos_and_extreme_shapes_are_within_one_level_of_pillow(kind, size, target):
    image = picture(kind, size[1], size[0])
    assert largest_difference(resize(image, *target), by_pillow(image, *target)) <= 1


def test_the_mean_of_a_photo_is_that_of_pillow_and_its_own_size_changes_nothing():
    image = picture("noise", 375, 500)
    np.testing.assert_array_equal(resize(image, 500, 375), image)
    shift = resize(image, 341, 256).mean() - by_pillow(image, 341, 256).mean()
    assert abs(shift) < 0.02


@given(st.integers(0, 255), sides, sides, sides, sides)
def test_constants_stay_constant(value, height, width, to_width, to_height):
    resized = resize(np.full((height, width, 3), value, np.uint8), to_width, to_height)
    assert (resized == value).all()


@pytest.mark.parametrize(("side", "to_side"), [(47, 28), (90, 53), (130, 8), (500, 31)])
def test_every_pixel_alone_equals_that_of_the_full_result(side, to_side):
    """Windows of 3 and 4 taps, or about 32, alternate: one kernel must do the whole axis."""
    image = picture("noise", side, side)
    full = resize(image, to_side, to_side)
    for top, left in np.ndindex(to_side, to_side):
        alone = resize(image, to_side, to_side, box=(left, top, left + 1, top + 1))
        np.testing.assert_array_equal(alone[0, 0], full[top, left])


@given(sides, sides, sides, sides, st.data())
def test_a_box_of_a_region_equals_the_crop_of_its_copy_also_from_its_reach(
    height, width, to_width, to_height, data
):
    image = picture("noise", height, width)
    x_0, y_0, x_1, y_1 = region = drawn_box(data, width, height)
    box = drawn_box(data, to_width, to_height)
    full = resize(image[y_0:y_1, x_0:x_1], to_width, to_height)
    expected = full[box[1] : box[3], box[0] : box[2]]
    boxed = resize(image, to_width, to_height, region=region, box=box)
    np.testing.assert_array_equal(boxed, expected)
    left, top, right, bottom = reach(region, to_width, to_height, box)
    assert x_0 <= left < right <= x_1
    assert y_0 <= top < bottom <= y_1
    moved = (x_0 - left, y_0 - top, x_1 - left, y_1 - top)
    part = resize(image[top:bottom, left:right], to_width, to_height, region=moved, box=box)
    np.testing.assert_array_equal(part, expected)


def drawn_box(data, width, height):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = st.integers(left + 1, width), st.integers(top + 1, height)
    return left, top, data.draw(right), data.draw(bottom)


@pytest.mark.parametrize("target", [(341, 256), (600, 400), (20, 9), (3, 5)])
@pytest.mark.parametrize("channels", [2, 4])
def test_channels_do_not_mix(target, channels):
    image = picture("noise", 375, 500, channels=channels)
    alone = [resize(image[:, :, c : c + 1], *target) for c in range(channels)]
    np.testing.assert_array_equal(resize(image, *target), np.concatenate(alone, axis=2))


def test_views_and_read_only_images_are_read_and_one_image_of_a_batch_is_written():
    image = picture("noise", 90, 120)
    flipped = image[::-1, ::2]
    np.testing.assert_array_equal(resize(flipped, 40, 60), resize(flipped.copy(), 40, 60))
    frozen = image.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(resize(frozen, 40, 60), resize(image, 40, 60))
    assert image.flags.writeable
    batch = np.zeros((3, 33, 43, 3), np.uint8)
    resize(image, 64, 48, box=(5, 6, 48, 39), out=batch[1])
    np.testing.assert_array_equal(batch[1], resize(image, 64, 48)[6:39, 5:48])
    assert not batch[[0, 2]].any()


RGB = picture("noise", 20, 30)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (RGB.astype(np.float32), {}, r"uint8 of shape \(h, w, c\).*got float32"),
        (RGB[:, :, 0], {}, r"got uint8 of shape \(20, 30\)"),
        (RGB[:0], {}, r"without a zero, got uint8 of shape \(0, 30, 3\)"),
        (RGB, {"width": 0}, r"box must be .* in 0 x 8 pixels, got \(0, 0, 0, 8\)"),
        (RGB, {"box": (0, 0, 11, 8)}, r"box must be .* in 10 x 8 pixels, got \(0, 0, 11, 8\)"),
        (RGB, {"box": (-1, 0, 5, 8)}, "box must be"),
        (RGB, {"box": (4, 3, 4, 8)}, "box must be"),
        (RGB, {"region": (0, 0, 3, RGB.shape[0] + 1)}, "region must be"),
        (RGB, {"region": (-9, 0, 21, 20), "box": (2, 0, 9, 8)}, "region must be"),
        (RGB, {"out": np.empty((10, 8, 3), np.uint8)}, r"uint8 or uint16 of shape \(8, 10, 3"),
        (RGB, {"out": np.empty((8, 10, 3), np.int8)}, "got int8"),
        (RGB, {"out": np.empty((8, 20, 3), np.uint8)[:, ::2]}, "must be C-contiguous"),
    ],
)
def test_wrong_arguments_are_refused(image, options, message):
    with pytest.raises(ValueError, match=message):
        resize(image, **({"width": 10, "height": 8} | options))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (4, 4), (64, 33), (64, 64)])
def test_planes_are_the_normalised_channels_of_one_image_of_a_batch(height, width, offset):
    """At an offset of 0, sizes that are multiples of 16 are written past the caches."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = picture("noise", height, width)
    memory = np.full(image.size + 64, 9, np.float32)
    start = 16 - memory.ctypes.data % PLANE_ALIGNMENT // 4 + offset
    planes = memory[start : start + image.size].reshape(3, height, width)
    normalised_planes(image, factors_of(mean, std), planes)
    np.testing.assert_allclose(planes, ((image / 255 - mean) / std).transpose(2, 0, 1), atol=1e-6)
    assert (memory[:start] == 9).all()
    assert (memory[start + image.size :] == 9).all()


# Random crops.


SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWS = 4000
CHANCE = 2.23 * math.sqrt(2 / DRAWS)
"""Gap that two samples of ``DRAWS`` from one law exceed in one of 10,000 comparisons."""
wide_sides = st.one_of(st.integers(1, 20), st.integers(1, 65_535))
sizes = st.lists(st.tuples(wide_sides, wide_sides), min_size=1, max_size=20)


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


@pytest.mark.parametrize("scale", [SCALE, (0.5, 1.0)])
@pytest.mark.parametrize(("width", "height"), [(224, 224), (500, 375), (90, 500), (7, 5)])
def test_boxes_are_distributed_as_in_torchvision(width, height, scale):
    ours = features_of(boxes_of(np.arange(DRAWS), width, height, seed=5, scale=scale))
    theirs = features_of(by_torchvision(DRAWS, width, height, scale=scale))
    tests: dict[str, Any] = {name: ks_2samp(ours[name], theirs[name]) for name in ours}
    assert all(test.statistic < CHANCE for test in tests.values()), tests


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
