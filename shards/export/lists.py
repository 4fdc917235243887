"""Lists of sample ids or source paths in text, CSV and NumPy files."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import UsageError
from coreset.shards.tables.formats import csv_table
from coreset.shards.tables.sample_names import INTEGER, SEVERAL, UNKNOWN, SampleNames
from coreset.shards.tables.table import read_table

_LINE_BREAKING = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_Entry: TypeAlias = tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFormat:
    """Export format without images: a file that lists the samples."""

    summary: str
    columns: tuple[str, ...]
    content: Callable[[ArrowTable, str], bytes]


def ids_list(samples: ArrowTable, suffix: str) -> bytes:
    """Write the ids of samples: ``.npy`` is an array, ``.csv`` has a header, else one id a line."""
    ids: list[int] = samples["id"].to_pylist()
    if suffix == ".npy":
        file = io.BytesIO()
        np.save(file, np.array(ids, np.int64), allow_pickle=False)
        return file.getvalue()
    header = "id\n" if suffix == ".csv" else ""
    return (header + "".join(f"{sample}\n" for sample in ids)).encode()


def paths_list(samples: ArrowTable, suffix: str) -> bytes:
    """Write the source paths of samples: ``.csv`` is a table, any other suffix one path a line."""
    rows = samples.select(["source", "label", "key"]).to_pylist()
    if suffix == ".csv":
        return csv_table(("path", "label", "key"), (row.values() for row in rows))
    for row in rows:
        if _LINE_BREAKING.search(row["source"]):
            raise UsageError(
                f"source path {row['source']!a} of {row['key']!a} does not fit on a line; write a "
                "list that ends in .csv, or use --to ids"
            )
    return "".join(f"{row['source']}\n" for row in rows).encode()


def read_list(path: Path, samples: ArrowTable) -> NDArray[np.int64]:
    """Return the ids of the samples that a list names, int64 in ascending order.

    ``.npy`` holds ids. Any other entry is a sample id, a sample key, a source path, a longer path
    that ends in one of these (``train/n02979186/x.JPEG``), or a file name that only one sample has.
    A path also matches by its sample key, so that an image that was stored with another extension
    is found. ``samples`` has the columns ``key`` and ``source``, one row per sample id. A
    UsageError names the line that is at fault.
    """
    names = SampleNames(samples["key"], samples["source"])
    unit, entries = _entries(path, names)
    if not entries:
        raise UsageError(f"{path} names no samples; list an id, a sample key or a path a line")
    first: dict[int, int] = {}
    for number, text in entries:
        place = f"{path} {unit} {number}"
        sample = int(text) if INTEGER.fullmatch(text) else names.position(text)
        _require_sample(sample, text, len(samples), place)
        if sample in first:
            raise UsageError(
                f"{place} names sample {sample} again ({text!a}, first in {unit} "
                f"{first[sample]}); remove one of them"
            )
        first[sample] = number
    return np.array(sorted(first), dtype=np.int64)


def _entries(path: Path, names: SampleNames) -> tuple[str, list[_Entry]]:
    if path.suffix == ".npy" and path.is_file():
        return "entry", _array_entries(path)
    table = read_table(path, "list", names.known)
    column = table.sample_column()
    entries: list[_Entry] = []
    for at, cells in table.rows():
        if len(cells) <= column or not cells[column].strip():
            raise UsageError(f"{table.where(at)} names no sample; correct the list")
        entries.append((at, cells[column]))
    zero_first = len(entries) > 1 and entries[0][1].strip() == "0"
    if table.may_have_header and zero_first and all(INTEGER.fullmatch(text) for _, text in entries):
        # pandas names a column so that has no name.
        raise UsageError(
            f"{table.where(entries[0][0])} is 0, which may be sample 0 or the header of a column "
            "without a name; write id above the ids, or save them as .txt or .npy"
        )
    return table.unit, entries


def _array_entries(path: Path) -> list[_Entry]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise UsageError(f"list {path} cannot be read ({error}); save it again") from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UsageError(
            f"list {path} holds {array.dtype} of shape {array.shape}, expected one row of "
            "integers; save the sample ids"
        )
    return list(enumerate(map(str, array.tolist()), 1))


def _require_sample(sample: int, text: str, n_samples: int, place: str) -> None:
    if sample >= n_samples:
        raise UsageError(f"{place}: id must be in [0, {n_samples}), got {text.strip()}")
    if sample == SEVERAL:
        raise UsageError(f"{place}: {text!a} names several samples; list sample ids or keys")
    if sample == UNKNOWN:
        raise UsageError(
            f"{place}: {text!a} is no id, sample key or source path of the data set; correct the "
            "line or name the data set that was listed"
        )
