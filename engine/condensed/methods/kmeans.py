"""Images that stand for the k-means clusters of a class: their centroids, or their medoids."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from coreset.engine.condensed.methods.base import Method, Part, Pixels, Size, Synthesis, Task
from coreset.engine.runtime.fields import require_at_least, require_class_size
from coreset.kernels.seeds import derived_seed
from coreset.shards.errors import UsageError

Chosen = Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KmeansParameters:
    """Parameters of the methods of k-means."""

    size: Size = 64

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 1)


def _prepare(choose: Chosen, task: Task, parameters: KmeansParameters) -> Synthesis:
    require_class_size(task.dataset, "ipc", task.ipc)
    build = partial(_build, choose, task, parameters.size)
    return Synthesis(parts=task.class_parts(), build=build)


def _build(choose: Chosen, task: Task, size: int, part: Part) -> Pixels:
    from sklearn.cluster import KMeans

    (label,) = part.labels
    with task.spend("classes"):
        rows = _pixels_of_class(task, label, size)
        n_different = len(np.unique(rows, axis=0))
        if n_different < task.ipc:
            name = task.dataset.classes[label]
            raise UsageError(
                f"ipc must be at most the number of different images, got {task.ipc}, but class "
                f"{name} has {n_different} at size {size}; lower --ipc or raise --size"
            )
        seed = derived_seed(task.seed, label) % 2**32
        clusters = KMeans(task.ipc, random_state=seed).fit(rows.astype(np.float32))
        return choose(rows, clusters.cluster_centers_).reshape(1, -1, size, size, 3)


def _pixels_of_class(task: Task, label: int, size: int) -> NDArray[np.uint8]:
    """Decode the images of a class: uint8 of shape (n, size * size * 3)."""
    from coreset.engine.data.geometry import Geometry
    from coreset.engine.data.images import load_into_memory

    ids = np.flatnonzero(task.dataset.labels == label)
    geometry = Geometry(size, size)
    with closing(task.open_stream(task.dataset, geometry, ids)) as stream:
        images_nchw = load_into_memory(stream).images
    task.advance(ids.size)
    return images_nchw.permute(0, 2, 3, 1).reshape(len(ids), -1).numpy()


def _centroids(_rows: NDArray[np.uint8], centres: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(centres).clip(0, 255).astype(np.uint8)


def _medoids(rows: NDArray[np.uint8], centres: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Take the image nearest to each centroid, none of them twice."""
    images, taken = rows.astype(np.float32), list[int]()
    for centre in centres:
        distances = np.square(images - centre).sum(axis=1)
        distances[taken] = np.inf
        taken.append(int(distances.argmin()))
    return rows[taken]


KMEANS = Method(
    summary="the pixels of a class are clustered into --ipc groups, and the centroid of each "
    "becomes an image: the plainest distilled set, a floor for every other",
    prepare=partial(_prepare, _centroids),
    parameters=KmeansParameters,
)
KMEDOID = Method(
    summary="of each of these groups the image next to the centroid: a coreset in disguise, and a "
    "fair baseline for images of that size",
    prepare=partial(_prepare, _medoids),
    parameters=KmeansParameters,
)
