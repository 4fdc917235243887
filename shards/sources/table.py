"""Table that lists image files and their classes: CSV, TSV, parquet, JSON or lines of text.

The label is in the first of ``LABEL_COLUMNS`` that is there: a class name, or an integer, which is
a position in a class list. Relative paths begin at the table's folder. Links are followed.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coreset.shards.arrow import ArrowSchema, ParquetFile
from coreset.shards.errors import DataError, UsageError
from coreset.shards.sources.base import DEFAULTS, Source, SourceOptions
from coreset.shards.sources.finder import FileContents, Finder, Found
from coreset.shards.sources.names import listed_key, whole_key
from coreset.shards.tables.formats import is_text, open_parquet
from coreset.shards.tables.table import LABEL_COLUMNS, Table, class_in, plain_name, read_table

_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".json", ".parquet"})
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


class _Row(NamedTuple):
    at: int
    path: str
    class_name: str


class RowClasses(NamedTuple):
    """Classes of the rows of a parquet file."""

    names: list[str]
    codes: NDArray[np.int64]
    """Position in ``names`` by row."""
    listed: tuple[str, ...] = ()
    """Class list in which integer labels are positions."""

    def of(self, row: int) -> str:
        """Return the class of a row."""
        return self.names[self.codes[row]]


def is_table(src: Path) -> bool:
    """Test by its extension whether a file is a table."""
    return src.suffix.lower() in _SUFFIXES and src.is_file()


def find_table(src: Path, options: SourceOptions = DEFAULTS) -> Source:
    """List the images that a table names, sorted by the UTF-8 bytes of their sample keys.

    A key is that of the same file in a folder per class, see ``listed_key``; where different paths
    would have one key, it is the class and the path. Rows of classes that are not taken are passed
    over, and their files may be missing.
    """
    table = read_table(src, "list", partial(_files_named_by, src.parent))
    rows = list(_rows(table, options))
    _require_agreement(table, rows)
    chosen = set(options.chosen({row.class_name for row in rows}, src))
    rows = [row for row in rows if row.class_name in chosen]
    listed = zip(rows, _keys(rows), _states(table, rows), strict=True)
    finder = Finder(place=src, repeats=options.repeats)
    finder.add(Found(row.class_name, key, row.path, *state) for row, key, state in listed)
    return finder.source(partial(FileContents, src.parent))


def _files_named_by(root: Path, cells: Iterable[str]) -> set[str]:
    named: set[str] = set()
    for cell in cells:
        with suppress(OSError, ValueError):
            named |= {cell} if cell.strip() and (root / cell.strip()).is_file() else set()
    return named


def _rows(table: Table, options: SourceOptions) -> Iterator[_Row]:
    """Yield the rows; every one has a path and a class that can begin a key."""
    read = _parquet_rows if table.unit == "row" else _text_rows
    for at, path, class_name in read(table, options):
        if not path:
            raise UsageError(f"{table.where(at)} has no path; correct the table")
        _require_class_name(class_name, table.path)
        yield _Row(at, path.replace("\\", "/"), class_name)


def _parquet_rows(table: Table, options: SourceOptions) -> Iterator[_Row]:
    name = table.header[table.sample_column()]
    with open_parquet(table.path) as file:
        classes = row_classes(file, table.path, options)
        column = file.read(columns=[name])[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(kind):
        raise UsageError(
            f"column {name} of {table.path} holds {kind}, not paths; call the paths path"
        )
    for row, path in enumerate(column.to_pylist()):
        yield _Row(row, path or "", classes.of(row))


def _text_rows(table: Table, options: SourceOptions) -> Iterator[_Row]:
    path_at, label_at = _columns(table)
    for at, cells in table.rows():
        label = cells[label_at].strip() if len(cells) > label_at else ""
        path = cells[path_at].strip() if len(cells) > path_at else ""
        if not label:
            raise UsageError(f"{table.where(at)} has no label; correct the table")
        if _INTEGER.fullmatch(label):
            yield _Row(at, path, options.name_of(int(label), None, table.path))
        else:
            yield _Row(at, path, sys.intern(class_in(label)))


def _columns(table: Table) -> tuple[int, int]:
    """Return the columns of path and label; of two without a header, the other is the label."""
    path_at = table.sample_column() if table.head else 0
    if table.head and not table.header:
        if {len(cells) for _, cells in table.head} == {2}:
            return path_at, 1 - path_at
        raise UsageError(
            f"{table.path} has {table.described()}; write a header with path and label"
        )
    return path_at, table.header.index(_label_column(table.header, table.path))


def _require_agreement(table: Table, rows: Sequence[_Row]) -> None:
    """Refuse a path with two labels; one row twice is a repeated key instead."""
    first: dict[str, _Row] = {}
    for row in rows:
        earlier = first.setdefault(row.path, row)
        if earlier.class_name != row.class_name:
            raise UsageError(
                f"{table.where(row.at)} gives {row.path} the class {row.class_name}, {table.unit} "
                f"{earlier.at} the class {earlier.class_name}; remove one of them"
            )


def _states(table: Table, rows: Sequence[_Row]) -> list[tuple[int, int]]:
    states: list[tuple[int, int]] = []
    missing: list[_Row] = []
    for row in rows:
        try:
            status = (table.path.parent / row.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            missing.append(row)
            continue
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{table.where(row.at)}: {row.path!a} cannot be read ({error}); mend that"
            ) from error
        if not S_ISREG(status.st_mode):
            raise UsageError(f"{table.where(row.at)}: {row.path} is no file; name image files")
        states.append((status.st_size, status.st_mtime_ns))
    if missing:
        raise UsageError(
            f"{table.where(missing[0].at)}: {missing[0].path} does not exist below "
            f"{table.path.parent} ({len(missing):,} of {len(rows):,} listed files do not); correct "
            "the table or add the files"
        )
    return states


def _keys(rows: Sequence[_Row]) -> list[str]:
    keys = [listed_key(row.path, row.class_name) for row in rows]
    pairs = list(zip(keys, rows, strict=True))
    path_of: dict[str, str] = {}
    shared = {key for key, row in pairs if path_of.setdefault(key, row.path) != row.path}
    return [whole_key(row.path, row.class_name) if key in shared else key for key, row in pairs]


def row_classes(file: ParquetFile, path: Path, options: SourceOptions) -> RowClasses:
    """Read the classes of all rows from the label column of an open parquet file.

    Integers are positions in ``options.class_names``, else in the names that Hugging Face
    ``datasets`` keeps in the schema. Every row must have a class that can begin a sample key.
    """
    name = _label_column(file.schema_arrow.names, path)
    labels = file.read(columns=[name])[name]
    if labels.null_count:
        row = int(np.flatnonzero(labels.is_null().to_numpy())[0])
        raise DataError(
            f"{path} row {row} has no label ({labels.null_count:,} rows have none); remove or "
            "label these rows"
        )
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_integer(labels.type):
        names = options.class_names or _stored_class_names(file.schema_arrow, name)
        classes = _numbered(labels.cast(pa.int64()).to_numpy(), names, path, options)
    elif is_text(labels.type):
        # Views cannot be encoded.
        encoded = labels.cast(pa.large_string()).combine_chunks().dictionary_encode()
        class_of_text = np.array([class_in(text) for text in encoded.dictionary.to_pylist()], "O")
        names, of_text = np.unique(class_of_text, return_inverse=True)
        classes = RowClasses(names.tolist(), of_text[encoded.indices.to_numpy()])
    else:
        raise UsageError(
            f"column {name} of {path} holds {labels.type}; write labels as integers or text"
        )
    for class_name in classes.names:
        _require_class_name(class_name, path)
    return classes


def _label_column(columns: Sequence[str], place: Path) -> str:
    for name in map(plain_name, LABEL_COLUMNS):
        spellings = [column for column in columns if plain_name(column) == name]
        if len(spellings) > 1:
            raise UsageError(f"{place} has the columns {', '.join(spellings)}; rename one of them")
        if spellings:
            return spellings[0]
    raise UsageError(
        f"{place} has no label column ({', '.join(LABEL_COLUMNS)}), only "
        f"{', '.join(columns) or 'no header'}; rename the column of the labels"
    )


def _require_class_name(name: str, place: Path) -> None:
    if "/" in name or name.strip() in {"", ".", ".."}:
        raise UsageError(
            f"class {name!a} of {place} cannot begin a sample key; name the classes otherwise "
            "with --class-names, or in the table"
        )


def _stored_class_names(schema: ArrowSchema, column: str) -> tuple[str, ...] | None:
    """Read the names of a ``ClassLabel`` column, which `datasets` stores as JSON in the schema."""
    try:
        document = json.loads((schema.metadata or {})[b"huggingface"])
        names = document["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _numbered(
    labels: NDArray[np.int64], names: Sequence[str] | None, path: Path, options: SourceOptions
) -> RowClasses:
    if names is not None:
        outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if outside.size:
            raise DataError(
                f"{path} row {outside[0]} has label {labels[outside[0]]}, not in [0, {len(names)}),"
                f" the range of the class list ({outside.size:,} rows have such labels); remove "
                "these rows or name the right list with --class-names"
            )
    numbers, codes = np.unique(labels, return_inverse=True)
    classes = [options.name_of(label, names, path) for label in numbers.tolist()]
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise UsageError(
            f"class {twice[0]} of {path} stands for two labels; name the classes with --class-names"
        )
    return RowClasses(classes, codes, tuple(names or ()))
