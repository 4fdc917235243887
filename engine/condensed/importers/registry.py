"""Registry of the readers of condensed sets that others made."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.engine.condensed.importers.lists import ids_of_list
from coreset.shards.format.dataset import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    """Record of an importer."""

    accepts: Callable[[Path], bool]
    """Test whether a path holds what this importer reads."""
    read: Callable[[Path, Dataset], NDArray[np.int64]]
    """Find the samples of a data set that it names: ascending ids, each once."""


IMPORTERS: dict[str, Importer] = {
    "list": Importer(accepts=lambda _path: True, read=ids_of_list),
}
"""Importers by name. Later ones are asked first; a list is what nothing else is."""


def importer_of(path: Path) -> Importer:
    """Choose the importer of a path."""
    return next(one for one in reversed(IMPORTERS.values()) if one.accepts(path))
