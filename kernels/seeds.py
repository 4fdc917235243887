"""Seeded random numbers, orders and crop boxes: the same on every machine and version.

NumPy may change the streams of ``Generator.permutation`` between versions (NEP 19), so what lies on
disk (pack order, epoch order, selections) is drawn by sorting keys of splitmix64 (Steele, Lea and
Flood, OOPSLA 2014; constants of prng.di.unimi.it/splitmix64.c).

Shape suffixes: b = images, t = tries, f = blocks, 2 = horizontal and vertical.
"""

import math

import numpy as np
from numpy.typing import NDArray


class Stream:
    """Streams of random numbers: steps of `derived_seed`, each unique among those under one seed.

    Their numbers decide what is drawn, so they never change.
    """

    RANDOM, CCS, DOUBLE_END, PROTOTYPES, DEDUP_RANDOM = range(5)  # under the seed of a selection
    FOLDS, SHARES, CLUSTERS = -1, -2, -3  # under the seed of a scoring, beside its epochs 0, 1, ...
    BLOCKS, SAMPLES = 0, 1  # of a block shuffle, under the seed of an epoch
    DROPOUT, PATCHES, TRANSFORM = 2, 3, 4  # of a student, under the seed of an epoch
    TRUE_LABEL, FLIP, OTHER_LABEL, DIFFICULTY, TEXTURE, CLASS, IMAGE = range(7)  # synthetic data


GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
TRIES = 10
_DRAWS = 2 * TRIES + 2  # of a crop: areas, aspect ratios, then the position


def splitmix64(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output of splitmix64 for each state."""
    mixed = states + GOLDEN_GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))


def derived_seed(seed: int, *path: int) -> int:
    """Derive an independent 64-bit seed for a path (stream, class, epoch ...) under a seed."""
    state = np.array([seed % 2**64], dtype=np.uint64)
    for step in path:
        state = splitmix64(splitmix64(state) ^ np.array([step % 2**64], dtype=np.uint64))
    return int(state[0])


def class_seeds(seed: int, n_classes: int) -> NDArray[np.uint64]:
    """Return `derived_seed` of each class 0 .. n_classes-1 under a seed."""
    state = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    return splitmix64(state ^ np.arange(n_classes, dtype=np.uint64))


def random_keys(n: int, seed: int) -> NDArray[np.uint64]:
    """Return a pseudo-random uint64 for each position 0 .. n-1, whatever n is."""
    start = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    return splitmix64(start + np.arange(n, dtype=np.uint64) * GOLDEN_GAMMA)


def permutation(n: int, seed: int) -> NDArray[np.int64]:
    """Draw a uniform permutation of 0 .. n-1: positions sorted by random key, ties by position."""
    return np.argsort(random_keys(n, seed), kind="stable").astype(np.int64)


def crop_boxes(  # noqa: PLR0917 - three columns, then the distribution
    ids: NDArray[np.int64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    seed: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """Draw one box per image; a row depends on ``seed`` and its own id and size alone.

    The area is uniform in ``scale``, a range of shares of the image's area, and the logarithm of
    width over height uniform in ``ratio``. The first of ten tries that fits is placed uniformly; if
    none fits, the box is the largest central one within ``ratio``. Unlike torchvision's, it has at
    least one pixel a side. Rows are left, top, right, bottom in pixels, int64 of shape (b, 4).
    """
    keys = _image_keys(ids, _DRAWS, seed)
    uniforms = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return boxes_from(uniforms, widths, heights, scale, ratio)


def patch_orders(ids: NDArray[np.int64], factor: int, seed: int) -> NDArray[np.int64]:
    """Draw uniform orders of ``factor`` blocks of columns, then of rows; shape (b, 2, f).

    A row depends on ``seed`` and its own id alone.
    """
    keys_b2f = _image_keys(ids, 2 * factor, seed).reshape(-1, 2, factor)
    return np.argsort(keys_b2f, axis=2, kind="stable").astype(np.int64)


def boxes_from(
    uniforms: NDArray[np.float64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """Compute the boxes of `crop_boxes` from 2 * ``TRIES`` + 2 numbers in [0, 1) an image."""
    images_2b = np.stack([widths, heights])
    areas_bt = _between(*scale, uniforms[:, :TRIES]) * images_2b.prod(axis=0)[:, None]
    aspects_bt = np.exp(_between(math.log(ratio[0]), math.log(ratio[1]), uniforms[:, TRIES:-2]))
    tries_2bt = np.rint(np.sqrt(np.stack([areas_bt * aspects_bt, areas_bt / aspects_bt])))
    fits_bt = ((tries_2bt > 0) & (tries_2bt <= images_2b[:, :, None])).all(axis=0)
    drawn_2b = tries_2bt[:, np.arange(len(widths)), fits_bt.argmax(axis=1)]
    places_2b = np.floor(uniforms[:, -2:].T * (images_2b - drawn_2b + 1))
    longest_2b = np.rint(np.stack([heights * ratio[1], widths / ratio[0]]))
    central_2b = np.minimum(images_2b, np.maximum(longest_2b, 1))
    fits_b = np.any(fits_bt, axis=1)
    sizes_2b = np.where(fits_b, drawn_2b, central_2b)
    starts_2b = np.where(fits_b, places_2b, (images_2b - central_2b) // 2)
    return np.stack([*starts_2b, *(starts_2b + sizes_2b)], axis=1).astype(np.int64)


def _image_keys(ids: NDArray[np.int64], n: int, seed: int) -> NDArray[np.uint64]:
    """Return n pseudo-random numbers for each image, of shape (b, n)."""
    start = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    streams = splitmix64(start ^ ids.astype(np.uint64))[:, None]
    return splitmix64(streams + np.arange(n, dtype=np.uint64) * GOLDEN_GAMMA)


def _between(low: float, high: float, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    return low + (high - low) * uniforms
