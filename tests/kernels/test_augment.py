import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torch.nn.functional import interpolate

from coreset.kernels.augment import (
    cutmix,
    draw_crops,
    draw_cutmix,
    draw_flips,
    draw_jitter,
    draw_lighting,
    horizontal_flip,
    normalised,
    random_resized_crop,
    recoloured,
    resized_crops,
    shuffled_patches,
)
from coreset.kernels.seeds import patch_orders

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def images_u8(n, height, width):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=seeded(0))


def images_01(n, height, width):
    return images_u8(n, height, width).float() / 255


def test_normalised_equals_torchvision():
    from torchvision.transforms.v2 import functional as tv

    images = images_u8(4, 6, 5)
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(normalised(images, MEAN, STD), expected)
    torch.testing.assert_close(normalised(images.float() / 255, MEAN, STD), expected)
    half = normalised(images, MEAN, STD, torch.bfloat16)
    assert torch.equal(half, expected.bfloat16())


@pytest.mark.parametrize(
    ("height", "width", "size"), [(64, 64, 64), (48, 70, 96), (90, 61, 32), (7, 5, 3), (1, 9, 4)]
)
def test_crops_equal_crop_then_interpolate_image_by_image(height, width, size):
    images = images_01(12, height, width)
    boxes = draw_crops(12, height, width, seeded(1), scale=(0.05, 1.0))
    crops = resized_crops(images, boxes, size)
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        box = images[i : i + 1, :, top:bottom, left:right]
        expected = interpolate(box, (size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(crops[i : i + 1], expected, atol=1e-3, rtol=0)


def test_bytes_become_unit_floats_and_half_precision_keeps_its_type():
    images, boxes = images_u8(5, 30, 30), draw_crops(5, 30, 30, seeded(3), scale=(0.5, 1.0))
    full = resized_crops(images.float() / 255, boxes, 16)
    assert torch.equal(resized_crops(images, boxes, 16), full)
    half = resized_crops((images.float() / 255).half(), boxes, 16)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), full, atol=1e-3, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resized_crops(images, boxes, 16), full)


def test_each_image_has_a_box_of_its_own_and_the_seed_decides():
    images = images_u8(1, 32, 32).expand(6, -1, -1, -1)
    crops = random_resized_crop(images, 16, seeded(8))
    assert len(crops.flatten(1).unique(dim=0)) == 6
    assert torch.equal(crops, random_resized_crop(images, 16, seeded(8)))
    assert not torch.equal(crops, random_resized_crop(images, 16, seeded(9)))


@pytest.mark.parametrize(("p", "share"), [(0.0, 0.0), (0.2, 0.2), (1.0, 1.0)])
def test_the_share_of_flips_is_p(p, share):
    images = images_u8(4000, 3, 4)
    flipped = horizontal_flip(images, draw_flips(4000, seeded(1), p))
    mirrored = (flipped == images[..., [3, 2, 1, 0]]).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~(flipped == images).flatten(1).all(dim=1))
    assert mirrored.float().mean().item() == pytest.approx(share, abs=0.03)


