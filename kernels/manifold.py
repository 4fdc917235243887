"""Precision, recall, density and coverage of the manifolds of a set and a reference, by class.

A ball lies around each image, and reaches to its k-th nearest neighbour on its own side.

- precision: share of the set in a ball of the reference (Kynkaanniemi et al., NeurIPS 2019)
- recall: share of the reference in a ball of the set (ibid.)
- density: balls of the reference around an image of the set over k (Naeem et al., ICML 2020)
- coverage: share of the balls of the reference with an image of the set in them (ibid.)

As in the package ``prdc`` of Naeem et al., an image on the surface is outside; Kynkaanniemi et al.
count it inside. Unlike there, comparisons that float32 leaves open are made in float64, so that the
surface does not depend on rounding: with a set inside its own reference many images lie on it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from coreset.kernels.neighbours import neighbours_of
from coreset.kernels.samplers import positions_by_class

_NAMES = "precision", "recall", "density", "coverage"
_PAIRS_AT_ONCE = 1 << 20


def precision_recall_density_coverage(
    set_features: Float[np.ndarray, "m d"],
    set_labels: Int[np.ndarray, " m"],
    reference_features: Float[np.ndarray, "n d"],
    reference_labels: Int[np.ndarray, " n"],
    n_classes: int,
    *,
    k: int = 5,
) -> dict[str, NDArray[np.float64]]:
    """Measure each class, float64 (n_classes,); NaN where a side has at most ``k`` images of it.

    Features count as float32. A ``k`` below 1 and a value that is not finite are a ValueError.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    for name, features in (("set", set_features), ("reference", reference_features)):
        if not np.isfinite(features).all():
            raise ValueError(f"features of the {name} must be finite; embed these images again")
    both_labels, numbers = (set_labels, reference_labels), np.full((4, n_classes), np.nan)
    classes = zip(*(positions_by_class(labels, n_classes) for labels in both_labels), strict=True)
    for c, (of_set, of_reference) in enumerate(classes):
        if min(of_set.size, of_reference.size) > k:
            s, v = set_features[of_set], reference_features[of_reference]
            numbers[:, c] = _of_class(s.astype(np.float32), v.astype(np.float32), k)
    return dict(zip(_NAMES, numbers, strict=True))


class _Side(NamedTuple):
    """Images of a class on one side."""

    rows: NDArray[np.float32]
    centred: NDArray[np.float32]
    """Rows less the mean of the reference: of small numbers, products are more exact."""
    lengths: NDArray[np.float32]
    """Squared lengths of the centred rows."""
    radii: NDArray[np.float64]
    """Squared distances to the k-th neighbours, of the rows."""

    def block(self, start: int, stop: int) -> "_Side":
        own = slice(start, stop)
        return _Side(self.rows[own], self.centred[own], self.lengths[own], self.radii[own])


def _of_class(
    set_rows: NDArray[np.float32], reference_rows: NDArray[np.float32], k: int
) -> tuple[float, float, float, float]:
    centre = reference_rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    s, v = _side(set_rows, centre, k), _side(reference_rows, centre, k)
    n_balls, n_recalled, n_covered = np.zeros(len(s.rows), np.int64), 0, 0
    step = max(1, _PAIRS_AT_ONCE // len(s.rows))
    for start in range(0, len(v.rows), step):
        in_v, in_s = _inside(v.block(start, start + step), s)
        n_balls += in_v.sum(axis=0)
        n_covered += int(in_v.any(axis=1).sum())
        n_recalled += int(in_s.any(axis=1).sum())
    n, density = len(v.rows), float(n_balls.mean()) / k
    return float((n_balls > 0).mean()), n_recalled / n, density, n_covered / n


def _side(rows: NDArray[np.float32], centre: NDArray[np.float32], k: int) -> _Side:
    centred, radii = rows - centre, np.zeros(len(rows))
    for column in neighbours_of(centred, k)[0].T:  # in float64, of one neighbour at a time
        np.maximum(radii, _squares(rows, rows[column]), out=radii)
    return _Side(rows, centred, np.einsum("nd,nd->n", centred, centred), radii)


def _squares(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared distance of each two rows, the same whichever of them is the first."""
    apart = first.astype(np.float64) - second
    return np.vecdot(apart, apart)


def _inside(v: _Side, s: _Side) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Test which s (columns) lie in the ball of each v (rows), and which v in the ball of each s.

    A product of d numbers is off by at most d roundings of the product of lengths; what is nearer
    to a surface than that is computed again.
    """
    squares_vs = v.lengths[:, None] + s.lengths
    slack_vs = squares_vs * np.float32((s.rows.shape[1] + 8) * np.finfo(np.float32).eps)
    squares_vs -= 2 * (v.centred @ s.centred.T)
    inside = list[NDArray[np.bool_]]()
    for radii in (v.radii[:, None], s.radii[None]):
        beyond_vs = squares_vs - radii.astype(np.float32)
        inside.append(beyond_vs < 0)
        is_open = np.abs(beyond_vs, out=beyond_vs) <= slack_vs
        for row in np.flatnonzero(is_open.any(axis=1)):
            near = is_open[row]
            limits = np.broadcast_to(radii, is_open.shape)[row, near]
            inside[-1][row, near] = _squares(s.rows[near], v.rows[row]) < limits
    return inside[0], inside[1]
