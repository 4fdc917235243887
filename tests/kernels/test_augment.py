import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from coreset.kernels.augment import (
    color_jitter,
    cutmix,
    draw_crops,
    horizontal_flip,
    lighting,
    normalised,
    random_resized_crop,
    resized_crops,
)

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def seeded(seed=0):
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator


def images_u8(n, height, width, seed=0):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=seeded(seed))


def images_01(n, height, width, seed=0):
    return images_u8(n, height, width, seed).float() / 255


def ks_distance(values, law):
    """Largest gap between an empirical distribution and a cumulative law (Kolmogorov-Smirnov)."""
    ordered = np.sort(values)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    expected = law(ordered)
    return max(np.abs(expected - steps[:-1]).max(), np.abs(expected - steps[1:]).max())


def uniform_law(low, high):
    return lambda values: np.clip((values - low) / (high - low), 0, 1)


def beyond_chance(n):
    """The Kolmogorov-Smirnov distance that a true law exceeds once in 5,000 runs."""
    return 2.15 / math.sqrt(n)


# normalised


def places_of(boxes):
    """Boxes as torchvision's functions have them: top, left, height, width."""
    left, top, right, bottom = boxes.unbind(dim=1)
    return torch.stack((top, left, bottom - top, right - left), dim=1)


def test_normalised_equals_torchvision():
    from torchvision.transforms.v2 import functional as tv

    images = images_u8(4, 6, 5)
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(normalised(images, MEAN, STD), expected)
    torch.testing.assert_close(normalised(images.float() / 255, MEAN, STD), expected)
    half = normalised(images, MEAN, STD, torch.bfloat16)
    assert torch.equal(half, expected.bfloat16())


# crops


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(64, 64, 64), (48, 70, 96), (90, 61, 32), (7, 5, 3), (1, 9, 4)]
)
def test_crops_equal_crop_then_interpolate_image_by_image(height, width, size, antialias):
    images = images_01(12, height, width)
    boxes = draw_crops(12, height, width, seeded(1), scale=(0.05, 1.0))
    expected = torch.cat(
        [
            interpolate(
                image[None, :, top:bottom, left:right],
                (size, size),
                mode="bilinear",
                align_corners=False,
                antialias=antialias,
            )
            for image, (left, top, right, bottom) in zip(images, boxes.tolist(), strict=True)
        ]
    )
    got = resized_crops(images, boxes, size, antialias=antialias)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)


def test_pixels_outside_the_box_never_enter():
    images = torch.full((1, 3, 20, 20), torch.nan)
    images[:, :, 4:9, 6:16] = 0.5
    poisoned = torch.nan_to_num(images, nan=1e6)
    crop = resized_crops(poisoned, torch.tensor([[6, 4, 16, 9]]), 13)
    torch.testing.assert_close(crop, torch.full((1, 3, 13, 13), 0.5))


def test_bytes_become_unit_floats_and_half_precision_keeps_its_type():
    images, boxes = images_u8(5, 30, 30), draw_crops(5, 30, 30, seeded(3))
    full = resized_crops(images.float() / 255, boxes, 16)
    assert torch.equal(resized_crops(images, boxes, 16), full)
    half = resized_crops((images.float() / 255).half(), boxes, 16)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), full, atol=1e-3, rtol=0)


def test_neither_the_memory_format_nor_autocast_changes_crops():
    images, boxes = images_u8(5, 30, 20), draw_crops(5, 30, 20, seeded(3))
    last = images.contiguous(memory_format=torch.channels_last)
    expected = resized_crops(images, boxes, 16)
    assert torch.equal(resized_crops(last, boxes, 16), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resized_crops(images, boxes, 16), expected)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (100, 180), (40, 200)])
def test_crop_parameters_are_distributed_as_in_torchvision(height, width):
    from torchvision.transforms import RandomResizedCrop

    n = 1500
    ours = places_of(draw_crops(n, height, width, seeded(4), scale=(0.3, 1.0))).double()
    image = torch.empty((3, height, width))
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(4)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(n)],
            dtype=torch.float64,
        )
    for column in range(4):
        a, b = np.sort(ours[:, column].numpy()), np.sort(theirs[:, column].numpy())
        places = np.union1d(a, b)
        gap = np.searchsorted(a, places, "right") - np.searchsorted(b, places, "right")
        # Two samples of n: the distance grows by sqrt(2).
        assert np.abs(gap).max() / n < beyond_chance(n) * math.sqrt(2)


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 100, (43, 0, 56, 10)), (100, 10, (0, 43, 10, 56))]
)
def test_the_largest_central_box_is_taken_where_no_try_fits(height, width, box):
    boxes = draw_crops(20, height, width, seeded(7), scale=(0.9, 1.0))
    assert boxes.unique(dim=0).tolist() == [list(box)]


def test_each_image_has_a_box_of_its_own_and_the_seed_decides():
    images = images_u8(1, 32, 32).expand(6, -1, -1, -1)
    crops = random_resized_crop(images, 16, seeded(8))
    assert len(crops.flatten(1).unique(dim=0)) == 6
    assert torch.equal(crops, random_resized_crop(images, 16, seeded(8)))
    assert not torch.equal(crops, random_resized_crop(images, 16, seeded(9)))


# flip


