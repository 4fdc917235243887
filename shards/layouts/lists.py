"""Lists of samples as others keep them: ids or paths, a line each, in text, CSV or NumPy files."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from shards.csv_cells import csv_table, unguarded
from shards.errors import UsageError

CSV_HEADER = ("path", "label", "key")
_ID = re.compile(r"\s*[0-9]{1,18}\s*")
_LINE_BREAKING = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
compute: Any = pyarrow.compute  # which has no types
_Table: TypeAlias = Any  # pyarrow.Table, which has no types
_Entry: TypeAlias = tuple[int, str]


def ids_list(ids: NDArray[np.int64], suffix: str) -> bytes:
    """Content of a list of ids: ``.npy`` is an int64 array, any other suffix one id a line."""
    if suffix == ".npy":
        file = io.BytesIO()
        np.save(file, ids, allow_pickle=False)
        return file.getvalue()
    return "".join(f"{sample}\n" for sample in ids.tolist()).encode()


def paths_list(samples: _Table, suffix: str) -> bytes:
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


def read_list(path: Path, samples: _Table) -> NDArray[np.int64]:
    """Ids of the samples that a list names, int64 in ascending order.

    ``.npy`` holds ids; ``.csv`` has a header and names a sample in its first column; any other
    file names one a line. An entry is a sample id, a sample key, a source path, or a longer path
    whose last two parts are one of these (``train/n02979186/x.JPEG``); a path also matches by the
    sample key that it has, so that an image which was stored under another extension is found.

    Args:
        path: The list.
        samples: Table with the columns ``key`` and ``source``, one row per sample id.

    Raises:
        UsageError: The list is missing, empty or cannot be read; an entry is unknown, out of range
            or names a sample again. The message has the line.
    """
    entries = list(_entries(path))
    if not entries:
        raise UsageError(f"{path} names no samples; list an id, a sample key or a path a line")
    places = _places(entries, samples)
    unit = "entry" if path.suffix == ".npy" else "line"
    first: dict[int, int] = {}
    for number, text in entries:
        place = f"{path} {unit} {number}"
        sample = _sample_of(text, places, len(samples), place)
        if sample in first:
            raise UsageError(
                f"{place} names sample {sample} again ({text!a}, first in {unit} "
                f"{first[sample]}); remove one of them"
            )
        first[sample] = number
    return np.array(sorted(first), dtype=np.int64)


def _entries(path: Path) -> Iterator[_Entry]:
    """Yield (line number from 1, text) of everything that is not blank."""
    if not path.is_file():
        fact = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"list {path} {fact}; name a .txt, .csv or .npy file")
    try:
        match path.suffix:
            case ".npy":
                yield from _array_entries(path)
            case ".csv":
                yield from _csv_entries(path)
            case _:
                lines = path.read_text(encoding="utf-8-sig").split("\n")
                rows = ((number, line.removesuffix("\r")) for number, line in enumerate(lines, 1))
                yield from (row for row in rows if row[1].strip())
    except (ValueError, csv.Error) as error:
        raise UsageError(f"list {path} cannot be read ({error}); save it again") from error


def _array_entries(path: Path) -> Iterator[_Entry]:
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{array.dtype} of shape {array.shape}, expected one row of integers")
    yield from enumerate(map(str, array.tolist()), 1)


def _csv_entries(path: Path) -> Iterator[_Entry]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        next(reader, None)
        for row in reader:
            if row and row[0].strip():
                yield reader.line_num, unguarded(row[0])


def _places(entries: Sequence[_Entry], samples: _Table) -> dict[str, int]:
    """Sample id by every name that the entries may mean; of equal names the source path counts."""
    names = {name for _, text in entries if not _ID.fullmatch(text) for name in _meanings(text)}
    wanted = pa.array(sorted(names), pa.string())
    places: dict[str, int] = {}
    for column in ("key", "source"):
        rows = compute.indices_nonzero(compute.is_in(samples[column], value_set=wanted))
        found = dict(zip(samples[column].take(rows).to_pylist(), rows.to_pylist(), strict=True))
        if len(found) < len(rows):
            raise UsageError(
                f"{len(rows) - len(found)} names of the list mean several samples by their "
                f"{column}; list sample ids"
            )
        places |= found
    return places


def _meanings(text: str) -> list[str]:
    """Names that an entry may mean, nearest first."""
    plain = PurePosixPath(text.strip().replace("\\", "/"))
    last_two = PurePosixPath(*plain.parts[-2:])
    keys = [str(path.with_suffix("")) for path in (plain, last_two) if path.name]
    return [text, str(plain), str(last_two), *keys]


def _sample_of(text: str, places: dict[str, int], n_samples: int, place: str) -> int:
    if _ID.fullmatch(text):
        if int(text) >= n_samples:
            raise UsageError(f"{place}: id must be in [0, {n_samples}), got {text.strip()}")
        return int(text)
    for name in _meanings(text):
        if name in places:
            return places[name]
    raise UsageError(
        f"{place}: {text!a} is no id, sample key or source path of the data set; correct the line "
        "or name the data set that was listed"
    )
