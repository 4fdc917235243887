"""Confidence intervals of the difference of two means: Welch's, and Student's of pairs.

Source: Welch, "The generalization of 'Student's' problem when several different population
variances are involved" (1947), with Satterthwaite's degrees of freedom.
"""

from math import sqrt

import numpy as np
from jaxtyping import Float


def welch_interval(
    one: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"], confidence: float = 0.95
) -> tuple[float, float]:
    """Bound ``mean(one) - mean(other)`` of two independent samples of unequal variances.

    Args:
        one: At least two values.
        other: At least two values.
        confidence: Probability that the interval holds the true difference.

    Returns:
        Lower and upper end, in the unit of the values; equal where no value differs from its mean.

    Raises:
        ValueError: A sample has fewer than two values.
    """
    parts = [_variance(values) / values.size for values in (one, other)]
    error = sum(parts)
    squares = sum(
        part**2 / (values.size - 1) for part, values in zip(parts, (one, other), strict=True)
    )
    freedom = error**2 / squares if squares > 0 else 1.0
    return _around(float(one.mean() - other.mean()), sqrt(error), freedom, confidence)


def paired_interval(
    one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"], confidence: float = 0.95
) -> tuple[float, float]:
    """Bound ``mean(one - other)`` of values that belong together pair by pair.

    Args:
        one: At least two values.
        other: As many, in the same order.
        confidence: Probability that the interval holds the true difference.

    Returns:
        Lower and upper end, in the unit of the values; equal where all differences are equal.

    Raises:
        ValueError: Fewer than two pairs, or not as many values in both.
    """
    if one.shape != other.shape:
        raise ValueError(f"pairs need as many values in both, got {one.size} and {other.size}")
    differences = one - other
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
