"""Lists of samples as others keep them: ids or paths, a line each, in text, CSV or NumPy files."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import UsageError
from coreset.shards.tables.csv_cells import csv_table
from coreset.shards.tables.sample_names import SEVERAL, UNKNOWN, SampleNames
from coreset.shards.tables.table import Table, read_table
from coreset.shards.tables.vocabulary import INTEGER

CSV_HEADER = ("path", "label", "key")
_LINE_BREAKING = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_Samples: TypeAlias = Any  # pyarrow.Table, which has no types
_Entry: TypeAlias = tuple[int, str]


def ids_list(ids: NDArray[np.int64], suffix: str) -> bytes:
    """Content of a list of ids: ``.npy`` is an int64 array, any other suffix one id a line.

    ``.csv`` has a header, without which the first id might be one.
    """
    if suffix == ".npy":
        file = io.BytesIO()
        np.save(file, ids, allow_pickle=False)
        return file.getvalue()
    lines = [*(["id"] if suffix == ".csv" else []), *ids.tolist()]
    return "".join(f"{line}\n" for line in lines).encode()


def paths_list(samples: _Samples, suffix: str) -> bytes:
    """Content of a list of source paths, in the order of the rows of a sample table.

    ``.csv`` is a table of path, label (position in the class list) and sample key; any other suffix
    is one path a line.

    Raises:
        UsageError: A path holds a line break, which a line cannot.
    """
    rows = samples.select(["source", "label", "key"]).to_pylist()
    if suffix == ".csv":
        return csv_table(CSV_HEADER, (row.values() for row in rows))
    for row in rows:
        if _LINE_BREAKING.search(row["source"]):
            raise UsageError(
                f"source path {row['source']!a} of {row['key']!a} does not fit on a line; write a "
                "list that ends in .csv, or use --to ids"
            )
    return "".join(f"{row['source']}\n" for row in rows).encode()


def read_list(path: Path, samples: _Samples) -> NDArray[np.int64]:
    """Ids of the samples that a list names, int64 in ascending order.

    ``.npy`` holds ids; ``shards.tables.table`` reads anything else. An entry is a sample id, a
    sample key, a source path, a longer path that ends in one of these (``train/n02979186/x.JPEG``),
    or the name of a file that only one sample has; a path also matches by the sample key that it
    has, so that an image which was stored under another extension is found.

    Args:
        path: The list.
        samples: Table with the columns ``key`` and ``source``, one row per sample id.

    Raises:
        UsageError: The list is missing, empty or cannot be read; an entry is unknown, out of range
            or names a sample again. The message has the line.
    """
    names = SampleNames(samples["key"], samples["source"])
    unit, entries = _entries(path, names)
    if not entries:
        raise UsageError(f"{path} names no samples; list an id, a sample key or a path a line")
    texts = [text for _, text in entries]
    named = iter(names.positions([text for text in texts if not INTEGER.fullmatch(text)]).tolist())
    first: dict[int, int] = {}
    for number, text in entries:
        place = f"{path} {unit} {number}"
        sample = int(text) if INTEGER.fullmatch(text) else next(named)
        _require_sample(sample, text, len(samples), place)
        if sample in first:
            raise UsageError(
                f"{place} names sample {sample} again ({text!a}, first in {unit} "
                f"{first[sample]}); remove one of them"
            )
        first[sample] = number
    return np.array(sorted(first), dtype=np.int64)


def _entries(path: Path, names: SampleNames) -> tuple[str, list[_Entry]]:
    """Read what entries are counted by, and (number, text) of each."""
    if path.suffix == ".npy" and path.is_file():
        return "entry", _array_entries(path)
    table = read_table(path, "list", names.known)
    column = table.sample_column()
    entries: list[_Entry] = []
    for at, cells in table.rows():
        if len(cells) <= column or not cells[column].strip():
            raise UsageError(f"{table.where(at)} names no sample; correct the list")
        entries.append((at, cells[column]))
    _require_no_header(table, entries)
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


def _require_no_header(table: Table, entries: Sequence[_Entry]) -> None:
    """Refuse 0 above other ids in a CSV file, which pandas writes above a column without a name."""
    zero_first = len(entries) > 1 and entries[0][1].strip() == "0"
    if table.may_have_header and zero_first and all(INTEGER.fullmatch(text) for _, text in entries):
        raise UsageError(
            f"{table.where(entries[0][0])} is 0, which may be sample 0 or the header of a column "
            "without a name; write id above the ids, or save them as .txt or .npy"
        )


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
