"""Centroids of k-means on the pixels of a class."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.condensed.condensed_set import class_too_small
from coreset.engine.condensed.methods.base import ClassImages, Task
from coreset.engine.runtime.fields import require_at_least
from coreset.kernels.seeds import derived_seed
from coreset.shards.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class KmeansParameters:
    """Parameters of the method kmeans."""

    size: Annotated[int, tyro.conf.arg(help="Side of the images in pixels.")] = 64

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 1)


def kmeans_images(task: Task, parameters: KmeansParameters) -> Iterator[ClassImages]:
    """Cluster the pixels of each class into IPC groups, and yield the centroids.

    Raises:
        UsageError: A class has fewer than IPC images, or fewer that differ.
    """
    dataset, size = task.dataset, parameters.size
    sizes = np.bincount(dataset.labels, minlength=len(dataset.classes))
    if sizes.min() < task.ipc:
        raise class_too_small(dataset, int(sizes.argmin()), int(sizes.min()), task.ipc)
    for label, name in enumerate(dataset.classes):
        pixels = _pixels_of_class(task, label, size)
        rows = pixels.reshape(len(pixels), -1)
        n_different = len(np.unique(rows, axis=0))
        if n_different < task.ipc:
            raise UsageError(
                f"ipc must be at most the number of different images, got {task.ipc}, but class "
                f"{name} has {n_different} at size {size}; lower --ipc or raise --size"
            )
        yield label, _centroids(rows, task.ipc, derived_seed(task.seed, label), size)
        task.advance(len(pixels))


def _pixels_of_class(task: Task, label: int, size: int) -> NDArray[np.uint8]:
    """Decode the images of a class: uint8 of shape (n, size, size, 3)."""
    from coreset.engine.data.geometry import Geometry
    from coreset.engine.data.images import load_into_memory
    from coreset.engine.data.stream import ImageStream

    ids = np.flatnonzero(task.dataset.labels == label)
    geometry = Geometry(size, size)
    with ImageStream(task.dataset, geometry, workers=task.workers, ids=ids) as stream:
        images_nchw = load_into_memory(stream).images
    return images_nchw.permute(0, 2, 3, 1).contiguous().numpy()


def _centroids(rows: NDArray[np.uint8], ipc: int, seed: int, size: int) -> NDArray[np.uint8]:
    from sklearn.cluster import KMeans

    clusters = KMeans(ipc, random_state=seed % 2**32).fit(rows.astype(np.float32))
    centres = np.rint(clusters.cluster_centers_).clip(0, 255)
    return centres.astype(np.uint8).reshape(-1, size, size, 3)
