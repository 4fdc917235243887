"""Condensed sets that others made, read as lists of samples of a packed data set."""

import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import CoresetError, LockedError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.tables.sample_names import read_list


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


def unequal_classes(src: Path, classes: Sequence[str], sizes: NDArray[np.int64]) -> UsageError:
    """Make the error of a set with more images of some classes than of others."""
    few, many = int(sizes.argmin()), int(sizes.argmax())
    return UsageError(
        f"every class must have as many images in {src}, got {sizes[few]} of class {classes[few]} "
        f"and {sizes[many]} of {classes[many]}; mend the list or the set, or use --allow-short"
    )


@contextmanager
def own_spool(src: Path, spool: Path) -> Generator[None]:
    """Remove a folder for copies of ``src`` at the end, unless another process writes there.

    Errors name what the user named, and options of `coreset ingest` for those of `coreset pack`.
    """
    try:
        yield
    except LockedError:
        raise
    except CoresetError as error:
        shutil.rmtree(spool, ignore_errors=True)
        text = str(error).replace(str(spool), str(src)).replace(spool.name, src.name)
        text = text.replace(", or keep the first with --duplicates first", "")
        error.args = (text.replace("--class-names", "--classes"),)
        raise
    except BaseException:
        shutil.rmtree(spool, ignore_errors=True)
        raise
    shutil.rmtree(spool, ignore_errors=True)
