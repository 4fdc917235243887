"""Contract of the methods that build synthetic images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.engine.runtime.fields import NoParameters
from coreset.shards.format.dataset import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Synthetic set that a method is asked for."""

    dataset: Dataset
    ipc: int
    seed: int
    workers: int
    """Decoding threads; 0 = one per core."""
    advance: Callable[[int], None]
    """Report how many images of the data set were read since the last call."""


ClassImages: TypeAlias = tuple[int, NDArray[np.uint8]]
"""Label, and images of shape (ipc, h, w, 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Record of a method."""

    summary: str
    images: Callable[[Task, Any], Iterator[ClassImages]]
    """Build the images, class by class, from the task and the method's parameters."""
    parameters: type[Any] = NoParameters