def test_flipped_images_are_mirrored_and_the_others_untouched():
    images = images_u8(64, 3, 4)
    flipped = horizontal_flip(images, seeded(0))
    mirrored = (flipped == images[..., [3, 2, 1, 0]]).flatten(1).all(dim=1)
    kept = (flipped == images).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~kept)
    assert 16 < mirrored.sum() < 48


@pytest.mark.parametrize(("p", "share"), [(0.0, 0.0), (0.2, 0.2), (1.0, 1.0)])
def test_the_share_of_flips_is_p(p, share):
    images = torch.tensor([0.0, 1.0]).expand(4000, 3, 1, 2)
    flipped = horizontal_flip(images, seeded(1), p=p)[:, 0, 0, 0]
    assert flipped.mean().item() == pytest.approx(share, abs=0.03)


# colour


def jitter_one_by_one(image, amounts, order):
    """Slow reference, for one image: the three blends in a given order."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for kind in order:
        grey = (image * weights).sum(dim=0, keepdim=True)
        reference = (torch.zeros_like(image), grey.mean().expand_as(image), grey)[kind]
        image = (1 - amounts[kind]) * image + amounts[kind] * reference
    return image


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_jitter_equals_the_three_blends_in_any_order(order):
    images = images_01(9, 5, 7)
    # One uniform number per image and operation, in this order.
    uniform = torch.rand((9, 3), generator=seeded(2), dtype=torch.float64)
    amounts = ((uniform * 2 - 1) * 0.4).float()
    expected = [jitter_one_by_one(*pair, order) for pair in zip(images, amounts, strict=True)]
    torch.testing.assert_close(color_jitter(images, seeded(2)), torch.stack(expected))


def test_jitter_strengths_are_independent_and_uniform():
    # Pixels (1,0,0) and (0,1,0): three linear read-outs give the three strengths back.
    images = torch.zeros((3000, 3, 1, 2))
    images[:, 0, 0, 0] = images[:, 1, 0, 1] = 1
    out = color_jitter(images, seeded(3)).double()
    grey = (out * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1)[:, 0]
    brightness = 1 - grey.mean(dim=1) / 0.443
    contrast = 1 - (grey[:, 1] - grey[:, 0]) / (0.288 * (1 - brightness))
    chroma = out[:, 0, 0, 0] - out[:, 1, 0, 0]
    saturation = 1 - chroma / ((1 - brightness) * (1 - contrast))
    strengths = torch.stack((brightness, contrast, saturation)).numpy()
    for values in strengths:
        assert ks_distance(values, uniform_law(-0.4, 0.4)) < beyond_chance(3000)
    assert np.abs(np.corrcoef(strengths) - np.eye(3)).max() < 4 / math.sqrt(3000)


def test_jitter_is_not_clamped_and_keeps_grey_images_grey():
    grey = images_01(50, 4, 4)[:, :1].expand(-1, 3, -1, -1)
    out = color_jitter(grey, seeded(4), strength=0.9)
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
    assert out.max() > 1


def test_lighting_adds_one_offset_per_image_with_imagenets_covariance():
    images = images_01(20000, 2, 2)
    offsets = lighting(images, seeded(5)) - images
    torch.testing.assert_close(offsets, offsets[:, :, :1, :1].expand_as(offsets), atol=1e-6, rtol=0)
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    ).double()
    values = torch.tensor([0.2175, 0.0188, 0.0045]).double()
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3).double(), atol=1e-3, rtol=0)
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    covariance = torch.cov(offsets[:, :, 0, 0].double().T)
    torch.testing.assert_close(covariance, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("augment", [color_jitter, lighting])
def test_half_precision_colours_are_computed_in_float32(augment):
    images = images_01(8, 6, 6).bfloat16()
    out = augment(images, seeded(6))
    assert torch.equal(out, augment(images.float(), seeded(6)).bfloat16())


# CutMix


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
        mix = cutmix(images, generator, alpha=alpha)
        assert sorted(mix.partner.tolist()) == [0, 1, 2, 3, 4]
        masks = pasted(mix.images, images, mix.partner)[mix.partner != torch.arange(5)]
        for mask in masks:
            assert torch.equal(mask, masks[0])
            box = mask.any(dim=1)[:, None] & mask.any(dim=0)
            assert torch.equal(mask, box)
            assert mix.share == pytest.approx(1 - mask.double().mean().item())
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
    image = torch.zeros((1, 3, 32, 32))
    ours = np.sort([cutmix(image, generator).share for _ in range(n)])
    theirs = np.sort([share_of_the_reference(rng, 32) for _ in range(n)])
    places = np.union1d(ours, theirs)
    gap = np.searchsorted(ours, places, "right") - np.searchsorted(theirs, places, "right")
    assert np.abs(gap).max() / n < beyond_chance(n) * math.sqrt(2)


def test_cutmix_takes_bytes():
    images = images_u8(4, 8, 8)
    assert cutmix(images, seeded(9)).images.dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "augment",
    [
        lambda images, generator: random_resized_crop(images, 24, generator),
        horizontal_flip,
        color_jitter,
        lighting,
        lambda images, generator: cutmix(images, generator).images,
    ],
)
def test_a_gpu_sees_the_same_draws_as_the_cpu(augment):
    images = images_01(8, 32, 32)
    on_gpu = augment(images.cuda(), seeded(10)).cpu()
    torch.testing.assert_close(on_gpu, augment(images, seeded(10)), atol=1e-3, rtol=0)
