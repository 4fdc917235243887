"""Distances between two sets of features: of Frechet, as of Gaussians, and of kernel means.

With features of the Inception network they are FID (Heusel et al., NeurIPS 2017) and KID (Binkowski
et al., ICLR 2018). A NaN or infinity in the features, and sets of different widths, are a
ValueError. One image has no covariance: every distance from it is NaN.
"""

from dataclasses import dataclass
from math import nan, sqrt
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

_BLOCK_ROWS, _SUBSET_SIZE = 2048, 1000  # the latter of KID, as in torch-fidelity


@dataclass(slots=True, kw_only=True)
class Moments:
    """Moments of features that come in blocks, of any number of images.

    Blocks, and moments of parts, are merged by equation 2.1 of Chan, Golub and LeVeque (The
    American Statistician 37(3), 1983), here of matrices: a large common offset does not cancel.
    """

    n: int
    """Images."""
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]
    """Sum of ``outer(x - mean, x - mean)``, of shape (d, d): n - 1 times the covariance."""

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """Compute the moments of one array."""
        d = features.shape[1]
        moments = cls(n=0, mean=np.zeros(d), scatter=np.zeros((d, d)))
        moments.add(features)
        return moments

    def add(self, features: Float[np.ndarray, "n d"]) -> None:
        """Take in more features; nothing changes if they are not finite."""
        _require_finite(features)
        for first in range(0, len(features), _BLOCK_ROWS):
            mean, rows = _centred(features[first : first + _BLOCK_ROWS])
            self.merge(Moments(n=len(rows), mean=mean, scatter=rows.T @ rows))

    def merge(self, other: "Moments") -> None:
        """Take in the moments of other images."""
        _require_same_width(self.mean.size, other.mean.size)
        n_before, self.n = self.n, self.n + other.n
        apart, share = other.mean - self.mean, other.n / max(1, self.n)
        self.mean += apart * share
        self.scatter += other.scatter
        self.scatter += np.outer(apart, apart * (n_before * share))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Compute ``|mean_a - mean_b|^2 + Tr A + Tr B - 2 Tr sqrt(A B)`` with covariances A and B.

    The distance of two Gaussians (Dowson and Landau, Journal of Multivariate Analysis 12(3), 1982),
    with covariances over n - 1, as the TTUR code and torch-fidelity have it. They take the root of
    A B, or of its eigenvalues. These are, but for zeros, those of the symmetric F' B F with
    A = F F', where F has the rank of A: there are no rounded zeros with roots of 1e-8.
    """
    import torch  # its eigenvalues take less time than NumPy's

    _require_same_width(a.mean.size, b.mean.size)
    if min(a.n, b.n) < 2:
        return nan
    fewer, more = sorted((a, b), key=lambda each: each.n)
    factor = _cholesky(fewer.scatter)
    squares = torch.linalg.eigvalsh(torch.from_numpy(factor.T @ more.scatter @ factor))
    root = float(squares.clamp(min=0).sqrt().sum()) / sqrt((a.n - 1) * (b.n - 1))
    traces = a.scatter.trace() / (a.n - 1) + b.scatter.trace() / (b.n - 1)
    return _distance(a.mean - b.mean, float(traces), root)


def frechet_of_few(few: Float[np.ndarray, "m d"], many: Float[np.ndarray, "n d"]) -> float:
    """Compute `frechet_distance` without d x d matrices, if either set has at most d images.

    The root's trace is the sum of the singular values of X Y', with centred features X and Y, over
    ``sqrt((m - 1) (n - 1))``. If both sets have more than d images, their moments are used.
    """
    _require_same_width(few.shape[1], many.shape[1])
    if min(len(few), len(many)) > few.shape[1]:
        return frechet_distance(Moments.of(few), Moments.of(many))
    _require_finite(few, many)
    if min(len(few), len(many)) < 2:
        return nan
    (few_mean, x), (many_mean, y) = _centred(few), _centred(many)
    traces = np.vdot(x, x) / (len(x) - 1) + np.vdot(y, y) / (len(y) - 1)
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum() / sqrt((len(x) - 1) * (len(y) - 1))
    return _distance(few_mean - many_mean, float(traces), root)


def kernel_distance(
    a: Float[np.ndarray, "m d"], b: Float[np.ndarray, "n d"], *, seed: int
) -> float:
    """Estimate the squared distance of kernel means (KID) by torch-fidelity, an optional package.

    The mean of 100 unbiased estimates, which may be negative, each of a subset of either set, by
    the kernel ``(x y' / d + 1)^3`` in float32. Subsets have 1,000 images; torch-fidelity refuses
    sets with fewer, here the smaller set then is the size of the subsets.
    """
    import torch
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    _require_same_width(a.shape[1], b.shape[1])
    _require_finite(a, b)
    if (size := min(_SUBSET_SIZE, len(a), len(b))) < 2:
        return nan
    options: Any = {"kid_subset_size": size, "rng_seed": seed % 2**32, "verbose": False}
    tensors = (torch.from_numpy(features.astype(np.float32)) for features in (a, b))
    return kid_features_to_metric(*tensors, **options)[KEY_METRIC_KID_MEAN]


def _distance(apart: NDArray[np.float64], traces: float, root: float) -> float:
    return float(np.maximum(apart @ apart + traces - 2 * root, 0))  # a NaN stays


def _cholesky(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factor a positive semi-definite matrix of rank r into F F', with F of shape (d, r)."""
    from scipy.linalg import get_lapack_funcs

    pstrf: Any = get_lapack_funcs("pstrf", (matrix,))
    lower, pivots, rank, _ = pstrf(matrix, lower=1)
    return np.tril(lower)[np.argsort(pivots), :rank]


def _centred(features: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = features.astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean
    return mean, rows


def _require_finite(*sets: NDArray[np.floating]) -> None:
    for features in sets:
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if bad.size:
            raise ValueError(
                f"features must be finite, got a NaN or infinity at position {bad[0]} "
                f"({bad.size} in all); embed these images again"
            )


def _require_same_width(a: int, b: int) -> None:
    if a != b:
        raise ValueError(f"sets must have features of one width, got {a} and {b}; embed both again")
