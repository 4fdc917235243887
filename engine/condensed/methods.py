"""Ways to make a condensed set: samplers of coresets, synthetic methods, importers of lists.

``coreset select``, ``distill`` and ``ingest`` read choices, fields and help from the registries.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.condensed.condensed_set import class_too_small
from coreset.engine.runtime.fields import NoParameters, require_at_least, require_between
from coreset.kernels.samplers import ClassTooSmallError, Selection, ccs_coreset, random_coreset
from coreset.kernels.seeds import Stream, derived_seed
from coreset.shards.errors import UsageError
from coreset.shards.export.lists import read_list
from coreset.shards.format.classes import recognise
from coreset.shards.format.dataset import Dataset

# The study's Table 6, hard labels, AUM: the best of 0.1, 0.3, 0.5, 0.7, 0.9 by data set and IPC.
_BEST_MISRATIOS: dict[tuple[str | None, int], float] = {
    ("imagenette", 10): 0.7,
    ("imagenette", 50): 0.3,
    ("imagenet-100", 10): 0.9,
    ("imagenet-100", 50): 0.7,
    ("imagenet-1k", 10): 0.9,
    ("imagenet-1k", 50): 0.5,
}


_CLASS_SIZE = 1281  # images of a class of ImageNet, on average


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Samples of a data set that a coreset may be drawn from."""

    dataset: Dataset
    ids: NDArray[np.int64]
    score: str = ""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each candidate."""
        return self.dataset.labels[self.ids]

    @property
    def n_classes(self) -> int:
        """Classes of the data set."""
        return len(self.dataset.classes)


Values: TypeAlias = NDArray[np.floating] | None
"""Easiness (low = hard) or a row of features of each candidate; None if neither is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A way to draw a coreset."""

    summary: str
    draw: Callable[[Candidates, Any, int, int, Any], Selection]
    """Draw from candidates with values by IPC, seed and parameters; ids are positions in them."""
    stream: int
    needs: Literal["nothing", "scores", "features"] = "nothing"
    parameters: type[Any] = NoParameters
    complete: Callable[[Any, Candidates, int], tuple[Any, str]] | None = None
    """Fill in the parameters that were not given; returns them and a line on what was assumed."""


@dataclass(frozen=True, kw_only=True)
class FeatureParameters:
    """Parameters of every sampler by features; those of one inherit from it."""

    features: Annotated[
        Path | None, tyro.conf.arg(help="Features of the data set (`coreset embed`).")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CcsParameters:
    """Parameters of CCS."""

    misratio: Annotated[
        float | None,
        tyro.conf.arg(
            help="Share of the hardest images of each class to cut first (ccs). Default: the "
            "study's Table 6 for aum on ImageNette, ImageNet-100 and ImageNet-1K at IPC 10 and 50; "
            "else by IPC over class size, a rule from that table: 0.9 where 1 of 128 images is "
            "chosen, 0.5 of 26, 0.3 of 10."
        ),
    ] = None
    bins: Annotated[
        int, tyro.conf.arg(help="Equal-width bins over the range of a class's scores (ccs).")
    ] = 50

    def __post_init__(self) -> None:
        require_at_least("bins", self.bins, 1)
        if self.misratio is not None:
            require_between("misratio", self.misratio, 0, 1)


def default_misratio(
    score: str, data: str | None, ipc: int, class_size: float
) -> tuple[float, str]:
    """Take the study's misratio, or else `misratio_by_share` and a line that says so."""
    if score == "aum" and (data, ipc) in _BEST_MISRATIOS:
        return _BEST_MISRATIOS[data, ipc], ""
    value = misratio_by_share(ipc / max(1.0, class_size))
    return value, (
        f"assumed: misratio {value:g}, by a rule from the study's Table 6 for {ipc} of "
        f"{class_size:,.0f} images a class; --misratio sets another"
    )


def misratio_by_share(share: float) -> float:
    """Derive a misratio from IPC over class size, to one decimal, by a rule from the study's table.

    In the mean over its data sets 0.9 is best at 10 of 1,281 images and 0.5 at 50: a line through
    both over the logarithm of the share.
    """
    steps = log(share * _CLASS_SIZE / 10) / log(5)
    return round(min(0.9, max(0.0, 0.9 - 0.4 * steps)), 1)


def complete_ccs(
    parameters: CcsParameters, candidates: Candidates, ipc: int
) -> tuple[CcsParameters, str]:
    """Take the default misratio where none is given; also returns what is assumed."""
    if parameters.misratio is not None:
        return parameters, ""
    data = recognise(candidates.dataset.classes)
    class_size = candidates.ids.size / candidates.n_classes
    value, assumption = default_misratio(candidates.score, data, ipc, class_size)
    return replace(parameters, misratio=value), assumption


SAMPLERS: dict[str, Sampler] = {
    "ccs": Sampler(
        summary="cut the misratio hardest of a class, lay equal-width bins over the other scores, "
        "share the budget over the bins (smallest first), draw at random within each",
        draw=lambda candidates, easiness, ipc, seed, completed: ccs_coreset(
            easiness,
            candidates.labels,
            candidates.n_classes,
            ipc,
            seed,
            misratio=completed.misratio,
            n_bins=completed.bins,
        ),
        stream=Stream.CCS,
        needs="scores",
        parameters=CcsParameters,
        complete=complete_ccs,
    ),
    "random": Sampler(
        summary="draw at random",
        draw=lambda candidates, _values, ipc, seed, _parameters: random_coreset(
            candidates.labels, candidates.n_classes, ipc, seed
        ),
        stream=Stream.RANDOM,
    ),
}


def draw_coreset(
    method: str, candidates: Candidates, values: Values, *, ipc: int, seed: int, parameters: object
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Draw by the command's seed; returns ids, and classes whose misratio had to be lowered."""
    sampler = SAMPLERS[method]
    stream = derived_seed(seed, sampler.stream)
    try:
        selection = sampler.draw(candidates, values, ipc, stream, parameters)
    except ClassTooSmallError as error:
        raise class_too_small(candidates.dataset, error.class_index, error.size, ipc) from error
    return candidates.ids[selection.ids], selection.lowered


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
    sizes = np.bincount(dataset.labels, minlength=len(dataset.classes))
    if sizes.min() < task.ipc:
        raise class_too_small(dataset, int(sizes.argmin()), int(sizes.min()), task.ipc)
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
