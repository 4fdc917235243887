"""Labels from a table instead of the folders: the files stay where they are, their classes change.

Made for noisy-label benchmarks, whose tables list a path and one column of labels per noise level.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.csv_cells import unguarded
from shards.errors import UsageError
from shards.probe import Refusal, probe
from shards.sources.base import Sample, Source

NO_ROW = -1


def read_labels(path: Path, column: str, source: Source) -> NDArray[np.int64]:
    """Label of every found file, int64 of shape (found,), by ``column`` of a CSV table.

    The table has a header. Its first column names the image: by its sample key, by its path below
    the source folder, or by a longer path whose last two parts are class folder and file
    (``train/n02979186/x.JPEG``). Rows of other images are ignored. A file without a row keeps its
    folder's label if it will be refused as an image anyway.

    Raises:
        UsageError: The table or the column is missing, a value is not a class, two rows contradict
            each other, or an image has no row.
    """
    names = source.names
    positions = _positions_by_name(names, source.keys)
    labels_of_classes = {name: label for label, name in enumerate(source.classes)}
    labels = np.full(len(source), NO_ROW, dtype=np.int64)
    for line, name, value in _rows(path, column):
        position = positions.get(name, positions.get(_last_two_parts(name)))
        if position is None:
            continue
        label = labels_of_classes.get(value)
        if label is None:
            raise UsageError(
                f"{path} line {line}: {column} is {value!r}, which is no class folder of "
                f"{source.place}; correct the table or choose another column"
            )
        if labels[position] not in (NO_ROW, label):
            raise UsageError(
                f"{path} line {line} contradicts an earlier row of {names[position]}; "
                "remove one of them"
            )
        labels[position] = label
    _require_rows(path, labels, source)
    return np.where(labels == NO_ROW, source.labels, labels)


def _positions_by_name(names: Sequence[str], keys: Sequence[str]) -> dict[str, int]:
    by_source = {name: position for position, name in enumerate(names)}
    return {key: position for position, key in enumerate(keys)} | by_source


def _last_two_parts(name: str) -> str:
    return "/".join(name.rsplit("/", 2)[-2:])


def _rows(path: Path, column: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, image name, value)."""
    if not path.is_file():
        raise UsageError(f"labels table {path} does not exist; name a CSV file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if column not in header[1:]:
                raise UsageError(
                    f"{path} has no label column {column!r}; choose one of {', '.join(header[1:])}"
                )
            at = header.index(column, 1)
            for row in reader:
                if len(row) > at:
                    name, value = (unguarded(cell).strip() for cell in (row[0], row[at]))
                    yield reader.line_num, name.replace("\\", "/"), value
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as CSV ({error}); save it as UTF-8 CSV") from error


def _require_rows(path: Path, labels: NDArray[np.int64], source: Source) -> None:
    missing = np.flatnonzero(labels == NO_ROW)
    for position in missing:
        sample = source.sample(int(position))
        if _is_image(source, sample):
            raise UsageError(
                f"{sample.name} has no row in {path} ({missing.size:,} of {len(source):,} files "
                "have none); add the rows or remove the files"
            )


def _is_image(source: Source, sample: Sample) -> bool:
    if sample.row in source.unreadable:
        return False
    try:
        probe(source.contents.read(sample))
    except Refusal:
        return False
    return True
