"""Table that lists image files and their classes: CSV, TSV, parquet, JSON or lines of text.

``shards.tables.table`` chooses the column of the paths, ``shards.sources.columns`` the label.
Relative paths begin at the table's folder. Links are followed.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreset.shards.errors import UsageError
from coreset.shards.sources.base import Source, SourceOptions
from coreset.shards.sources.columns import label_column, require_class_name, row_classes
from coreset.shards.sources.contents import FileContents
from coreset.shards.sources.finder import Finder
from coreset.shards.sources.names import listed_key, whole_key
from coreset.shards.tables.formats import is_text, open_parquet
from coreset.shards.tables.table import Table, read_table
from coreset.shards.tables.vocabulary import class_in

_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".json", ".parquet"})
_MISSING = (-1, 0)
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_Column: TypeAlias = Any  # pyarrow.ChunkedArray, which has no types


class _Row(NamedTuple):
    at: int
    path: str
    class_name: str


def find_table(src: Path, options: SourceOptions | None = None) -> Source:
    """List the images that a table names, sorted by the UTF-8 bytes of their sample keys.

    A key is that of the same file in a folder per class, see ``listed_key``; where different paths
    would have one key, it is the class and the path. Rows of classes that
    are not taken are passed over, and their files may be missing.

    Raises:
        UsageError: The table or a listed file is missing, a column is missing or holds nothing, a
            label has no name, two rows give one path different labels, or two files have one key.
        DataError: A parquet file is damaged.
    """
    options = options or SourceOptions()
    listed = _Listed(read_table(src, "list", _Files(src.parent).named_by), options)
    rows = list(listed.rows())
    if not rows:
        raise UsageError(f"{src} lists no images; add rows of path and label")
    listed.require_agreement(rows)
    chosen = set(options.chosen({row.class_name for row in rows}, src))
    rows = [row for row in rows if row.class_name in chosen]
    sizes, mtimes_ns = listed.sizes_and_times(rows).T
    finder = Finder(place=src, repeats=options.repeats)
    finder.add(
        [row.class_name for row in rows],
        _keys(rows),
        [row.path for row in rows],
        sizes.tolist(),
        mtimes_ns=mtimes_ns.tolist(),
    )
    samples = finder.sorted()
    return samples.source(FileContents(src.parent, samples.mtimes_ns))


def is_table(src: Path) -> bool:
    """Test by its extension whether a file is a table."""
    return src.suffix.lower() in _SUFFIXES and src.is_file()


@dataclass(frozen=True, slots=True)
class _Files:
    root: Path

    def named_by(self, cells: Iterable[str]) -> set[str]:
        """Pick the cells that name a file."""
        return {cell for cell in cells if cell.strip() and self._is_file(cell.strip())}

    def _is_file(self, name: str) -> bool:
        try:
            return (self.root / name).is_file()
        except (OSError, ValueError):
            return False


@dataclass(frozen=True, slots=True)
class _Listed:
    table: Table
    options: SourceOptions

    def rows(self) -> Iterator[_Row]:
        """Yield the rows; every one has a path and a class that can begin a key."""
        rows = self._parquet_rows() if self.table.unit == "row" else self._text_rows()
        for at, path, class_name in rows:
            if not path:
                raise UsageError(f"{self.table.where(at)} has no path; correct the table")
            require_class_name(class_name, self.path)
            yield _Row(at, path.replace("\\", "/"), class_name)

    def require_agreement(self, rows: Sequence[_Row]) -> None:
        """Refuse a path with two labels; one row twice is a repeated key instead."""
        first: dict[str, _Row] = {}
        for row in rows:
            earlier = first.setdefault(row.path, row)
            if earlier.class_name != row.class_name:
                raise UsageError(
                    f"{self.table.where(row.at)} gives {row.path} the class {row.class_name}, "
                    f"{self.table.unit} {earlier.at} the class {earlier.class_name}; remove one of "
                    "them"
                )

    def sizes_and_times(self, rows: Sequence[_Row]) -> NDArray[np.int64]:
        """Look up bytes and modification time (ns) of each listed file, shape (rows, 2)."""
        states = np.array([self._size_and_time(row) for row in rows], dtype=np.int64)
        missing = np.flatnonzero(states[:, 0] == _MISSING[0])
        if missing.size:
            first = rows[missing[0]]
            raise UsageError(
                f"{self.table.where(first.at)}: {first.path} does not exist below "
                f"{self.path.parent} ({missing.size:,} of {len(rows):,} listed files do not); "
                "correct the table or add the files"
            )
        return states

    def _size_and_time(self, row: _Row) -> tuple[int, int]:
        try:
            status = (self.path.parent / row.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return _MISSING
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self.table.where(row.at)}: {row.path!a} cannot be read ({error}); mend that"
            ) from error
        if not S_ISREG(status.st_mode):
            fact = "is a folder" if S_ISDIR(status.st_mode) else "is a device"
            raise UsageError(f"{self.table.where(row.at)}: {row.path} {fact}; name image files")
        return status.st_size, status.st_mtime_ns

    def _text_rows(self) -> Iterator[tuple[int, str, str]]:
        path_at, label_at = self._columns()
        for at, cells in self.table.rows():
            label = cells[label_at].strip() if len(cells) > label_at else ""
            path = cells[path_at].strip() if len(cells) > path_at else ""
            yield at, path, self._class_of(at, label)

    def _columns(self) -> tuple[int, int]:
        """Return the columns of path and label; of two without a header, the other is the label."""
        path_at = self.table.sample_column() if self.table.head else 0
        widths = {len(cells) for _, cells in self.table.head}
        if self.table.head and not self.table.header and widths == {2}:
            return path_at, 1 - path_at
        if self.table.head and not self.table.header:
            raise UsageError(
                f"{self.path} has {self.table.described()}; write a header with path and label"
            )
        return path_at, self.table.header.index(label_column(self.table.header, self.path))

    def _class_of(self, line: int, label: str) -> str:
        if not label:
            raise UsageError(f"{self.table.where(line)} has no label; correct the table")
        if _INTEGER.fullmatch(label):
            return self.options.name_of(int(label), None, self.path)
        return sys.intern(class_in(label))

    def _parquet_rows(self) -> Iterator[tuple[int, str, str]]:
        with open_parquet(self.path) as file:
            classes = row_classes(file, self.path, self.options)
            name = self.table.header[self.table.sample_column()]
            paths = _texts(file.read(columns=[name])[name], name, self.path)
        for row, (path, code) in enumerate(zip(paths, classes.codes.tolist(), strict=True)):
            yield row, path, classes.names[code]

    @property
    def path(self) -> Path:
        return self.table.path


def _keys(rows: Sequence[_Row]) -> list[str]:
    keys = [listed_key(row.path, row.class_name) for row in rows]
    path_of: dict[str, str] = {}
    shared = {
        key
        for key, row in zip(keys, rows, strict=True)
        if path_of.setdefault(key, row.path) != row.path
    }
    return [
        whole_key(row.path, row.class_name) if key in shared else key
        for key, row in zip(keys, rows, strict=True)
    ]


def _texts(column: _Column, name: str, path: Path) -> list[str]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(kind):
        raise UsageError(f"column {name} of {path} holds {kind}, not paths; call the paths path")
    return [text or "" for text in column.to_pylist()]
