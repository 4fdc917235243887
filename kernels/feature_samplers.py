"""Samplers of features: which samples of one class to take, in the order of choice.

Each takes the features of the n samples of a class, float32 of shape (n, d), and a budget, at most
n, and returns as many positions, int64, without repeats. Of equal samples the first is taken.
"""

import numpy as np
from numpy.typing import NDArray

from coreset.kernels.neighbours import kmeans_centres, neighbours_of, unit_rows
from coreset.kernels.seeds import permutation

Features = NDArray[np.floating]
Positions = NDArray[np.int64]
N_NEIGHBOURS, GAMMA = 5, 0.1
"""Edges of each sample in the graph of `d2`, and fading of its messages with distance."""
_LEAST_DIFFICULTY = 1e-7
_GAINS_AT_ONCE = 64


def moderate(features: Features, budget: int) -> Positions:
    """Take the samples whose distance to the class's centre is nearest to the median distance.

    Moderate coresets (Xia et al., ICLR 2023), which take a range of quantiles around the median.
    """
    distances = np.sqrt(_lengths(_centred(features)))
    return np.argsort(np.abs(distances - np.median(distances)), kind="stable")[:budget]


def k_center(features: Features, budget: int) -> Positions:
    """Take the farthest sample from those taken, again and again, from the medoid on.

    Greedy k-center (Sener and Savarese, ICLR 2018), which starts anywhere. The medoid has the least
    sum of squared distances, so it is the sample nearest to the mean.
    """
    rows = _centred(features)
    lengths = _lengths(rows)
    nearest, chosen = np.full(len(rows), np.inf), [int(lengths.argmin())]
    while len(chosen) < budget:
        last = chosen[-1]
        np.minimum(nearest, lengths + lengths[last] - 2 * (rows @ rows[last]), out=nearest)
        nearest[last] = -np.inf
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


def herding(features: Features, budget: int) -> Positions:
    """Take the sample that brings the mean of those taken nearest to the class's mean, repeatedly.

    Herding (Welling, ICML 2009), without repeats as in iCaRL (Rebuffi et al., CVPR 2017).
    """
    rows = _centred(features)  # so that the sum of those taken should stay at zero
    lengths, total, chosen = _lengths(rows), np.zeros(rows.shape[1], np.float32), list[int]()
    for _ in range(budget):
        misses = lengths + 2 * (rows @ total)
        misses[chosen] = np.inf
        chosen.append(int(misses.argmin()))
        total += rows[chosen[-1]]
    return np.array(chosen)


def facility_location(features: Features, budget: int) -> Positions:
    """Take the sample that adds most to the sum of every sample's largest cosine to one taken.

    Lazy greedy (Minoux 1978) on cosines of at least 0: a gain only falls, so one that was computed
    earlier bounds it, and only the largest bounds are computed anew. Takes 4 n^2 bytes.
    """
    rows = unit_rows(features)
    cosines_nn = np.maximum(rows @ rows.T, 0)
    covered, chosen = np.zeros(len(rows), np.float32), list[int]()
    bounds, at_once = cosines_nn.sum(axis=1), min(len(rows), _GAINS_AT_ONCE)
    while len(chosen) < budget:
        largest = np.argpartition(-bounds, at_once - 1)[:at_once]
        gains = cosines_nn[largest]
        gains -= covered
        bounds[largest] = np.maximum(gains, 0, out=gains).sum(axis=1)
        bounds[chosen] = -np.inf
        if (best := int(bounds.argmax())) in largest:
            chosen.append(best)
            np.maximum(covered, cosines_nn[best], out=covered)
            bounds[best] = -np.inf
    return np.array(chosen)


def d2(features: Features, easiness: NDArray[np.floating], budget: int) -> Positions:
    """Take hard samples that are unlike each other, by messages on a graph of nearest neighbours.

    D2 pruning (Maharana, Yadav and Bansal, ICLR 2024; ``graph-mode sum``, sampling ``weighted``):
    every sample adds its neighbours' difficulty, weighted by ``exp(-distance)``; who is taken
    lowers its neighbours by ``exp(-gamma distance)`` of its own sum. Difficulty is the score scaled
    to [0, 1] within the class, hardest 1: theirs is not scaled.
    """
    n = len(features)
    spread = easiness.max() - easiness.min()
    scaled = (easiness.max() - easiness.astype(np.float64)) / spread if spread > 0 else np.ones(n)
    difficulty = np.maximum(scaled, _LEAST_DIFFICULTY)
    found, apart = neighbours_of(features, min(N_NEIGHBOURS, n - 1))
    rows, columns = np.repeat(np.arange(n), found.shape[1]), found.ravel()
    both_ways = np.concatenate((rows * n + columns, columns * n + rows))
    edges, first = np.unique(both_ways, return_index=True)
    distances = np.tile(apart.ravel(), 2)[first].astype(np.float64)
    rows, columns = np.divmod(edges, n)
    sums = difficulty.copy()
    np.add.at(sums, rows, np.exp(-distances) * difficulty[columns])
    fading, starts = np.exp(-GAMMA * distances), np.searchsorted(rows, np.arange(n + 1))
    chosen = list[int]()
    while len(chosen) < budget:
        best = int(sums.argmax())
        own = slice(starts[best], starts[best + 1])
        sums[columns[own]] -= fading[own] * sums[best]
        chosen.append(best)
        sums[best] = -np.inf
    return np.array(chosen)


def prototypes(features: Features, budget: int, seed: int) -> Positions:
    """Take the sample nearest to each centre of k-means, those of the largest clusters first."""
    centres, cluster_of = kmeans_centres(features, budget, seed)
    largest_first = np.argsort(-np.bincount(cluster_of, minlength=budget), kind="stable")
    lengths, chosen = _lengths(features), list[int]()
    for centre in centres[largest_first]:
        distances = lengths - 2 * (features @ centre)
        distances[chosen] = np.inf
        chosen.append(int(distances.argmin()))
    return np.array(chosen)


def dedup_random(features: Features, budget: int, seed: int, near: float) -> Positions:
    """Draw uniformly, and pass over a sample whose cosine to one already drawn is above ``near``.

    So one of each such pair is dropped, as SemDeDup (Abbas et al. 2023) does within clusters, where
    it keeps the one farthest from the centre. Too few samples that differ are a ValueError.
    """
    rows, chosen = unit_rows(features), list[int]()
    for candidate in permutation(len(rows), seed).tolist():
        if len(chosen) < budget and not (rows[chosen] @ rows[candidate] > near).any():
            chosen.append(candidate)
    if len(chosen) < budget:
        raise ValueError(
            f"only {len(chosen)} of {len(rows)} images differ by more than near {near:g} allows, "
            f"{budget} are asked for; raise --near or lower --ipc"
        )
    return np.array(chosen)


def _centred(features: Features) -> NDArray[np.float32]:
    return features - features.mean(axis=0, dtype=np.float64).astype(np.float32)


def _lengths(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the squared length of each row."""
    return np.einsum("nd,nd->n", rows, rows)
