"""Interface of the methods that build images: a task, and its synthesis in parts."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import Stopwatch
from coreset.engine.runtime.fields import NoParameters
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.engine.condensed.condensed_set import CondensedSet
    from coreset.engine.data.geometry import Geometry
    from coreset.engine.data.stream import ImageStream
    from coreset.engine.models.teachers import Teacher

Pixels: TypeAlias = NDArray[np.uint8]
CostPart: TypeAlias = Literal["assets", "passes", "classes", "images"]
"""Quantity that seconds of a construction grow with: none, images of the data set, the number of
classes, the number of images of the set."""


Size: TypeAlias = Annotated[
    int,
    tyro.conf.arg(
        help="Side of the images in pixels.",
        help_behavior_hint="(default: 64 for kmeans and kmedoid, 224 for the others)",
    ),
]


class Part(NamedTuple):
    """Images that are built together, and found again by a run that continues."""

    labels: tuple[int, ...]
    slots: range

    @property
    def n_images(self) -> int:
        """Number of its images."""
        return len(self.labels) * len(self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Synthetic set that a method is asked for."""

    dataset: Dataset
    ipc: int
    seed: int
    open_stream: Callable[[Dataset, "Geometry", NDArray[np.int64] | None], "ImageStream"]
    """Open a stream of decoded images, of the given samples or of all."""
    workers: int
    """Threads that decode; 0: one per core."""
    advance: Callable[[int], None]
    """Count image passes: images that were read, or that a network saw."""
    teachers: Sequence["Teacher"] = ()
    """Networks on the device that the images are built on."""
    patches: "CondensedSet | None" = None
    """Set of mosaics that a method begins with: at least --ipc images of every class."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds by `CostPart`, for the ledger."""

    @contextmanager
    def spend(self, part: CostPart) -> Generator[None]:
        """Count the seconds of the block as a part of the cost."""
        watch = Stopwatch()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + watch.seconds

    def class_parts(self) -> list[Part]:
        """Return one part for each class."""
        return [Part((label,), range(self.ipc)) for label in range(len(self.dataset.classes))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """A task that is ready to be done, part by part and in any order."""

    parts: Sequence[Part]
    build: Callable[[Part], Pixels]
    """Return images of shape (labels, slots, h, w, 3), the same whatever was built before."""
    extension: Literal["png", "jpg"] = "png"
    """Images are stored so: PNG, or JPEG of quality 75 as published sets are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Record of a method."""

    summary: str
    prepare: Callable[[Task, Any], Synthesis]
    """Check the task, by parameters, before anything is built."""
    parameters: type[Any] = NoParameters
    teachers: range = range(1)
    """Numbers of teachers that it takes; by default none."""
    patches: bool = False
    """It begins with mosaics of real images."""
