"""Training augmentations of whole batches, on the device where the images are.

Random parameters are drawn on the CPU from the given generator, so a GPU and a CPU see the same
draws, which the caller moves to the images; what is done with them compiles to one graph. Images
are RGB in 0..1, before normalisation; some functions also take uint8. Arithmetic is float32, also
under autocast; results have the type of the images. Nothing is modified in place.

Shape suffixes: b = images, h = rows, w = columns, s = output side, f = blocks of a side.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from coreset.kernels.seeds import TRIES, boxes_from

_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G and B in luma (ITU-R BT.601)
# Principal components of ImageNet's RGB values (Krizhevsky et al. 2012, section 4.1), with the
# numbers of facebookarchive/fb.resnet.torch, datasets/imagenet.lua. Columns are eigenvectors.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def unit_range(images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Convert uint8 to float32 in 0..1; return float images as they are."""
    return images.float().div(255) if images.dtype == torch.uint8 else images


def normalised(
    images: Shaped[Tensor, "b 3 h w"],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b 3 h w"]:
    """Return (images - mean) / std per channel; images are uint8, or float in 0..1."""
    mean_311, std_311 = (_per_channel(values, images.device) for values in (mean, std))
    return ((unit_range(images).float() - mean_311) / std_311).to(dtype)


def draw_crops(
    n: int, height: int, width: int, generator: torch.Generator, *, scale: tuple[float, float]
) -> Int[Tensor, "b 4"]:
    """Draw boxes (left, top, right, bottom) by the law of torchvision's ``RandomResizedCrop``."""
    draws = [_uniform((n, draw), generator) for draw in (TRIES, TRIES, 2)]
    # The row of a box is drawn before its column; `boxes_from` takes the column first.
    uniforms = torch.cat((*draws[:2], draws[2].flip(1)), dim=1).numpy()
    sizes = np.full(n, width), np.full(n, height)
    return torch.from_numpy(boxes_from(uniforms, *sizes, scale, (3 / 4, 4 / 3)))


def resized_crops(
    images: Shaped[Tensor, "b 3 h w"], boxes: Int[Tensor, "b 4"], size: int
) -> Float[Tensor, "b 3 s s"]:
    """Crop each image to its box (as of `draw_crops`) and resize it bilinearly to size x size.

    Equal to cropping and ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)`` image
    by image: each is multiplied by one matrix per axis. The result of uint8 is float32 in 0..1.
    """
    values = unit_range(images)
    n, _, height, width = images.shape
    left, top, right, bottom = boxes.float().unbind(dim=1)
    rows_bsh = _triangle_filters(top, bottom - top, height, size)
    columns_bsw = _triangle_filters(left, right - left, width, size)
    with torch.autocast(images.device.type, enabled=False):
        # Channels beside rows: one large product per image instead of three.
        narrowed = values.float().reshape(n, 3 * height, width) @ columns_bsw.mT
        resized = rows_bsh[:, None] @ narrowed.view(n, 3, height, size)
    return resized.to(values.dtype)


def random_resized_crop(
    images: Shaped[Tensor, "b 3 h w"],
    size: int,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.5, 1.0),
) -> Float[Tensor, "b 3 s s"]:
    """Draw one box per image by `draw_crops` and cut it by `resized_crops`."""
    n, _, height, width = images.shape
    boxes = draw_crops(n, height, width, generator, scale=scale)
    return resized_crops(images, boxes.to(images.device, non_blocking=True), size)


def draw_flips(n: int, generator: torch.Generator, p: float = 0.5) -> Bool[Tensor, " b"]:
    """Draw which images to mirror, each with probability ``p``."""
    return _uniform((n,), generator) < p


def horizontal_flip(
    images: Shaped[Tensor, "b 3 h w"], flips: Bool[Tensor, " b"]
) -> Shaped[Tensor, "b 3 h w"]:
    """Mirror the images of ``flips``."""
    return torch.where(flips[:, None, None, None], images.flip(3), images)


def draw_jitter(n: int, generator: torch.Generator, strength: float = 0.4) -> Float[Tensor, "b 3"]:
    """Draw changes of brightness, contrast and saturation, uniform in (-strength, strength)."""
    return (2 * strength * _uniform((n, 3), generator) - strength).float()


def draw_lighting(n: int, generator: torch.Generator, std: float = 0.1) -> Float[Tensor, "b 3"]:
    """Draw a sum of ImageNet's principal components * eigenvalue * N(0, std) for each image."""
    amounts_b3 = torch.randn((n, 3), generator=generator) * std
    components_33 = torch.tensor(_EIGENVECTORS) * torch.tensor(_EIGENVALUES)
    return amounts_b3 @ components_33.T


