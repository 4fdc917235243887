"""Representativeness and diversity of a condensed set, by class, on L2-normalised features.

S are the samples of a class in the set, V those in the reference. The reference should be
validation images: a coreset inside its own reference has r1 = 1.

There are two pairs of definitions. (r1, d1) is the code of ManifoldGD
(``representativeness_diversity.py``), but class by class, where ManifoldGD pools all classes.
(r2, d2) goes from the reference to the set, which is what "covers" means, and takes means, which a
single outlier hardly moves.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from coreset.kernels.samplers import positions_by_class


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Representativeness and diversity per class, float64 (n_classes,); higher is better."""

    r1: NDArray[np.float64]
    """Representativeness: min over s in S of the max over v in V of cos(s, v)."""
    d1: NDArray[np.float64]
    """Diversity: 1 - max over pairs of S of their cosine; NaN for a single image."""
    r2: NDArray[np.float64]
    """Coverage: mean over v in V of the max over s in S of cos(v, s)."""
    d2: NDArray[np.float64]
    """Diversity: 1 - mean over pairs of S of their cosine; NaN for a single image."""

    def means(self) -> dict[str, float]:
        """Average r1, d1, r2, d2 over classes; d1 and d2 without classes of one image."""
        return {name: _mean_of_numbers(getattr(self, name)) for name in ("r1", "d1", "r2", "d2")}


def l2_normalised(features: Float[np.ndarray, "n d"]) -> NDArray[np.float32]:
    """Divide features by their Euclidean length; float32 and contiguous.

    Raises:
        ValueError: A row is not finite or has length zero, so it has no direction.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if bad.size:
        raise ValueError(
            f"features must be finite and not all zero, got length {lengths[bad[0]]} "
            f"at position {bad[0]} ({bad.size} in all); embed these images again"
        )
    return np.ascontiguousarray(features / lengths[:, None], dtype=np.float32)


def coverage(
    set_features: Float[np.ndarray, "m d"],
    set_labels: Int[np.ndarray, " m"],
    reference_features: Float[np.ndarray, "n d"],
    reference_labels: Int[np.ndarray, " n"],
    n_classes: int,
) -> Coverage:
    """Measure a condensed set against a reference, class by class.

    Features need not be normalised. FAISS finds exact nearest neighbours in float32; their cosines
    are computed again in float64, so that no result depends on the number of threads. Memory is
    O((m + n) d): there is no matrix of all pairs.

    Raises:
        ValueError: Widths that differ, a row without direction, a label outside 0 .. n_classes-1,
            or a class without samples in the set or in the reference.
    """
    if set_features.shape[1] != reference_features.shape[1]:
        raise ValueError(
            f"features must have one width, got {set_features.shape[1]} in the set and "
            f"{reference_features.shape[1]} in the reference; embed both with the same backbone"
        )
    set_rows = _rows_by_class("set", set_features, set_labels, n_classes)
    reference_rows = _rows_by_class("reference", reference_features, reference_labels, n_classes)
    pairs = list(zip(set_rows, reference_rows, strict=True))
    return Coverage(
        r1=np.array([_nearest_cosines(s, v).min() for s, v in pairs]),
        d1=np.array([_nearest_pair_distance(s) for s in set_rows]),
        r2=np.array([_nearest_cosines(v, s).mean() for s, v in pairs]),
        d2=np.array([_mean_distance(s) for s in set_rows]),
    )


def _rows_by_class(
    name: str,
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    n_classes: int,
) -> list[NDArray[np.float32]]:
    if len(features) != len(labels):
        raise ValueError(
            f"the {name} must have one label per feature row, "
            f"got {len(features)} rows and {len(labels)} labels"
        )
    positions = positions_by_class(labels, n_classes)
    absent = [c for c, members in enumerate(positions) if members.size == 0]
    if absent:
        raise ValueError(
            f"every class must have samples in the {name}, got none of class {absent[0]} "
            f"({len(absent)} classes in all); restrict both to the classes they share"
        )
    normalised = l2_normalised(features)
    return [normalised[members] for members in positions]


def _neighbours(
    queries: NDArray[np.float32], base: NDArray[np.float32], k: int
) -> NDArray[np.int64]:
    """Return the positions in ``base`` of the k largest inner products with each query."""
    import faiss

    _, positions = faiss.knn(queries, base, k, metric=faiss.METRIC_INNER_PRODUCT)
    return positions


def _cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute cosines row by row in float64, clipped to [-1, 1] because lengths are float32."""
    return np.clip(np.einsum("nd,nd->n", left, right, dtype=np.float64), -1.0, 1.0)


def _nearest_cosines(
    queries: NDArray[np.float32], base: NDArray[np.float32]
) -> NDArray[np.float64]:
    return _cosines(queries, base[_neighbours(queries, base, 1)[:, 0]])


def _nearest_pair_distance(rows: NDArray[np.float32]) -> float:
    """Return 1 - the largest cosine of two rows; copies of a row count as different rows."""
    if len(rows) < 2:
        return float("nan")
    # The nearest is the row itself or a copy of it; if copies tie, either has the cosine 1.
    return 1.0 - float(_cosines(rows, rows[_neighbours(rows, rows, 2)[:, 1]]).max())


def _mean_distance(rows: NDArray[np.float32]) -> float:
    """Return 1 - the mean cosine over pairs, from |sum of rows|^2 = 2 * pairs + rows."""
    n = len(rows)
    if n < 2:
        return float("nan")
    total = rows.sum(axis=0, dtype=np.float64)
    own = np.einsum("nd,nd->", rows, rows, dtype=np.float64)
    return 1.0 - float((total @ total - own) / (n * (n - 1)))


def _mean_of_numbers(values: NDArray[np.float64]) -> float:
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else float("nan")
