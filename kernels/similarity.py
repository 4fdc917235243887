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
from itertools import combinations_with_replacement, pairwise, product
from math import isqrt, nan

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from coreset.kernels.neighbours import nearest, row_lengths, search_device, unit_rows
from coreset.kernels.samplers import Ints, positions_by_class

Rows = NDArray[np.float32]
_NAMES = ("r1", "d1", "r2", "d2")
_LARGEST_PRODUCT = 64_000_000
"""Bytes of the cosines of all pairs, above which they are computed in blocks or on a GPU."""
_ONE_THREAD, _SMALL_PRODUCT = 1 << 19, 1 << 28
"""Multiplications below which OpenBLAS starts no threads, and above which threads are worth it."""
_ROWS_AT_ONCE = 2000
"""Rows of a block; were they a power of two, columns would share few lines of the cache."""


def coverage_by_class(
    set_features: Float[np.ndarray, "m d"],
    set_labels: Int[np.ndarray, " m"],
    reference_features: Float[np.ndarray, "n d"],
    reference_labels: Int[np.ndarray, " n"],
    n_classes: int,
    *,
    device: str = "cpu",
) -> dict[str, NDArray[np.float64]]:
    """Measure each class of a condensed set against its own reference: r1, d1, r2, d2, (c,).

    FAISS searches classes too large for one product, where it can on ``device``.
    """
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


def _curve(s: Rows, v: Rows, steps: Sequence[int], device: str) -> list[float]:
    best, means = np.full(len(v), -1.0), list[float]()
    for start, stop in pairwise([0, *steps]):
        if start < len(s):
            added = s[start:stop]
            best = np.maximum(best, _cosines(v, added, _nearest_rows(added, v, device)[1]))
        means.append(float(best.mean()))
    return means


def _rows_by_class(
    name: str, features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], n_classes: int
) -> Iterator[Rows]:
    """Check all features and return rows of length 1 class by class: no copy of all is made."""
    positions = positions_by_class(labels, n_classes)
    absent = [c for c, members in enumerate(positions) if members.size == 0]
    if absent:
        raise ValueError(
            f"every class must have samples in the {name}, got none of class {absent[0]} "
            f"({len(absent)} classes in all); restrict both to the classes they share"
        )
    lengths = row_lengths(features).astype(np.float32)
    # NumPy takes 45 us for 25,000 numbers from float16 to float32, and 27 us by way of float64.
    wide = np.float64 if features.dtype == np.float16 else features.dtype

    def scaled(members: Ints) -> Rows:
        rows = features[members].astype(wide, copy=False).astype(np.float32, copy=False)  # a copy
        rows /= lengths[members, None]
        return rows

    return map(scaled, positions)


def _coverage(s: Rows, v: Rows, device: str) -> tuple[float, float, float, float]:
    """Return r1, d1, r2, d2 of one class."""
    in_v, in_s, of_s = _nearest_rows(s, v, device)
    worst = [int(of_s.argmin())]
    r1, r2 = float(_cosines(s[worst], v, in_v[worst])[0]), float(_cosines(v, s, in_s).mean())
    if len(s) == 1:
        return r1, nan, r2, nan
    return r1, 1 - _largest_cosine(s, device), r2, _mean_distance(s)


def _nearest_rows(s: Rows, v: Rows, device: str) -> tuple[Ints, Ints, Rows]:
    """Find the row of v nearest to each of s, that of s to each of v, and the cosines of the first.

    The cosines are float32, shape (m,).
    """
    if not _is_large(s, v):
        cosines_mn = _products(s, v)
        return cosines_mn.argmax(axis=1), cosines_mn.argmax(axis=0), cosines_mn.max(axis=1)
    if search_device(device) != "cpu":
        in_v = nearest(s, v, 1, device)[:, 0]
        return in_v, nearest(v, s, 1, device)[:, 0], np.vecdot(s, v[in_v])
    in_v, in_s = np.zeros(len(s), np.int64), np.zeros(len(v), np.int64)
    of_s, of_v = (np.full(len(rows), -np.inf, np.float32) for rows in (s, v))
    for i, j in product(_blocks(s), _blocks(v)):
        cosines = _products(s[i], v[j])
        _keep_nearer(cosines, j.start, in_v[i], of_s[i])
        _keep_nearer(cosines.T, i.start, in_s[j], of_v[j])
    return in_v, in_s, of_s


def _keep_nearer(cosines: Rows, first: int, found: Ints, largest: Rows) -> None:
    """Take the nearest column of a block, whose first is number ``first``, where it is nearer."""
    nearer = (values := cosines.max(axis=1)) > largest
    found[nearer] = first + cosines[nearer].argmax(axis=1)  # slower than max, so of few
    largest[nearer] = values[nearer]


def _largest_cosine(s: Rows, device: str) -> float:
    """Compute the largest cosine of two rows, in float64 of those nearest to each other."""
    if _is_large(s, s) and search_device(device) != "cpu":  # of copies, the second may be itself
        return float(_cosines(s, s, nearest(s, s, 2, device)[:, 1]).max())
    largest, one, other = -np.inf, 0, 0
    for i, j in combinations_with_replacement(_blocks(s), 2):
        cosines = _products(s[i], s[j])
        if i == j:
            np.fill_diagonal(cosines, -np.inf)
        row, column = divmod(int(cosines.argmax()), cosines.shape[1])
        if cosines[row, column] > largest:
            largest, one, other = cosines[row, column], i.start + row, j.start + column
    return float(_cosines(s[[one]], s, np.array([other]))[0])


def _blocks(rows: Rows) -> list[slice]:
    return [slice(i, i + _ROWS_AT_ONCE) for i in range(0, len(rows), _ROWS_AT_ONCE)]


def _is_large(s: Rows, v: Rows) -> bool:
    return len(s) * len(v) * s.itemsize > _LARGEST_PRODUCT


def _products(s: Rows, v: Rows) -> Rows:
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


def _cosines(queries: Rows, base: Rows, found: Ints) -> NDArray[np.float64]:
    """Compute each query's cosine to its row of base in float64, clipped: rows are float32."""
    pairs = ((queries[i], base[found[i]]) for i in _blocks(queries))
    cosines = [np.vecdot(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    return np.concatenate(cosines).clip(-1.0, 1.0)


def _mean_distance(rows: Rows) -> float:
    """Return 1 - the mean cosine over pairs, from |sum of rows|^2 = 2 * pairs + rows."""
    n, wide = len(rows), rows.astype(np.float64)
    total, own = wide.sum(axis=0), np.vecdot(wide, wide).sum()
    return 1.0 - float((total @ total - own) / (n * (n - 1)))
