"""Spread of a metric over classes: intervals, the worst classes, and differences of two sets."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from coreset.engine.evaluation.metrics import METRICS
from coreset.engine.runtime.text import aligned
from coreset.shards.errors import UsageError

Values = NDArray[np.float64]
RESAMPLES, CONFIDENCE = 2000, 0.95


def class_table(by_class: Mapping[str, Values]) -> tuple[str, ...]:
    """Return a table of metrics: mean, its interval over classes, and the worst classes."""
    rows = [
        (name.partition("@")[0], f"{known.mean():.4f}", _interval(known), f"{worst:.4f}")
        for name, values in by_class.items()
        if (known := values[~np.isnan(values)]).size > 1
        for worst in [worst_decile(known, higher_is_better=_higher_is_better(name))]
    ]
    return aligned(("over classes", "mean", "95 %", "worst tenth"), rows) if rows else ()


def worst_decile(values: Values, *, higher_is_better: bool) -> float:
    """Return the mean of the worst tenth of the classes, at least one."""
    ordered = np.sort(values if higher_is_better else -values)
    worst = float(ordered[: math.ceil(values.size / 10)].mean())
    return worst if higher_is_better else -worst


def bootstrap_interval(values: Values) -> tuple[float, float]:
    """Bound the mean over classes: percentiles of means of resampled classes, seeded."""
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile",
        confidence_level=CONFIDENCE, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def sign_flip_p(differences: Values) -> float:
    """Return the probability of a mean difference at least so far from 0, if signs are by chance.

    A permutation test of pairs; exact for up to 11 classes, else by seeded draws.
    """
    from scipy.stats import permutation_test

    found = permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=RESAMPLES,
        vectorized=True, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.pvalue)


def difference_table(
    first: Mapping[str, Values], second: Mapping[str, Values], name: str
) -> tuple[str, ...]:
    """Return a table of the first set's metrics minus the second's, paired over classes."""
    from coreset.kernels.measures import difference_interval

    rows: list[tuple[str, ...]] = []
    for metric in first:
        if metric not in second:
            raise UsageError(
                f"{metric} of {name} was measured before values of classes were kept; measure "
                "both into another RESULTS"
            )
        both = np.stack((first[metric], second[metric]))
        a, b = both[:, ~np.isnan(both).any(axis=0)]
        if a.size > 1:
            low, high = difference_interval(a, b, CONFIDENCE, paired=True)
            shown = (f"{(a - b).mean():+.4f}", f"{low:+.4f} to {high:+.4f}")
            rows.append((metric.partition("@")[0], *shown, f"{sign_flip_p(a - b):.3g}"))
    return aligned((f"minus {name}", "mean", "95 %", "p (signs)"), rows)


def _interval(values: Values) -> str:
    low, high = bootstrap_interval(values)
    return f"{low:.4f} to {high:.4f}"


def _higher_is_better(stamp: str) -> bool:
    known = {metric.stamp: metric.higher_is_better for metric in METRICS.values()}
    return known.get(stamp, False)  # distances are named by their weights
