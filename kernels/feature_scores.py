"""Scores of frozen features that need no training: class-mean margin and kNN label disagreement.

They are the floor for scores of a training: one that finds hard or mislabelled samples no better
has learned nothing that the features did not know. Nothing here is of n x n or a copy of all rows.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from coreset.kernels.neighbours import nearest_others, row_lengths

N_NEIGHBOURS = 10
_LEAST_LENGTH = 1e-9
"""A sum of unit rows that is shorter has no direction: what remains of it is rounding."""
_BLOCK_ROWS = 4096


def class_mean_margins(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], n_classes: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Compute each row's cosine to its own class's mean minus the largest to another's, (n,).

    A mean is that of rows of length 1, scaled to length 1. A row is left out of its own class's
    mean, exactly, else it would vouch for itself. NaN for the only row of a class, and where a mean
    has no direction. Also returns the class of the largest cosine, for NaN the nearest other class:
    the nearest class mean classifier of Mensink et al. (2013), with cosines and leave-one-out.

    Raises:
        ValueError: A row is zero or not finite.
    """
    lengths, n = row_lengths(features).astype(np.float32)[:, None], len(features)
    blocks = [slice(first, first + _BLOCK_ROWS) for first in range(0, n, _BLOCK_ROWS)]
    sums = np.zeros((n_classes, features.shape[1]))
    for block in blocks:
        order = np.argsort(labels[block], kind="stable")
        classes, starts = np.unique(labels[block][order], return_index=True)
        rows = np.divide(features[block], lengths[block], dtype=np.float32)[order]
        sums[classes] += np.add.reduceat(rows, starts, axis=0, dtype=np.float64)
    means = _directions(sums).astype(np.float32)
    margins, predicted = np.empty(n, np.float32), np.empty(n, np.int32)
    for block in blocks:
        rows, own = np.divide(features[block], lengths[block], dtype=np.float32), labels[block]
        to_own = np.einsum("bd,bd->b", rows, _directions(sums[own] - rows))
        cosines, each = rows @ means.T, np.arange(len(rows))
        cosines[each, own] = np.nan
        nearest = np.where(np.isnan(cosines), -np.inf, cosines).argmax(axis=1)
        margins[block] = to_own - cosines[each, nearest]
        predicted[block] = np.where(margins[block] >= 0, own, nearest)
    return margins, predicted


def _directions(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to length 1; NaN for one without direction."""
    lengths = np.sqrt(np.einsum("cd,cd->c", sums, sums))
    return sums / np.where(lengths > _LEAST_LENGTH, lengths, np.nan)[:, None]


def knn_disagreement(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], k: int, device: str = "cpu"
) -> Iterator[NDArray[np.float32]]:
    """Yield the share of other labels among each row's ``k < n`` nearest others, block by block.

    k-Disagreeing Neighbors (Smith, Martinez and Giraud-Carrier 2014), by cosine where they take the
    Euclidean distance. A zero row or one that is not finite is a ValueError.
    """
    first = 0
    for nearest in nearest_others(features, k, device):
        own = labels[first : first + len(nearest), None]
        yield (labels[nearest] != own).mean(axis=1, dtype=np.float32)
        first += len(nearest)
