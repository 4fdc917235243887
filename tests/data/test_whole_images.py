"""Crops of stored images at their own sizes."""

import io
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from coreset.engine.data.geometry import Crops
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.whole_images import WholeImages, decode_whole
from coreset.engine.runtime.progress import Display, choose_display
from coreset.kernels.seeds import Stream, derived_seed, patch_orders
from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.images.probe import as_rgb

SIZE = 20
CROPS = Crops(scale=(0.3, 1.0))
HALF_A_LEVEL = 0.55
"""And the twentieth that the kernel's integer weights add."""


def order_of(epoch=0, batch=4, **settings):
    return BatchOrder(batch=batch, epoch=epoch, seed=3, shuffle=True, crops=CROPS, **settings)


def opened_images(dataset, ids=None, **settings):
    ids = np.arange(len(dataset)) if ids is None else ids
    device = torch.device("cpu")
    source = WholeImages(dataset, ids, size=SIZE, device=device, workers=2, **settings)
    return closing(source)


def crops_by_id(source, order):
    """Copies of the crops: the memory of batches is used again."""
    batches = [(batch.ids, batch.images.clone()) for batch in source.epoch(order)]
    return {
        int(sample): image
        for ids, images in batches
        for sample, image in zip(ids, images, strict=True)
    }


def assert_equal_crops(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[sample], expected[sample]) for sample in expected)


@pytest.fixture(scope="module")
def stored(images):
    """Every kind of image in two sizes, neither square, one with odd sides; one below the crop."""
    kinds = [*images.kinds(60, 41), *images.kinds(34, 48)]
    return [*kinds, images.jpeg(9, 6)]


@pytest.fixture
def dataset(packed, stored):
    return packed(stored)


def pillow_pixels(image):
    with Image.open(io.BytesIO(image.data)) as opened:
        return np.array(as_rgb(opened))


def shuffled(pixels, orders):
    """Blocks of columns, then of rows, of an image (3, h, w) in other orders."""
    for axis, order in zip((2, 1), orders, strict=True):
        block, last = pixels.shape[axis] // len(order), len(order) - 1
        lengths = [*[block] * last, pixels.shape[axis] - block * last]
        parts = pixels.split(lengths, dim=axis)
        pixels = torch.cat([parts[i] for i in order], dim=axis)
    return pixels


def assert_crops_of_torchvision(dataset, stored, factor):
    from torchvision.transforms.v2 import functional as tv

    with opened_images(dataset, shuffle_factor=factor) as source:
        found = crops_by_id(source, order_of(epoch=2))
    ids, seed = np.arange(len(stored)), derived_seed(3, 2, Stream.PATCHES)
    sizes = (np.array([getattr(one, side) for one in stored]) for side in ("width", "height"))
    boxes = CROPS.boxes(ids, *sizes, seed=3, epoch=2)
    for sample, orders in enumerate(patch_orders(ids, factor, seed).tolist()):
        pixels = torch.from_numpy(pillow_pixels(stored[sample])).permute(2, 0, 1).float()
        left, top, right, bottom = boxes[sample].tolist()
        place = top, left, bottom - top, right - left
        expected = tv.resized_crop(shuffled(pixels, orders), *place, [SIZE, SIZE], antialias=True)
        torch.testing.assert_close(found[sample].float(), expected, atol=HALF_A_LEVEL, rtol=0)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_crops_are_those_of_torchvision_from_pillows_pixels_after_shuffling(
    dataset, stored, factor
):
    assert_crops_of_torchvision(dataset, stored, factor)


def test_real_images_that_are_not_square_are_shuffled_whole(packed, real_images):
    stored = [image for image in real_images if image.width != image.height][:8]
    assert_crops_of_torchvision(packed(stored), stored, 2)


def test_whole_real_images_have_pillows_pixels(real_images):
    for image in real_images:
        pixels = decode_whole(image.data, (image.width, image.height))
        np.testing.assert_array_equal(pixels, pillow_pixels(image))


def test_batches_have_labels_ids_and_bytes_stored_channels_last(dataset):
    ids = np.array([17, 2, 9, 4, 11])
    with opened_images(dataset, ids) as source:
        assert len(source) == 5
        assert source.ids.tolist() == ids.tolist()
        assert source.labels.tolist() == (ids % 3).tolist()
        batches = list(source.epoch(BatchOrder(batch=3, crops=CROPS, pad=True)))
    assert torch.cat([batch.ids for batch in batches]).tolist() == [*ids.tolist(), -1]
    assert torch.cat([batch.labels for batch in batches]).tolist() == [*(ids % 3).tolist(), -1]
    assert batches[0].images.permute(0, 2, 3, 1).is_contiguous()
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (3, 3, SIZE, SIZE)


def no_memory(monkeypatch, n_bytes):
    monkeypatch.setattr("coreset.engine.data.residency.available_bytes", lambda: n_bytes)


