"""Condensed sets that no sampler draws: synthetic images, and lists of others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.runtime.fields import NoParameters, require_at_least, require_class_size
from coreset.kernels.seeds import derived_seed
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.tables.sample_names import read_list


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Synthetic set that a method is asked for."""

    dataset: Dataset
    ipc: int
    seed: int
    workers: int
    advance: Callable[[int], None]
    """Report how many images of the data set were read since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Record of a method."""

    summary: str
    images: Callable[[Task, Any], Iterator[tuple[int, NDArray[np.uint8]]]]
    """Yield the label of each class, and its images of shape (ipc, h, w, 3), by parameters."""
    parameters: type[Any] = NoParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class KmeansParameters:
    """Parameters of the method kmeans."""

    size: Annotated[int, tyro.conf.arg(help="Side of the images in pixels.")] = 64

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 1)


def _kmeans_images(
    task: Task, parameters: KmeansParameters
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    from sklearn.cluster import KMeans

    dataset, size = task.dataset, parameters.size
    require_class_size(dataset, "ipc", task.ipc)
    for label, name in enumerate(dataset.classes):
        rows = _pixels_of_class(task, label, size)
        n_different = len(np.unique(rows, axis=0))
        if n_different < task.ipc:
            raise UsageError(
                f"ipc must be at most the number of different images, got {task.ipc}, but class "
                f"{name} has {n_different} at size {size}; lower --ipc or raise --size"
            )
        seed = derived_seed(task.seed, label) % 2**32
        clusters = KMeans(task.ipc, random_state=seed).fit(rows.astype(np.float32))
        centres = np.rint(clusters.cluster_centers_).clip(0, 255).astype(np.uint8)
        yield label, centres.reshape(-1, size, size, 3)
        task.advance(len(rows))


def _pixels_of_class(task: Task, label: int, size: int) -> NDArray[np.uint8]:
    """Decode the images of a class: uint8 of shape (n, size * size * 3)."""
    from coreset.engine.data.geometry import Geometry
    from coreset.engine.data.images import load_into_memory
    from coreset.engine.data.stream import ImageStream

    ids = np.flatnonzero(task.dataset.labels == label)
    geometry = Geometry(size, size)
    with ImageStream(task.dataset, geometry, workers=task.workers, ids=ids) as stream:
        images_nchw = load_into_memory(stream).images
    return images_nchw.permute(0, 2, 3, 1).reshape(len(ids), -1).numpy()


METHODS: dict[str, Method] = {
    "kmeans": Method(
        summary="the pixels of a class are clustered into --ipc groups, and the centroid of each "
        "becomes an image: the plainest distilled set, a floor for every other",
        images=_kmeans_images,
        parameters=KmeansParameters,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    """Record of a reader of condensed sets that others made."""

    accepts: Callable[[Path], bool]
    read: Callable[[Path, Dataset], NDArray[np.int64]]


IMPORTERS: dict[str, Importer] = {
    "list": Importer(
        accepts=lambda _path: True,
        read=lambda path, dataset: read_list(path, dataset.table(["key", "source"])),
    )
}
"""Importers by name. Later ones are asked first; a list is what nothing else is."""


def read_ids(path: Path, dataset: Dataset) -> NDArray[np.int64]:
    """Read a condensed set that others made by the importer of its path."""
    importer = next(known for known in reversed(IMPORTERS.values()) if known.accepts(path))
    return importer.read(path, dataset)
