"""Agreement of two scorings: rank correlation over all samples or by class, and common samples."""

import warnings
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
    """Rank correlation within each class, float64 of shape (n_classes,); NaN as in `spearman`.

    A class-wise selection depends only on the order within a class. The correlation over all
    samples also counts which classes are hard.

    Raises:
        ValueError: A label is outside 0 .. n_classes-1.
    """
    classes = positions_by_class(labels, n_classes)
    return np.array([spearman(first[members], second[members]) for members in classes])


def overlap(ids: Int[np.ndarray, " a"], others: Int[np.ndarray, " b"]) -> float:
    """Return the share of ``ids`` that are among ``others``; both without repeats.

    Raises:
        ValueError: ``ids`` is empty.
    """
    if ids.size == 0:
        raise ValueError("ids must not be empty: an empty set has no share")
    return np.intersect1d(ids, others, assume_unique=True).size / ids.size


def shuffled_within_classes(
    values: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], seed: int
) -> NDArray[np.floating]:
    """Permute the values within each class.

    The result is a score that is unrelated to ``values`` but for the class, with the same
    distribution in every class.
    """
    shuffled = np.empty_like(values)
    shuffled[np.argsort(labels, kind="stable")] = values[
        np.lexsort((random_keys(values.size, seed), labels))
    ]
    return shuffled