def test_images_that_do_not_fit_are_decoded_every_epoch_to_the_same_crops(
    dataset, stored, monkeypatch, capsys
):
    choose_display(Display.AUTO)  # commands of other tests may have chosen another
    decoded = []

    def counted(data, size):
        decoded.append(size)
        return decode_whole(data, size)

    monkeypatch.setattr("coreset.engine.data.whole_images.decode_whole", counted)
    needed = 3 * sum(image.width * image.height for image in stored)
    epochs = {}
    for free in (2 * needed, 2 * needed - 1):
        no_memory(monkeypatch, free)
        with opened_images(dataset, shuffle_factor=2) as source:
            epochs[free] = [crops_by_id(source, order_of(epoch)) for epoch in range(3)]
        times = 1 if free == 2 * needed else 3
        assert len(decoded) == times * len(stored)
        decoded.clear()
    kept, again = epochs.values()
    for one, other in zip(kept, again, strict=True):
        assert_equal_crops(one, other)
    assert not torch.equal(kept[0][0], kept[1][0])
    said = [line for line in capsys.readouterr().err.splitlines() if "own sizes" in line]
    assert len(said) == 1
    assert "19 images" in said[0]
    assert "decoded every epoch" in said[0]


def test_batch_and_rank_and_where_an_epoch_begins_change_no_crop(dataset):
    def transform(image, seed):
        return image ^ np.uint8(seed % 256)

    with opened_images(dataset, shuffle_factor=2, transform=transform) as source:
        whole = crops_by_id(source, order_of(epoch=1, batch=19))
        assert_equal_crops(crops_by_id(source, order_of(epoch=1, batch=5)), whole)
        shares = [crops_by_id(source, order_of(epoch=1, rank=rank, world=2)) for rank in (0, 1)]
        assert_equal_crops(shares[0] | shares[1], whole)
    with opened_images(
        dataset, np.array([18, 3, 7]), shuffle_factor=2, transform=transform
    ) as source:
        some = crops_by_id(source, order_of(epoch=1, start=0, batch=2))
        assert_equal_crops(some, {sample: whole[sample] for sample in (3, 7, 18)})
        later = crops_by_id(source, order_of(epoch=1, start=1, batch=2))
    assert len(later) == 1
    assert_equal_crops(later, {sample: whole[sample] for sample in later})


def test_a_transform_sees_each_image_before_the_shuffle_with_a_seed_of_seed_epoch_and_id(
    dataset, stored
):
    seen = []

    def noted(image, seed):
        seen.append((seed, image.copy()))
        with pytest.raises(ValueError, match="read-only"):
            image[...] = 0
        return np.full_like(image, 7)

    with opened_images(dataset, shuffle_factor=2, transform=noted) as source:
        for epoch in range(2):
            crops = crops_by_id(source, order_of(epoch))
            assert all((crop == 7).all() for crop in crops.values())
    pixels = dict(seen)
    assert len(pixels) == len(seen) == 2 * len(stored)
    for epoch in range(2):
        for sample, image in enumerate(stored):
            seed = derived_seed(3, epoch, Stream.TRANSFORM, sample)
            np.testing.assert_array_equal(pixels[seed], pillow_pixels(image))


@pytest.mark.parametrize("free", [0, 10**9])
def test_the_first_damaged_image_is_named_in_every_epoch(packed, images, monkeypatch, free):
    no_memory(monkeypatch, free)
    good = [images.jpeg(40, 30, seed=i) for i in range(9)]
    dataset = packed([*good[:4], images.cut(40, 30, 200), *good[5:], images.Stored(b"?", 9, 9)])
    with opened_images(dataset) as source:
        for _ in range(2):
            message = (
                r"shard-000000\.tar:\d+:class1/image4 \(.*\) cannot be decoded; run `coreset v"
            )
            with pytest.raises(ManifestError, match=message):
                list(source.epoch(BatchOrder(batch=10, crops=CROPS)))


def test_an_image_of_another_size_than_the_index_says_is_not_cropped(packed, images):
    image = images.jpeg(40, 30)
    dataset = packed([images.Stored(image.data, 30, 40)])
    with opened_images(dataset) as source, pytest.raises(ManifestError, match="the index says"):
        list(source.epoch(order_of()))


def test_a_shard_that_is_cut_names_the_sample_that_cannot_be_read(packed, images):
    dataset = packed([images.jpeg(40, 30, seed=i) for i in range(4)])
    shard = dataset.path / dataset.manifest.shards[0].name
    with opened_images(dataset) as source:
        with shard.open("r+b") as file:
            file.truncate(int(dataset.ints("offset")[2]) + 10)
        with pytest.raises(ManifestError, match=r"class2/image2 has 10 of its \d+ bytes"):
            list(source.epoch(BatchOrder(batch=4, crops=CROPS)))


def test_an_order_without_crops_and_foreign_ids_are_refused(dataset):
    with (
        opened_images(dataset) as source,
        pytest.raises(UsageError, match=r"give .* crops"),
    ):
        source.epoch(BatchOrder(batch=4))
    with pytest.raises(UsageError, match="ids must be in"):
        opened_images(dataset, np.array([len(dataset)]))
