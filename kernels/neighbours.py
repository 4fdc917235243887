"""Nearest rows and k-means centres of features by FAISS, exactly, on a GPU where it can."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 1 << 28  # of unit rows, twice that at once: a GPU is busy with less
_ROWS_AT_ONCE = 256


def unit_rows(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale rows to length 1, float32; a row without direction is a ValueError."""
    lengths = row_lengths(features).astype(np.float32)  # float64 would take three times as long
    return np.ascontiguousarray(features / lengths[:, None], dtype=np.float32)


def row_lengths(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the length of each row; a row without direction is a ValueError."""
    lengths = np.empty(len(features))
    for start in range(0, len(features), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        wide = features[block].astype(np.float64)  # half the time of a sum in float64 of all
        with np.errstate(over="ignore"):
            lengths[block] = np.sqrt(np.vecdot(wide, wide))
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if bad.size:
        raise ValueError(
            f"features must be finite and not all zero, got length {lengths[bad[0]]} "
            f"at position {bad[0]} ({bad.size} in all); embed these images again"
        )
    return lengths


def nearest(
    queries: NDArray[np.floating],
    base: NDArray[np.floating],
    k: int,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """Find the ``k`` rows of ``base`` with the largest inner products, largest first, exactly.

    By FAISS in float32, on ``device``; of rows that differ less than that, either may come first.
    """
    return _search(queries, base, k, device)[1]


def _search(
    queries: NDArray[np.floating], base: NDArray[np.floating], k: int, device: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the largest inner products of each query, and whose they are; (queries, k) both."""
    import faiss

    metric: dict[str, Any] = {"metric": faiss.METRIC_INNER_PRODUCT}
    if search_device(device) == "cpu":
        return faiss.knn(queries, base, k, **metric)
    number = int(device.partition(":")[2] or 0)
    return faiss.knn_gpu(_gpu_memory(), queries, base, k, device=number, **metric)


def nearest_others(
    features: NDArray[np.floating], k: int, device: str = "cpu"
) -> Iterator[NDArray[np.int64]]:
    """Yield the ``k < n`` rows of largest cosine to each row but itself, largest first, exactly.

    As `nearest` finds them, (block, k) for block after block of ``features``, of which there is no
    copy. A row without direction is a ValueError.
    """
    n, step = len(features), max(1, BLOCK_BYTES // (4 * features.shape[1]))
    lengths = row_lengths(features).astype(np.float32)[:, None]
    blocks = [slice(first, min(n, first + step)) for first in range(0, n, step)]
    for block in blocks:
        queries = np.divide(features[block], lengths[block], dtype=np.float32)
        itself = np.arange(block.start, block.stop)[:, None]
        cosines, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), int)
        for other in blocks:
            base = np.divide(features[other], lengths[other], dtype=np.float32)
            # One more than asked: the row itself may be among them.
            more, at = _search(queries, base, min(k + 1, len(base)), device)
            at = at + other.start
            cosines = np.hstack((cosines, np.where(at == itself, -np.inf, more)))
            found = np.hstack((found, at))
            order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
            cosines = np.take_along_axis(cosines, order, axis=1)
            found = np.take_along_axis(found, order, axis=1)
        yield found


def search_device(device: str) -> str:
    """Return ``device`` if FAISS can search there, else ``cpu``."""
    import faiss

    on_gpu = device.startswith("cuda") and hasattr(faiss, "knn_gpu") and faiss.get_num_gpus()
    return device if on_gpu else "cpu"


@cache
def _gpu_memory() -> Any:  # noqa: ANN401 - FAISS has no types
    import faiss

    memory = faiss.StandardGpuResources()
    memory.setTempMemory(1 << 28)  # of 1.5 GB, which a training beside it would miss
    return memory


def neighbours_of(
    features: NDArray[np.floating], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the ``k < n`` rows nearest to each row, without the row itself, and their distances.

    Both are of shape (n, k); distances are as exact as squared ones in float32.
    """
    import faiss

    rows = np.ascontiguousarray(features, np.float32)
    squares, found = faiss.knn(rows, rows, k + 1)
    is_other = found != np.arange(len(rows))[:, None]
    is_other[is_other.all(axis=1), -1] = False  # more copies than neighbours: one is as good
    distances = np.sqrt(np.maximum(squares[is_other], 0))
    return found[is_other].reshape(len(rows), k), distances.reshape(len(rows), k)


def kmeans_centres(
    features: NDArray[np.floating],
    k: int,
    seed: int,
    *,
    spherical: bool = False,
    device: str = "cpu",
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cluster rows by k-means; return the centres, float32 (k, d), and the centre of each row.

    ``spherical``: rows of length 1, by inner products, with centres of length 1. It starts from
    k-means++, because of centres drawn at random two often share a cluster and never part. On a
    GPU where ``device`` is one that FAISS can use.
    """
    import faiss

    rows = np.ascontiguousarray(features, np.float32)
    start: dict[str, Any] = {}
    if spherical:
        start = {"spherical": True, "init_method": faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS}
    clusters: Any = faiss.Kmeans(
        rows.shape[1], k, seed=seed % 2**31, min_points_per_centroid=1,
        max_points_per_centroid=len(rows), gpu=search_device(device) != "cpu", **start,
    )  # fmt: skip
    clusters.train(rows)
    return clusters.centroids, faiss.knn(rows, clusters.centroids, 1)[1][:, 0]
