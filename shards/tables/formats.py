"""Rows of text, parquet and JSON files, whatever they mean, and the encoding of CSV files.

Text that a spreadsheet would run as a formula (CWE 1236) gets an apostrophe in front, see
docs/packing.md; reading takes it off.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import pyarrow as pa
import pyarrow.parquet as pq

from coreset.shards.arrow import ArrowType, ParquetFile
from coreset.shards.errors import DataError, UsageError

SEPARATED = frozenset({".csv", ".tsv"})
_LIST_KEYS = ("class_names", "classes", "names", "categories", "ids", "indices", "paths", "samples")
_HEAD_CHARACTERS = 1 << 16
_LINE_CHARACTERS = 1 << 20
_JSON_BYTES = 1 << 28
_PAGE_BUFFER_BYTES = 1 << 20
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-](inf|nan)")


class Row(NamedTuple):
    """Row that is not blank."""

    at: int
    """Line of a text file from 1, row of a parquet file from 0, entry of a JSON file from 1."""
    cells: Sequence[str]


Columns: TypeAlias = tuple[str, ...]
Rows: TypeAlias = Callable[[], Iterator[Row]]


@contextmanager
def open_parquet(path: Path) -> Generator[ParquetFile]:
    """Open a parquet file for a block that does nothing but read from it.

    A UsageError says that it is missing or may not be read, a DataError that it is damaged.
    """
    try:
        # Column chunks are streamed: read whole, those of images would fill the memory.
        with pq.ParquetFile(
            path, buffer_size=_PAGE_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as file:
            yield file
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        # pyarrow's own text repeats the path.
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"{path} cannot be read ({reason}); mend that") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path} is damaged or not a parquet file ({reason}); copy or download it again"
        ) from error


def is_text(kind: ArrowType) -> bool:
    """Test whether a column of this type holds text."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def parquet_rows(path: Path) -> tuple[Columns, Rows]:
    """Read names and rows of the columns of text and integers; null is an empty cell."""

    def is_scalar(kind: ArrowType) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return is_text(kind) or pa.types.is_integer(kind)

    with open_parquet(path) as file:
        columns = [field.name for field in file.schema_arrow if is_scalar(field.type)]

    def rows() -> Iterator[Row]:
        number = 0
        with open_parquet(path) as file:
            for batch in file.iter_batches(columns=columns, use_threads=False):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    yield Row(number, ["" if value is None else str(value) for value in values])
                    number += 1

    return tuple(columns), rows


@contextmanager
def reading(path: Path, what: str) -> Generator[None]:
    """Refuse a file that a block cannot read, or that is not the text it should be."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read ({error.strerror}); mend that") from error
    except (UnicodeDecodeError, csv.Error) as error:
        kind = "CSV" if path.suffix.lower() in SEPARATED else "text"
        raise UsageError(
            f"{what} {path} cannot be read as {kind} ({error}); save it as UTF-8 text"
        ) from error


def json_rows(path: Path, what: str) -> tuple[Columns, Rows]:
    """Read the header, if there is one, and the rows of a list, a map or a frame of pandas."""
    with reading(path, what), path.open("rb") as file:
        stored = file.read(_JSON_BYTES)
    try:
        # A file that is longer is cut, and then no whole document.
        document = json.loads(stored.decode("utf-8-sig"), object_pairs_hook=_unrepeated)
        header, rows = _json_rows(document)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{what} {path} cannot be read as JSON ({error}); write a list, a map, or one entry a "
            "line in a .txt file"
        ) from error
    return header, lambda: iter(rows)


def text_head(path: Path, what: str) -> str:
    """Read the first lines of a text file in UTF-8."""
    with reading(path, what), path.open(newline="", encoding="utf-8-sig") as file:
        text = file.read(_HEAD_CHARACTERS)
    whole, line_break, _ = text.rpartition("\n")
    return whole + line_break if line_break and len(text) == _HEAD_CHARACTERS else text


def text_rows(path: Path, what: str, separator: str) -> Iterator[Row]:
    """Yield the rows of a text file in UTF-8 as ``split_rows`` does."""

    def lines() -> Iterator[str]:
        while line := file.readline(_LINE_CHARACTERS + 1):
            if len(line) > _LINE_CHARACTERS:
                raise csv.Error(f"a line of more than {_LINE_CHARACTERS:,} characters")
            yield line

    with reading(path, what), path.open(newline="", encoding="utf-8-sig") as file:
        yield from split_rows(lines(), separator)


def split_rows(lines: Iterable[str], separator: str) -> Iterator[Row]:
    """Yield the rows that are not blank, split at blanks, at another separator, or ("") not at all.

    Cells that were guarded against spreadsheets come unguarded.
    """
    if separator in {"", " "}:
        for number, line in enumerate(lines, 1):
            text = line.rstrip("\r\n")
            if text.strip():
                yield Row(number, text.split() if separator else [text])
        return
    reader = csv.reader(lines, delimiter=separator)
    for cells in reader:
        if any(map(str.strip, cells)):
            yield Row(reader.line_num, list(map(unguarded, cells)))


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!a} twice in one map")
    return fields


def _json_rows(document: object) -> tuple[Columns, list[Row]]:
    """Return header and rows of a list, of a map, or of a frame as pandas writes it."""
    if isinstance(document, dict):
        return _map_rows(cast("dict[str, object]", document))
    entries = _as_list(document)
    if entries and all(isinstance(entry, dict) for entry in entries):
        records = cast("list[dict[str, object]]", entries)
        header = tuple(dict.fromkeys(name for record in records for name in record))
        return header, _numbered([record.get(name) for name in header] for record in records)
    return (), _numbered(map(_as_list, entries))


def _map_rows(fields: dict[str, object]) -> tuple[Columns, list[Row]]:
    columns = list(fields.values())
    if columns and all(isinstance(column, dict) for column in columns):
        frame = cast("list[dict[str, object]]", columns)
        if any(column.keys() != frame[0].keys() for column in frame):
            raise ValueError("maps with different entries")
        return tuple(fields), _numbered([column[at] for column in frame] for at in frame[0])
    listed = [name for name in _LIST_KEYS if isinstance(fields.get(name), list)]
    if listed:
        return _json_rows(fields[listed[0]])
    return (), _numbered([key, *_as_list(value)] for key, value in fields.items())


def _as_list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else [value]


def _numbered(rows: Iterable[Sequence[object]]) -> list[Row]:
    numbered = (Row(at, [_text(value) for value in row]) for at, row in enumerate(rows, 1))
    return [row for row in numbered if any(cell.strip() for cell in row.cells)]


def _text(value: object) -> str:
    """Write a scalar as text; lone surrogates, which Arrow cannot hold, as question marks."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    return str(value).encode(errors="replace").decode()


class _Lines(list[str]):
    write = list[str].append


def csv_table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    """Encode a CSV file of these rows in UTF-8; None is an empty cell."""
    lines = _Lines()
    # With this line ending the writer quotes carriage returns. The file has line feeds alone.
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow(map(guarded, header))
    writer.writerows(map(guarded, row) for row in rows)
    return "".join(f"{line[:-2]}\n" for line in lines).encode()


def guarded(cell: object) -> object:
    """Put an apostrophe in front of a cell if a spreadsheet would run it."""
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def unguarded(cell: str) -> str:
    """Undo `guarded`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
