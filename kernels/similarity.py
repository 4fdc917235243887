"""Similarity of a condensed set and a reference: how well the one covers the other.

S are the samples of a class in the set, V those in the reference, which should be validation
images: a coreset inside its own reference has r1 = 1. Higher is better of all four numbers:

- r1, representativeness: min over s in S of the max over v in V of cos(s, v)
- d1, diversity: 1 - max over pairs of S of their cosine; NaN for a class of a single image
- r2, coverage: mean over v in V of the max over s in S of cos(v, s)
- d2, diversity: 1 - mean over pairs of S of their cosine; NaN for a class of a single image

(r1, d1) is the code of ManifoldGD (``representativeness_diversity.py``), which pools all classes.
(r2, d2) goes from the reference to the set, which is what "covers" means, and takes means, which a
single outlier hardly moves.

Neighbours are found in float32 and their cosines computed again in float64, so that no result
depends on the number of threads. A row without direction, and a class without samples in either,
are a ValueError.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import isqrt, nan

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from coreset.kernels.neighbours import nearest, row_lengths, unit_rows
from coreset.kernels.samplers import positions_by_class

_NAMES = ("r1", "d1", "r2", "d2")
_LARGEST_PRODUCT = 64_000_000
"""Bytes of the cosines of all pairs, above which `nearest` searches in parts."""
_ONE_THREAD, _SMALL_PRODUCT = 1 << 19, 1 << 28
"""Multiplications below which OpenBLAS starts no threads, and above which threads are worth it."""
_ROWS_AT_ONCE = 1024


def coverage(
    set_features: Float[np.ndarray, "m d"],
    set_labels: Int[np.ndarray, " m"],
    reference_features: Float[np.ndarray, "n d"],
    reference_labels: Int[np.ndarray, " n"],
    n_classes: int,
    *,
    device: str = "cpu",
) -> dict[str, float]:
    """Measure a condensed set against a reference: means over the classes that have a number.

    FAISS searches classes too large for one product, on ``device``.
    """
    columns = set_features, set_labels, reference_features, reference_labels
    by_class = coverage_by_class(*columns, n_classes, device=device)
    return {name: _mean(numbers) for name, numbers in by_class.items()}


def _mean(numbers: NDArray[np.float64]) -> float:
    measured = numbers[~np.isnan(numbers)]
    return float(measured.mean()) if measured.size else nan


def coverage_by_class(
    set_features: Float[np.ndarray, "m d"],
    set_labels: Int[np.ndarray, " m"],
    reference_features: Float[np.ndarray, "n d"],
    reference_labels: Int[np.ndarray, " n"],
    n_classes: int,
    *,
    device: str = "cpu",
) -> dict[str, NDArray[np.float64]]:
    """Measure each class of a condensed set against its own reference: r1, d1, r2, d2, (c,)."""
    pairs = zip(
        _rows_by_class("set", set_features, set_labels, n_classes),
        _rows_by_class("reference", reference_features, reference_labels, n_classes),
        strict=True,
    )
    by_class = np.array([_coverage(s, v, device) for s, v in pairs])
    return {name: by_class[:, i].copy() for i, name in enumerate(_NAMES)}


def pooled_coverage(
    set_features: Float[np.ndarray, "m d"],
    reference_features: Float[np.ndarray, "n d"],
    *,
    device: str = "cpu",
) -> dict[str, float]:
    """Measure a condensed set against a reference whatever the classes, as ManifoldGD does."""
    if not (len(set_features) and len(reference_features)):
        sizes = f"{len(set_features)} and {len(reference_features)}"
        raise ValueError(f"set and reference must have samples, got {sizes}")
    rows, reference_rows = unit_rows(set_features), unit_rows(reference_features)
    return dict(zip(_NAMES, _coverage(rows, reference_rows, device), strict=True))


def coverage_curve(
    set_features: Float[np.ndarray, "m d"],
    set_labels: Int[np.ndarray, " m"],
    set_ranks: Int[np.ndarray, " m"],
    reference_features: Float[np.ndarray, "n d"],
    reference_labels: Int[np.ndarray, " n"],
    *,
    n_classes: int,
    steps: Sequence[int],
    device: str = "cpu",
) -> NDArray[np.float64]:
    """Measure r2 of the first images of every class: means over classes, float64 (steps,).

    ``set_ranks`` tells when each image was chosen among those of its class, lowest first. ``steps``
    are numbers of images, ascending from 1; a class with fewer counts with all that it has.
    """
    if not steps or any(later <= former for former, later in pairwise([0, *steps])):
        raise ValueError(f"steps must ascend from 1 at least, got {[*steps]}")
    by_choice = np.argsort(set_ranks, kind="stable")
    pairs = zip(
        _rows_by_class("set", set_features[by_choice], set_labels[by_choice], n_classes),
        _rows_by_class("reference", reference_features, reference_labels, n_classes),
        strict=True,
    )
    return np.mean([_curve(s, v, steps, device) for s, v in pairs], axis=0)


def _curve(
    s: NDArray[np.float32], v: NDArray[np.float32], steps: Sequence[int], device: str
) -> list[float]:
    best, means = np.full(len(v), -1.0), list[float]()
    for start, stop in pairwise([0, *steps]):
        if start < len(s):
            added = s[start:stop]
            best = np.maximum(best, _cosines(v, added, _nearest_rows(added, v, device)[1]))
        means.append(float(best.mean()))
    return means


def _rows_by_class(
    name: str, features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], n_classes: int
) -> Iterator[NDArray[np.float32]]:
    """Check all features and return rows of length 1 class by class: no copy of all is made."""
    positions = positions_by_class(labels, n_classes)
    absent = [c for c, members in enumerate(positions) if members.size == 0]
    if absent:
        raise ValueError(
            f"every class must have samples in the {name}, got none of class {absent[0]} "
            f"({len(absent)} classes in all); restrict both to the classes they share"
        )
    lengths = row_lengths(features).astype(np.float32)

    def scaled(members: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = features[members].astype(np.float32, copy=False)  # indexing has copied them
        rows /= lengths[members, None]
        return rows

    return map(scaled, positions)


def _coverage(
    s: NDArray[np.float32], v: NDArray[np.float32], device: str
) -> tuple[float, float, float, float]:
    """Return r1, d1, r2, d2 of one class."""
    in_v, in_s = _nearest_rows(s, v, device)
    worst = [int(np.vecdot(s, v[in_v]).argmin())]
    r1, r2 = float(_cosines(s[worst], v, in_v[worst])[0]), float(_cosines(v, s, in_s).mean())
    if len(s) == 1:
        return r1, nan, r2, nan
    return r1, 1 - _largest_cosine(s, device), r2, _mean_distance(s)


def _nearest_rows(
    s: NDArray[np.float32], v: NDArray[np.float32], device: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the row of v nearest to each of s, and the row of s nearest to each of v."""
    if _is_large(s, v):
        return nearest(s, v, 1, device)[:, 0], nearest(v, s, 1, device)[:, 0]
    cosines_mn = _products(s, v)
    return cosines_mn.argmax(axis=1), cosines_mn.argmax(axis=0)


