"""Measures: coverage of a condensed set, agreement of two scorings, intervals of differences.

S are the samples of a class in the set, V those in the reference, which should be validation
images: a coreset inside its own reference has r1 = 1. (r1, d1) is the code of ManifoldGD
(``representativeness_diversity.py``), which pools all classes. (r2, d2) goes from the reference to
the set, which is what "covers" means, and takes means, which a single outlier hardly moves.
"""

import warnings
from functools import partial
from math import nan, sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from coreset.kernels.neighbours import nearest, unit_rows
from coreset.kernels.samplers import positions_by_class
from coreset.kernels.seeds import random_keys


def coverage(
    set_features: Float[np.ndarray, "m d"],
    set_labels: Int[np.ndarray, " m"],
    reference_features: Float[np.ndarray, "n d"],
    reference_labels: Int[np.ndarray, " n"],
    n_classes: int,
    *,
    device: str = "cpu",
) -> dict[str, float]:
    """Measure a condensed set against a reference: means over classes, of which higher is better.

    - r1, representativeness: min over s in S of the max over v in V of cos(s, v)
    - d1, diversity: 1 - max over pairs of S of their cosine; without classes of a single image
    - r2, coverage: mean over v in V of the max over s in S of cos(v, s)
    - d2, diversity: 1 - mean over pairs of S of their cosine; without classes of a single image

    `nearest` finds neighbours on ``device``; their cosines are computed again in float64, so that
    no result depends on the number of threads. A row without direction, and a class without samples
    in either, are a ValueError.
    """
    set_rows = _rows_by_class("set", set_features, set_labels, n_classes)
    reference_rows = _rows_by_class("reference", reference_features, reference_labels, n_classes)
    pairs = list(zip(set_rows, reference_rows, strict=True))
    several = [s for s in set_rows if len(s) > 1]
    cosines = partial(_nearest_cosines, device=device)
    return {
        "r1": float(np.mean([cosines(s, v).min() for s, v in pairs])),
        # The nearest is the row itself or a copy of it; if copies tie, either has the cosine 1.
        "d1": _mean_or_nan([1 - cosines(s, s, rank=1).max() for s in several]),
        "r2": float(np.mean([cosines(v, s).mean() for s, v in pairs])),
        "d2": _mean_or_nan([_mean_distance(s) for s in several]),
    }


def _mean_or_nan(numbers: list[float]) -> float:
    return float(np.mean(numbers)) if numbers else nan


def _rows_by_class(
    name: str, features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], n_classes: int
) -> list[NDArray[np.float32]]:
    positions = positions_by_class(labels, n_classes)
    absent = [c for c, members in enumerate(positions) if members.size == 0]
    if absent:
        raise ValueError(
            f"every class must have samples in the {name}, got none of class {absent[0]} "
            f"({len(absent)} classes in all); restrict both to the classes they share"
        )
    normalised = unit_rows(features)
    return [normalised[members] for members in positions]


def _nearest_cosines(
    queries: NDArray[np.float32], base: NDArray[np.float32], rank: int = 0, *, device: str
) -> NDArray[np.float64]:
    """Compute the cosine of each query and its nearest row, or the one of another rank, in float64.

    It is clipped to [-1, 1], because lengths are float32.
    """
    neighbours = base[nearest(queries, base, rank + 1, device)[:, rank]]
    return np.clip(np.einsum("nd,nd->n", queries, neighbours, dtype=np.float64), -1.0, 1.0)


def _mean_distance(rows: NDArray[np.float32]) -> float:
    """Return 1 - the mean cosine over pairs, from |sum of rows|^2 = 2 * pairs + rows."""
    n, total = len(rows), rows.sum(axis=0, dtype=np.float64)
    own = np.einsum("nd,nd->", rows, rows, dtype=np.float64)
    return 1.0 - float((total @ total - own) / (n * (n - 1)))


def spearman(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Rank correlation, -1 to 1; NaN where a scoring is constant, holds a NaN, or n is below 2."""
    from scipy.stats import ConstantInputWarning, spearmanr  # takes a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        result: Any = spearmanr(first, second)
    return float(result.statistic)


def spearman_by_class(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    n_classes: int,
) -> NDArray[np.float64]:
    """Rank correlation within each class, float64 of shape (n_classes,); NaN as in `spearman`."""
    classes = positions_by_class(labels, n_classes)
    return np.array([spearman(first[members], second[members]) for members in classes])


def shuffled_within_classes(
    values: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], seed: int
) -> NDArray[np.floating]:
    """Permute the values within each class: an unrelated score with the same distributions."""
    shuffled = np.empty_like(values)
    by_chance = np.lexsort((random_keys(values.size, seed), labels))
    shuffled[np.argsort(labels, kind="stable")] = values[by_chance]
    return shuffled


def jaccard_by_class(
    first: Int[np.ndarray, " m"],
    second: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " samples"],
    n_classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return shared over all samples of two lists of ids by class, and what chance gives, (c,).

    By chance: of the mean number shared by two random draws of these sizes. NaN for a class without
    samples in either.
    """
    counts = [
        np.bincount(labels[ids], minlength=n_classes)
        for ids in (first, second, np.intersect1d(first, second))
    ]
    sizes = np.bincount(labels, minlength=n_classes)
    n_first, n_second, n_shared = (count.astype(np.float64) for count in counts)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        expected = n_first * n_second / sizes
        return (
            n_shared / (n_first + n_second - n_shared),
            expected / (n_first + n_second - expected),
        )


def difference_interval(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " m"],
    confidence: float,
    *,
    paired: bool,
) -> tuple[float, float]:
    """Bound ``mean(first) - mean(second)`` by Student's distribution; two values each at least.

    Independent samples as in Welch 1947, with Satterthwaite's degrees of freedom, which for the
    differences of pairs are n - 1. No width where no value differs.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    samples = [first - second] if paired else [first, second]
    variances = [float(values.var(ddof=1)) / values.size for values in samples]
    squares = sum(v**2 / (x.size - 1) for v, x in zip(variances, samples, strict=True))
    freedom = sum(variances) ** 2 / squares if squares > 0 else 1.0
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * sqrt(sum(variances))
    middle = float(first.mean() - second.mean())
    return middle - half, middle + half
