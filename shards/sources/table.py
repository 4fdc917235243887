"""A table that lists image files and their classes: CSV with a header, or parquet.

The path is the column ``path``, or else the first one; relative paths begin at the table's folder.
Links are followed. For the label see ``shards.sources.columns``.
"""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shards.errors import UsageError
from shards.sources.base import Finder, Source
from shards.sources.columns import (
    is_text,
    label_column,
    listed_key,
    open_parquet,
    require_class_name,
    row_classes,
)
from shards.sources.folder import FileContents
from shards.sources.wanted import Wanted

PATH_COLUMN = "path"
_MISSING = (-1, 0)
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_Column: TypeAlias = Any  # pyarrow.ChunkedArray, which has no types


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
    return found.source(FileContents(src.parent, found.mtimes_ns))


def is_table(src: Path) -> bool:
    """Whether a file is a table by its extension."""
    return src.suffix.lower() in {".csv", ".parquet"} and src.is_file()


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
    if not is_text(kind):
        raise UsageError(f"column {name} of {path} holds {kind}, not paths; call the paths path")
    return [text or "" for text in column.to_pylist()]
