"""Quarantine: limits of refused files, and a list of them that a user can open.

More than max(10, 0.1 %) of all files, more than max(2, 5 %) of a class, or all of a class stop the
packing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import DataError
from coreset.shards.format.dataset import QUARANTINE_SCHEMA
from coreset.shards.format.files import write_atomically
from coreset.shards.format.records import Row
from coreset.shards.tables.csv_cells import csv_table


def limit_of_all(n_found: int) -> int:
    """Return how many refused files are tolerated among ``n_found``."""
    return max(10, n_found // 1000)


def limit_of_class(n_found: int) -> int:
    """Return how many refused files are tolerated in a class of ``n_found``, never all of them."""
    return min(max(2, n_found // 20), max(0, n_found - 1))


def list_path(data: Path) -> Path:
    """Return the list of the refused files of a failed packing, beside its output."""
    return data.with_name(f"{data.name}.quarantine.csv")


def write_list(path: Path, rows: Sequence[Row]) -> None:
    """Write the refused files as CSV."""
    names: Sequence[str] = QUARANTINE_SCHEMA.names
    readable = (row | {"content_hash": (row["content_hash"] or b"").hex()} for row in rows)
    write_atomically(path, csv_table(names, ([row[name] for name in names] for row in readable)))


def require_few(
    rows: Sequence[Row], classes: Sequence[str], class_sizes: NDArray[np.int64], listed: Path
) -> None:
    """Check the refused files against the limits.

    Args:
        rows: Refused files, as in ``QUARANTINE_SCHEMA``.
        classes: Class list.
        class_sizes: Files per class, packed or refused, int64 of shape (classes,).
        listed: File that lists the refused files if they are too many.

    Raises:
        DataError: A limit is exceeded; the list has been written.
    """
    n_found = int(class_sizes.sum())
    refused = np.array([sum(row["class"] == name for row in rows) for name in classes])
    allowed = np.array([limit_of_class(int(size)) for size in class_sizes])
    if len(rows) <= limit_of_all(n_found) and (refused <= allowed).all():
        return
    write_list(listed, rows)
    worst = int(np.argmax(refused / np.maximum(allowed, 0.5)))
    first = next(row for row in rows if row["class"] == classes[worst])
    raise DataError(
        f"{len(rows):,} of {n_found:,} files cannot be packed (limit {limit_of_all(n_found):,}), "
        f"the worst class is {classes[worst]} with {refused[worst]:,} of {class_sizes[worst]:,} "
        f"(limit {allowed[worst]:,}), such as {first['source']} ({first['reason']}); replace or "
        f"remove the files listed in {listed} and pack again"
    )
