"""Measures: agreement of two scorings, overlap of two selections, intervals of differences."""

import warnings
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from coreset.kernels.samplers import positions_by_class
from coreset.kernels.seeds import random_keys


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
