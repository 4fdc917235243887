"""A table that lists image files and their classes: CSV with a header, or parquet.

The path is the column ``path``, or else the first one; relative paths begin at the table's folder.
The label is the first of ``LABEL_COLUMNS`` that is there: a class name, or an integer, which is a
position in a class list. Links are followed.
"""

import csv
import json
import os
import re
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shards.errors import DataError, UsageError
from shards.sources.base import Finder, Source
from shards.sources.folder import FileContents, sample_key
from shards.sources.wanted import Wanted

LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
PATH_COLUMN = "path"
_MISSING = (-1, 0)
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_PAGE_BUFFER_BYTES = 1 << 20
_ParquetFile: TypeAlias = Any  # pyarrow.parquet.ParquetFile, which has no types
_Schema: TypeAlias = Any
_Column: TypeAlias = Any


class RowClasses(NamedTuple):
    """Class of every row of a parquet file."""

    names: list[str]
    """Class names that occur, each once."""
    codes: NDArray[np.int64]
    """Position in ``names`` of each row."""
    listed: tuple[str, ...] = ()
    """The class list that integers were positions in."""


class _Row(NamedTuple):
    at: int
    """Line of a CSV file, row of a parquet file."""
    path: str
    class_name: str


def find_table(src: Path, wanted: Wanted | None = None) -> Source:
    """List the images that a table names, sorted by the UTF-8 bytes of their sample keys.

    A key is that of the same file in a folder per class, see ``listed_key``. Rows of classes that
    are not wanted are passed over, and their files may be missing.

    Raises:
        UsageError: The table or a listed file is missing, a column is missing or holds nothing, a
            label has no name, two rows give one path different labels, or two files have one key.
        DataError: A parquet file is damaged.
    """
    wanted = wanted or Wanted()
    listed = _Table(src, wanted)
    rows = list(listed.rows())
    if not rows:
        raise UsageError(f"{src} lists no images; add rows of path and label")
    listed.require_agreement(rows)
    chosen = set(wanted.chosen({row.class_name for row in rows}, src))
    rows = [row for row in rows if row.class_name in chosen]
    sizes, mtimes_ns = listed.sizes_and_times(rows).T
    finder = Finder(place=src, repeats=wanted.repeats)
    finder.add(
        [row.class_name for row in rows],
        [listed_key(row.path, row.class_name) for row in rows],
        [row.path for row in rows],
        sizes.tolist(),
        mtimes_ns=mtimes_ns.tolist(),
    )
    found = finder.found()
    return found.source(FileContents(src.parent, found.names, found.sizes, found.mtimes_ns))


def is_table(src: Path) -> bool:
    """Whether a file is a table by its extension."""
    return src.suffix.lower() in {".csv", ".parquet"} and src.is_file()


