"""Confidence intervals of the difference of two means: Welch's, and Student's for pairs.

Source: Welch, "The generalization of 'Student's' problem when several different population
variances are involved" (1947), with Satterthwaite's degrees of freedom.
"""

from math import sqrt

import numpy as np
from jaxtyping import Float


def welch_interval(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " m"], confidence: float = 0.95
) -> tuple[float, float]:
    """Bound ``mean(first) - mean(second)`` of two independent samples of unequal variances.

    Args:
        first: At least two values.
        second: At least two values.
        confidence: Probability that the interval holds the true difference.

    Returns:
        Lower and upper end, in the unit of the values; equal where no value differs from its mean.

    Raises:
        ValueError: A sample has fewer than two values.
    """
    parts = [_variance(values) / values.size for values in (first, second)]
    error = sum(parts)
    squares = sum(
        part**2 / (values.size - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    freedom = error**2 / squares if squares > 0 else 1.0
    return _around(float(first.mean() - second.mean()), sqrt(error), freedom, confidence)


def paired_interval(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], confidence: float = 0.95
) -> tuple[float, float]:
    """Bound ``mean(first - second)`` of paired values.

    Args:
        first: At least two values.
        second: As many, in the same order.
        confidence: Probability that the interval holds the true difference.

    Returns:
        Lower and upper end, in the unit of the values; equal where all differences are equal.

    Raises:
        ValueError: Fewer than two pairs, or not as many values in both.
    """
    if first.shape != second.shape:
        raise ValueError(f"pairs need as many values in both, got {first.size} and {second.size}")
    differences = first - second
    error = sqrt(_variance(differences) / differences.size)
    return _around(float(differences.mean()), error, differences.size - 1, confidence)


def _variance(values: Float[np.ndarray, " n"]) -> float:
    """Sample variance, divided by n - 1."""
    if values.size < 2:
        raise ValueError(f"an interval needs at least two values of each, got {values.size}")
    return float(values.var(ddof=1))


def _around(
    difference: float, error: float, freedom: float, confidence: float
) -> tuple[float, float]:
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return difference - half, difference + half
