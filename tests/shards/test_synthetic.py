import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from coreset.shards.errors import UsageError
from coreset.shards.images.flags import Flag
from coreset.shards.images.probe import probe
from coreset.shards.sources.synthetic import MAX_SIDE, MIN_SIDE, Synthetic

SMALL = Synthetic(images=40, classes=4, size=48)


@pytest.mark.parametrize("size", ["imagenet", 48])
def test_an_image_is_the_same_alone_in_threads_and_in_any_order(size):
    data = Synthetic(images=24, classes=4, size=size)
    forwards = [data.jpeg(position) for position in range(24)]
    backwards = [replace(data).jpeg(position) for position in reversed(range(24))][::-1]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(data.jpeg, range(24)))
    assert forwards == backwards == threaded


def test_odd_sizes_with_halved_chroma_encode_alike_whatever_lies_in_memory():
    data = Synthetic(images=60, classes=2, size=375)
    halved = [at for at in range(60) if data._planes(at)[1][-1].shape == (188, 188)]
    assert halved
    for position in halved:
        files: set[bytes] = set()
        for value in range(0, 250, 50):
            np.full(3_000_000, value, dtype=np.uint8)  # freed at once, for the encoder to reuse
            files.add(data.jpeg(position))
        assert len(files) == 1


def test_pixels_before_encoding_stay_as_they_are_across_machines_and_versions():
    hasher = hashlib.sha256()
    for data in (Synthetic(images=100, classes=10), replace(SMALL, seed=3, class_seed=3)):
        for position in range(8):
            quality, planes = data._planes(position)
            hasher.update(bytes([quality]))
            for plane in planes:
                hasher.update(repr(plane.shape).encode() + plane.tobytes())
    assert hasher.hexdigest() == "210d503aaeb32f9da9d8f3b5d20bfd2c2e4d59d64ba911bb0b98783080f8dc40"


def test_images_differ_by_position_and_by_seed_and_not_by_noise():
    other, noisy = replace(SMALL, seed=1), replace(SMALL, label_noise=0.5)
    files = [data.jpeg(position) for data in (SMALL, other) for position in range(40)]
    assert len(set(files)) == 80
    assert (SMALL.labels != other.labels).any()
    np.testing.assert_array_equal(noisy.true_labels, SMALL.true_labels)
    assert [noisy.jpeg(at) for at in range(40)] == files[:40]


def test_files_are_distributed_as_in_imagenet():
    """Of 300 of its files, one from each of 300 classes, as published (ILSVRC 2012)."""
    data = Synthetic(images=400, classes=100)
    with ThreadPoolExecutor(2) as pool:
        files = list(pool.map(data.jpeg, range(data.images)))
    found = [probe(file) for file in files]
    assert {image.format for image in found} == {"jpg"}
    assert {image.flags for image in found} == {Flag(0), Flag.GREY}
    assert abs(np.mean([image.flags == Flag.GREY for image in found]) - 0.02) < 0.015
    sizes = np.array([len(file) for file in files])
    assert sizes.mean() == pytest.approx(110_814, rel=0.1)
    assert np.percentile(sizes, (10, 50, 90)) == pytest.approx((24_386, 107_255, 197_486), rel=0.25)
    pixels = np.array([image.width * image.height for image in found])
    assert pixels.mean() == pytest.approx(202_256, rel=0.1)
    assert np.percentile(pixels, (10, 50, 90)) == pytest.approx(
        (106_654, 187_250, 243_650), rel=0.25
    )
    common = np.mean([(image.width, image.height) == (500, 375) for image in found])
    assert abs(common - 0.20) < 0.05
    sampling = [simplejpeg.decode_jpeg_header(file)[3] for file in files]
    assert 0.19 < sampling.count("420") / len(sampling) < 0.29
    assert set(sampling) == {"444", "420", "Gray"}


@pytest.mark.parametrize("side", [MIN_SIDE, 9, 33, MAX_SIDE])
def test_a_side_gives_square_images_of_that_side(side):
    image = probe(Synthetic(images=2, classes=2, size=side).jpeg(1))
    assert (image.width, image.height) == (side, side)


@given(st.integers(2, 50), st.integers(0, 500), st.integers(0, 2**64), st.floats(0, 0.99))
def test_classes_are_balanced_and_exactly_the_share_is_flipped(classes, more, seed, label_noise):
    data = Synthetic(images=classes + more, classes=classes, seed=seed, label_noise=label_noise)
    sizes = np.bincount(data.true_labels, minlength=classes)
    assert sizes.max() - sizes.min() <= 1
    assert (data.labels != data.true_labels).sum() == round(label_noise * data.images)
    assert data.labels.min() >= 0
    assert data.labels.max() < classes


def test_flips_go_to_every_other_class_alike():
    data = Synthetic(images=40_000, classes=5, label_noise=0.5)
    flipped = data.labels != data.true_labels
    steps = (data.labels - data.true_labels)[flipped] % 5
    np.testing.assert_allclose(np.bincount(steps, minlength=5)[1:], 5000, rtol=0.06)


def test_names_sort_like_labels_and_the_truth_names_each_image():
    assert SMALL.class_names == ("class_0000", "class_0001", "class_0002", "class_0003")
    many = Synthetic(images=12_000, classes=12_000).class_names
    assert list(many) == sorted(many)
    truth = SMALL.truth()
    assert list(truth) == ["key", "true_label", "label", "flipped", "difficulty"]
    assert {len(column) for column in truth.values()} == {40}
    assert truth["key"] == [f"class_{label:04}/{at:09}" for at, label in enumerate(SMALL.labels)]
    np.testing.assert_array_equal(truth["flipped"], SMALL.labels != SMALL.true_labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "classes must be 2 or more, got 1"),
        ({"images": 3}, r"images must be at least one a class \(4\), got 3"),
        ({"label_noise": 1.0}, r"label_noise must be in \[0, 1\), got 1.0"),
        ({"label_noise": -0.1}, r"label_noise must be in \[0, 1\), got -0.1"),
        ({"label_noise": float("nan")}, r"label_noise must be in \[0, 1\), got nan"),
        ({"size": 7}, "size must be imagenet or 8 to 2048 pixels, got 7"),
        ({"size": 2049}, "size must be imagenet or 8 to 2048 pixels, got 2049"),
    ],
)
def test_a_value_out_of_range_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        replace(SMALL, **change)
    for position in (-1, 40):
        with pytest.raises(UsageError, match=rf"position must be in \[0, 40\), got {position}"):
            SMALL.jpeg(position)