def recoloured(
    images: Float[Tensor, "b 3 h w"],
    amounts: Float[Tensor, "b 3"],
    offsets: Float[Tensor, "b 3"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[Tensor, "b 3 h w"]:
    """Jitter the colours by ``amounts``, add ``offsets`` (of `draw_lighting`), and normalise.

    The changes of brightness, contrast and saturation (amounts of `draw_jitter`) are each
    (1 - a) * image + a * reference, with black, the mean of the grey image, and the grey image for
    references. As in MinimaxDiffusion (``data.py``), but not in torchvision, nothing is clamped; so
    any order gives the same image, and all of it is one affine map of each image's colours.
    """
    brightness, contrast, saturation = amounts[:, :, None].unbind(dim=1)
    mean_31, std_31 = (_per_channel(values, images.device)[:, 0] for values in (mean, std))
    weights_13 = _per_channel(_GREY_WEIGHTS, images.device)[:, 0].T
    colours_b3p = images.float().flatten(2)
    with torch.autocast(images.device.type, enabled=False):
        grey_b1 = colours_b3p.mean(dim=2) @ weights_13.T
        kept_b1 = (1 - brightness) * (1 - contrast)
        identity_33 = torch.eye(3, device=images.device)
        matrix_b33 = (
            torch.lerp(identity_33, weights_13, saturation[:, :, None]) * kept_b1[:, :, None]
        )
        shift_b31 = ((1 - brightness) * contrast * grey_b1 + offsets)[:, :, None] - mean_31
        mapped = torch.baddbmm(shift_b31 / std_31, matrix_b33 / std_31, colours_b3p)
    return mapped.view(images.shape)


def draw_cutmix(
    n: int, side: tuple[int, int], generator: torch.Generator, alpha: float = 1.0
) -> tuple[Int[Tensor, " b"], Int[Tensor, "4"], float]:
    """Draw partners by a permutation, and one box for images of ``side`` (height, width).

    The box of Yun et al. 2019: 1 - lambda of the area with lambda ~ Beta(alpha, alpha), around a
    uniform centre and cut off at the border.

    Returns:
        The position of each image's partner; top, bottom, left and right of the box; and the share
        of the area outside it, for the loss share * L(y) + (1 - share) * L(y[partner]).
    """
    # torch's own beta sampler takes no generator.
    seed = int(torch.randint(2**62, (1,), generator=generator))
    cut = math.sqrt(1 - np.random.default_rng(seed).beta(alpha, alpha))
    (top, bottom), (left, right) = (_cut_interval(length, cut, generator) for length in side)
    partner = torch.randperm(n, generator=generator)
    share = 1 - (bottom - top) * (right - left) / (side[0] * side[1])
    return partner, torch.tensor((top, bottom, left, right)), share


def cutmix(
    images: Shaped[Tensor, "b 3 h w"], partner: Int[Tensor, " b"], box: Int[Tensor, "4"]
) -> Shaped[Tensor, "b 3 h w"]:
    """Paste the box (of `draw_cutmix`) of each one's partner, at the same place in the batch."""
    top, bottom, left, right = box.unbind()
    rows_h1 = torch.arange(images.shape[2], device=images.device)[:, None]
    columns_w = torch.arange(images.shape[3], device=images.device)
    inside_hw = (rows_h1 >= top) & (rows_h1 < bottom) & (columns_w >= left) & (columns_w < right)
    return torch.where(inside_hw, images[partner], images)


def shuffled_patches(
    image_hwc: NDArray[np.uint8], orders_2f: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Put f blocks of columns, then f of rows, into an order each (`seeds.patch_orders`).

    Blocks are the f-th part of a side, rounded down; the last takes the remainder. RDED's
    ``ShufflePatches`` (``validation/utils.py``) means the same, but compares a position with a
    block's number and so drops the remainder of most sizes.
    """
    for axis, order_f in zip((1, 0), orders_2f, strict=True):
        starts = image_hwc.shape[axis] // order_f.size * np.arange(1, order_f.size)
        blocks = np.split(image_hwc, starts, axis=axis)
        image_hwc = np.concatenate([blocks[at] for at in order_f], axis=axis)
    return image_hwc


def _per_channel(values: Sequence[float], device: torch.device) -> Float[Tensor, "3 1 1"]:
    # Made on the CPU and moved: torch.tensor(..., device=...) would wait for the GPU.
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1).to(device, non_blocking=True)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "..."]:
    # float64: 24 random bits times a number of pixels would favour some pixels.
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _triangle_filters(
    starts_b: Float[Tensor, " b"], lengths_b: Float[Tensor, " b"], pixels: int, size: int
) -> Float[Tensor, "b s pixels"]:
    """Weigh ``pixels`` in each of ``size`` outputs over [start, start + length), and no others."""
    steps_b11 = (lengths_b / size)[:, None, None]
    starts_b11 = starts_b[:, None, None]
    ends_b11 = starts_b11 + lengths_b[:, None, None]
    outputs_s1 = torch.arange(size, device=starts_b.device)[:, None] + 0.5
    centres_p = torch.arange(pixels, device=starts_b.device) + 0.5
    distances_bsp = (centres_p - (starts_b11 + outputs_s1 * steps_b11)).abs()
    weights_bsp = (1 - distances_bsp / steps_b11.clamp(min=1)).clamp(min=0)
    weights_bsp = weights_bsp * ((centres_p > starts_b11) & (centres_p < ends_b11))
    return weights_bsp / weights_bsp.sum(dim=2, keepdim=True)


def _cut_interval(length: int, cut: float, generator: torch.Generator) -> tuple[int, int]:
    half = int(length * cut) // 2
    centre = int(torch.randint(length, (1,), generator=generator))
    return max(centre - half, 0), min(centre + half, length)