def jitter_one_by_one(image, amounts, order):
    """Slow reference, for one image: the three blends in a given order."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for kind in order:
        grey = (image * weights).sum(dim=0, keepdim=True)
        reference = (torch.zeros_like(image), grey.mean().expand_as(image), grey)[kind]
        image = (1 - amounts[kind]) * image + amounts[kind] * reference
    return image


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_colours_are_blended_three_times_in_any_order_then_lit_and_normalised(order):
    images = images_01(9, 5, 7)
    # One uniform number per image and operation, in this order.
    uniform = torch.rand((9, 3), generator=seeded(2), dtype=torch.float64)
    amounts = ((uniform * 2 - 1) * 0.4).float()
    blended = [jitter_one_by_one(*pair, order) for pair in zip(images, amounts, strict=True)]
    lights = draw_lighting(9, seeded(3))
    expected = normalised(torch.stack(blended) + lights[:, :, None, None], MEAN, STD)
    got = recoloured(images, draw_jitter(9, seeded(2)), lights, MEAN, STD)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_colours_are_the_same_in_either_layout_and_under_autocast():
    images, amounts = images_01(4, 6, 5), draw_jitter(4, seeded(2))
    arguments = amounts, draw_lighting(4, seeded(3)), MEAN, STD
    expected = recoloured(images, *arguments)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(recoloured(channels_last, *arguments), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(recoloured(images, *arguments), expected)


def test_lighting_adds_offsets_of_imagenets_covariance():
    offsets = draw_lighting(20000, seeded(5))
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    ).double()
    values = torch.tensor([0.2175, 0.0188, 0.0045]).double()
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3).double(), atol=1e-3, rtol=0)
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    torch.testing.assert_close(torch.cov(offsets.double().T), expected, rtol=0.05, atol=0)


def pasted(mixed, images, partner):
    """Mask of the partner's pixels, for images without a value in common."""
    from_partner = (mixed == images[partner]).all(dim=1)
    own = (mixed == images).all(dim=1)
    assert (from_partner | own).all()
    return from_partner & ~own


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_cutmix_pastes_one_box_of_the_partner_and_reports_its_exact_share(alpha):
    generator = seeded(7)
    images = torch.rand((5, 3, 11, 16), generator=generator)
    untouched = images.clone()
    for _ in range(60):
        partner, box, share = draw_cutmix(5, (11, 16), generator, alpha)
        mixed = cutmix(images, partner, box)
        assert sorted(partner.tolist()) == [0, 1, 2, 3, 4]
        masks = pasted(mixed, images, partner)[partner != torch.arange(5)]
        for mask in masks:
            assert torch.equal(mask, masks[0])
            box = mask.any(dim=1)[:, None] & mask.any(dim=0)
            assert torch.equal(mask, box)
            assert share == pytest.approx(1 - mask.double().mean().item())
    assert torch.equal(images, untouched)


def share_of_the_reference(rng, side):
    """Area kept by the box of Yun et al. 2019, on a square image, for Beta(1, 1)."""
    half = int(side * math.sqrt(1 - rng.random())) // 2
    (a, b), (c, d) = (
        np.clip([centre - half, centre + half], 0, side) for centre in rng.integers(0, side, 2)
    )
    return 1 - (b - a) * (d - c) / side**2


def test_cutmix_shares_are_distributed_as_in_the_reference():
    n, generator, rng = 2000, seeded(8), np.random.default_rng(8)
    ours = [draw_cutmix(1, (32, 32), generator)[2] for _ in range(n)]
    theirs = [share_of_the_reference(rng, 32) for _ in range(n)]
    test: Any = ks_2samp(ours, theirs)
    assert test.statistic < 2.15 * math.sqrt(2 / n)  # by chance once in 5,000 runs


def shuffled_pixel_by_pixel(image, columns, rows):
    """Slow reference: the last block takes what is left of a side."""

    def sources(length, order):
        block, last = length // len(order), len(order) - 1
        ends = [length if i == last else (i + 1) * block for i in range(len(order))]
        return [x for i in order for x in range(i * block, ends[i])]

    across, down = sources(image.shape[1], columns), sources(image.shape[0], rows)
    return np.array([[image[y, x] for x in across] for y in down])


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(6, 12), (7, 11), (5, 4), (1, 9), (2, 1)])
def test_patches_are_shuffled_by_columns_and_by_rows_and_the_last_block_takes_the_remainder(
    factor, height, width
):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image.flags.writeable = False
    for columns in permutations(range(factor)):
        for rows in permutations(range(factor)):
            shuffled = shuffled_patches(image, np.array([columns, rows]))
            assert shuffled.dtype == np.uint8
            expected = shuffled_pixel_by_pixel(image, columns, rows)
            np.testing.assert_array_equal(shuffled, expected)


def test_orders_of_patches_are_uniform_and_those_of_columns_and_rows_independent():
    orders = patch_orders(np.arange(7200), 3, seed=5)
    assert orders.shape == (7200, 2, 3)
    assert orders.dtype == np.int64
    assert (np.sort(orders, axis=2) == np.arange(3)).all()
    pairs, counts = np.unique(orders.reshape(-1, 6), axis=0, return_counts=True)
    assert len(pairs) == 36
    assert chisquare(counts).pvalue > 1e-3


def test_an_order_of_patches_depends_on_the_seed_and_its_own_id_alone():
    ids = np.array([70, 3, 12, 3])
    orders = patch_orders(np.arange(100), 4, seed=1)
    np.testing.assert_array_equal(patch_orders(ids, 4, seed=1), orders[ids])
    assert (patch_orders(np.arange(100), 4, seed=2) != orders).any(axis=(1, 2)).mean() > 0.9