def listed_key(path: str, class_name: str) -> str:
    """Sample key of a listed path: from the folder on that is called like the class.

    It is then the key that the file has in a folder per class. Where no folder of the path is
    called so, the key is the class and the stem. What stands before ``..`` does not count.

    >>> listed_key("/data/train/n01440764/n01440764_10026.JPEG", "n01440764")
    'n01440764/n01440764_10026'
    >>> listed_key("img/1.png", "cat")
    'cat/1'

    Returns:
        The key; empty if ``path`` names no file.
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part not in {"", "."}]
    if ".." in parts:
        parts = parts[len(parts) - parts[::-1].index("..") :]
    if not parts:
        return ""
    folders = parts[:-1]
    inside = folders[folders.index(class_name) + 1 :] if class_name in folders else []
    return sample_key("/".join([class_name, *inside, parts[-1]]))


@contextmanager
def open_parquet(path: Path) -> Generator[_ParquetFile]:
    """Open a parquet file for the length of a block that does nothing but read from it.

    Raises:
        UsageError: It is missing or may not be read.
        DataError: It is damaged.
    """
    try:
        # Column chunks are streamed: read whole, those of images would fill the memory.
        with pq.ParquetFile(
            path, buffer_size=_PAGE_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as file:
            yield file
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        # pyarrow's own text repeats the path.
        fact = os.strerror(error.errno or 0)
        raise UsageError(f"{path} cannot be read ({fact}); mend that") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        fact = str(error).splitlines()[0]
        raise DataError(
            f"{path} is damaged or not a parquet file ({fact}); copy or download it again"
        ) from error


def label_column(columns: Sequence[str], place: Path) -> str:
    """The first of ``LABEL_COLUMNS`` that is there.

    Raises:
        UsageError: None is.
    """
    there = [name for name in LABEL_COLUMNS if name in columns]
    if not there:
        raise UsageError(
            f"{place} has no label column ({', '.join(LABEL_COLUMNS)}), only "
            f"{', '.join(columns) or 'no header'}; rename the column of the labels"
        )
    return there[0]


def row_classes(file: _ParquetFile, path: Path, wanted: Wanted) -> RowClasses:
    """Class of every row by the label column of an open parquet file; reads that column alone.

    Integers are positions in ``wanted.class_names``, else in the names that Hugging Face
    ``datasets`` keeps in the schema.

    Raises:
        UsageError: There is no such column, it holds neither integers nor text, its integers have
            no names, or a class cannot be the beginning of a sample key.
        DataError: A label is missing or not in the range of the class list.
    """
    name = label_column(file.schema_arrow.names, path)
    values = file.read(columns=[name])[name]
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise DataError(
            f"{path} row {row} has no label ({values.null_count:,} rows have none); remove or "
            "label these rows"
        )
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_integer(values.type):
        names = wanted.class_names or stored_class_names(file.schema_arrow, name)
        found = _named(values.cast(pa.int64()).to_numpy(), names, path, wanted)
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        encoded = values.combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy().astype(np.int64)
        found = RowClasses(encoded.dictionary.to_pylist(), codes)
    else:
        raise UsageError(
            f"column {name} of {path} holds {values.type}; write labels as integers or text"
        )
    for class_name in found.names:
        require_class_name(class_name, path)
    return found


def stored_class_names(schema: _Schema, column: str) -> tuple[str, ...] | None:
    """Names of a ``ClassLabel`` column in the metadata that Hugging Face ``datasets`` writes.

    The layout is that of ``datasets``, src/datasets/arrow_writer.py: JSON under ``huggingface``.
    """
    try:
        document = json.loads((schema.metadata or {})[b"huggingface"])
        names = document["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def require_class_name(name: str, place: Path) -> None:
    """Stop if a class name could not be the first part of a sample key.

    Raises:
        UsageError: It is empty, a path, or a special name of folders.
    """
    if "/" in name or name.strip() in {"", ".", ".."}:
        raise UsageError(
            f"class {name!a} of {place} cannot begin a sample key; name the classes otherwise "
            "with --class-names, or in the table"
        )


def _named(
    labels: NDArray[np.int64], names: Sequence[str] | None, path: Path, wanted: Wanted
) -> RowClasses:
    if names is not None:
        _require_range(labels, len(names), path)
    there, codes = np.unique(labels, return_inverse=True)
    found = [wanted.name_of(label, names, path) for label in there.tolist()]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise UsageError(
            f"class {twice[0]} of {path} stands for two labels; name the classes with --class-names"
        )
    return RowClasses(found, codes.astype(np.int64), tuple(names or ()))


def _require_range(labels: NDArray[np.int64], n_classes: int, path: Path) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if outside.size:
        raise DataError(
            f"{path} row {outside[0]} has label {labels[outside[0]]}, not in [0, {n_classes}), the "
            f"range of the class list ({outside.size:,} rows have such labels); remove these rows "
            "or name the right list with --class-names"
        )


@dataclass(frozen=True, slots=True)
class _Table:
    path: Path
    wanted: Wanted

    def rows(self) -> Iterator[_Row]:
        """Yield the rows; every one has a path and a class that can begin a key."""
        rows = self._csv_rows() if self._is_csv else self._parquet_rows()
        for at, path, class_name in rows:
            if not path:
                raise UsageError(f"{self._where(at)} has no path; correct the table")
            require_class_name(class_name, self.path)
            yield _Row(at, path.replace("\\", "/"), class_name)

    def require_agreement(self, rows: Sequence[_Row]) -> None:
        """Refuse a path with two labels; a row that is there twice is a repeated key."""
        first: dict[str, _Row] = {}
        for row in rows:
            earlier = first.setdefault(row.path, row)
            if earlier.class_name != row.class_name:
                raise UsageError(
                    f"{self._where(row.at)} gives {row.path} the class {row.class_name}, "
                    f"{self._unit} {earlier.at} the class {earlier.class_name}; remove one of them"
                )

    def sizes_and_times(self, rows: Sequence[_Row]) -> NDArray[np.int64]:
        """Bytes and modification time (ns) of each listed file, shape (rows, 2)."""
        states = np.array([self._size_and_time(row) for row in rows], dtype=np.int64)
        missing = np.flatnonzero(states[:, 0] == _MISSING[0])
        if missing.size:
            first = rows[missing[0]]
            raise UsageError(
                f"{self._where(first.at)}: {first.path} does not exist below {self.path.parent} "
                f"({missing.size:,} of {len(rows):,} listed files do not); correct the table or "
                "add the files"
            )
        return states

    def _size_and_time(self, row: _Row) -> tuple[int, int]:
        try:
            status = (self.path.parent / row.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return _MISSING
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self._where(row.at)}: {row.path!a} cannot be read ({error}); mend that"
            ) from error
        if not S_ISREG(status.st_mode):
            fact = "is a folder" if S_ISDIR(status.st_mode) else "is a device"
            raise UsageError(f"{self._where(row.at)}: {row.path} {fact}; name image files")
        return status.st_size, status.st_mtime_ns

    def _csv_rows(self) -> Iterator[tuple[int, str, str]]:
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                header = [name.strip() for name in next(reader, [])]
                label_at = header.index(label_column(header, self.path))
                path_at = header.index(PATH_COLUMN) if PATH_COLUMN in header else 0
                for row in reader:
                    if row:
                        label = row[label_at].strip() if len(row) > label_at else ""
                        path = row[path_at].strip() if len(row) > path_at else ""
                        yield reader.line_num, path, self._class_of(reader.line_num, label)
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be read ({error.strerror}); name a readable CSV file"
            ) from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(
                f"{self.path} cannot be read as CSV ({error}); save it as UTF-8 CSV"
            ) from error

    def _class_of(self, line: int, label: str) -> str:
        if not label:
            raise UsageError(f"{self._where(line)} has no label; correct the table")
        if _INTEGER.fullmatch(label):
            return self.wanted.name_of(int(label), None, self.path)
        return sys.intern(label)

    def _parquet_rows(self) -> Iterator[tuple[int, str, str]]:
        with open_parquet(self.path) as file:
            columns = file.schema_arrow.names
            name = PATH_COLUMN if PATH_COLUMN in columns else columns[0]
            classes = row_classes(file, self.path, self.wanted)
            paths = _texts(file.read(columns=[name])[name], name, self.path)
        for row, (path, code) in enumerate(zip(paths, classes.codes.tolist(), strict=True)):
            yield row, path, classes.names[code]

    @property
    def _is_csv(self) -> bool:
        return self.path.suffix.lower() != ".parquet"

    @property
    def _unit(self) -> str:
        return "line" if self._is_csv else "row"

    def _where(self, at: int) -> str:
        return f"{self.path} {self._unit} {at}"


def _texts(column: _Column, name: str, path: Path) -> list[str]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UsageError(f"column {name} of {path} holds {kind}, not paths; call the paths path")
    return [text or "" for text in column.to_pylist()]
