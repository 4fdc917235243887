"""Lists of sample ids, keys or paths."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.shards.export.lists import read_list
from coreset.shards.format.dataset import Dataset


def ids_of_list(path: Path, dataset: Dataset) -> NDArray[np.int64]:
    """Find the samples that a list names.

    Raises:
        UsageError: The list cannot be read, or names an unknown sample or one twice.
    """
    return read_list(path, dataset.table(["key", "source"]))
