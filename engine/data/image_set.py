"""Images to read: a packed data set, and the ids of some of its samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset


class ImageSet(Protocol):
    """Some samples of a packed data set, such as an open condensed set."""

    @property
    def dataset(self) -> Dataset:
        """Where the images are stored."""
        ...

    @property
    def ids(self) -> NDArray[np.int64]:
        """Sample ids of ``dataset``, int64 of shape (n,)."""
        ...


Images: TypeAlias = str | Path | ImageSet
Ids: TypeAlias = Sequence[int] | NDArray[np.int64]


def open_images(data: Images, ids: Ids | None) -> tuple[Dataset, NDArray[np.int64] | None]:
    """Open a data set and choose samples of it.

    Args:
        data: Directory of a packed data set, or an open image set.
        ids: Samples to read, instead of all; an image set has its own.

    Returns:
        The data set, and the ids to read, of shape (n,); None means all.

    Raises:
        UsageError: ``ids`` are given beside an image set, or are no ids of the data set, or
            ``data`` is not a packed data set.
        ManifestError: The data set is damaged.
    """
    if isinstance(data, str | Path):
        dataset, chosen = Dataset.open(Path(data)), None if ids is None else np.asarray(ids)
    elif ids is None:
        dataset, chosen = data.dataset, data.ids
    else:
        raise UsageError("ids are given for a set that has its own; open its data set instead")
    if chosen is not None:
        require_ids(chosen, len(dataset))
    return dataset, chosen


def require_ids(ids: NDArray[np.int64], n: int) -> None:
    """Raise ``UsageError`` unless ``ids`` are int64 of one dimension in [0, n)."""
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise UsageError(
            f"ids must be int64 of one dimension, got {ids.dtype} of shape {ids.shape}"
        )
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        raise UsageError(
            f"ids must be in [0, {n}) (samples of the data set), got {ids.min()} .. {ids.max()}: "
            "the selection was made from another data set"
        )