def _largest_cosine(s: NDArray[np.float32], device: str) -> float:
    """Compute the largest cosine of two rows, in float64 of those nearest to each other."""
    if _is_large(s, s):  # of copies the row itself may come second, whose cosine is 1 too
        return float(_cosines(s, s, nearest(s, s, 2, device)[:, 1]).max())
    cosines_mm = _products(s, s)
    np.fill_diagonal(cosines_mm, -np.inf)
    one, other = divmod(int(cosines_mm.argmax()), len(s))
    return float(_cosines(s[[one]], s, np.array([other]))[0])


def _is_large(s: NDArray[np.float32], v: NDArray[np.float32]) -> bool:
    return len(s) * len(v) * s.itemsize > _LARGEST_PRODUCT


def _products(s: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply all pairs of rows, (m, n): small products in tiles on one thread.

    Threads that wait for a busy core take milliseconds, 50 x 50 products of 512 some 30 us.
    """
    width = s.shape[1]
    if len(s) * len(v) * width > _SMALL_PRODUCT:
        return s @ v.T
    side = isqrt(_ONE_THREAD // width) or 1
    products_mn = np.empty((len(s), len(v)), np.float32)
    for i, j in product(range(0, len(s), side), range(0, len(v), side)):
        rows, columns = slice(i, i + side), slice(j, j + side)
        np.matmul(s[rows], v[columns].T, out=products_mn[rows, columns])
    return products_mn


def _cosines(
    queries: NDArray[np.float32], base: NDArray[np.float32], found: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Compute each query's cosine to its row of base in float64, clipped: rows are float32."""
    cosines = list[NDArray[np.float64]]()
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        left, right = queries[block], base[found[block]]
        cosines.append(np.vecdot(left.astype(np.float64), right.astype(np.float64)))
    return np.clip(np.concatenate(cosines), -1.0, 1.0)


def _mean_distance(rows: NDArray[np.float32]) -> float:
    """Return 1 - the mean cosine over pairs, from |sum of rows|^2 = 2 * pairs + rows."""
    n, wide = len(rows), rows.astype(np.float64)
    total, own = wide.sum(axis=0), np.vecdot(wide, wide).sum()
    return 1.0 - float((total @ total - own) / (n * (n - 1)))
