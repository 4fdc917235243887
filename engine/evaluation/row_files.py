"""Tables of results: ``TABLE.parquet`` and, for each newer append, ``TABLE-000001.rows.jsonl``.

An append reads no rows, so it costs the same whatever the table holds. Row files are folded into
the parquet and its CSV later; a reader takes both. Columns are additive: where a file lacks one
there are nulls, and one that this version does not know is kept.
"""

import hashlib
import io
import json
import os
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from coreset.engine.artifacts.ledger import Line, lines_with
from coreset.shards.arrow import ArrowSchema, ArrowTable
from coreset.shards.errors import StoreError
from coreset.shards.format.files import parse, write_atomically
from coreset.shards.tables.formats import guarded

_FAULTS = (
    OSError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
    pa.ArrowException,
)  # fmt: skip
"""Errors that bytes which no append wrote may raise on their way to rows."""


class Part(NamedTuple):
    """Rows and ledger lines of one file of a table."""

    file: Path
    table: ArrowTable
    ledger: Sequence[Line] = ()
    """Lines that the ledger of the folder may not have yet."""


def row_files(folder: Path, table: str) -> dict[int, str]:
    """Return the names of a table's row files by number, in the order of the appends."""
    if not folder.is_dir():
        return {}
    named = re.compile(rf"{table}-(\d{{6}})\.rows\.jsonl")
    with os.scandir(folder) as entries:  # an append lists hundreds: paths would double its cost
        matches = [match for entry in entries if (match := named.fullmatch(entry.name))]
    return {int(match[1]): match[0] for match in sorted(matches, key=itemgetter(0))}


def write_row_file(
    folder: Path,
    table: str,
    schema: ArrowSchema,
    rows: Sequence[Mapping[str, Any]],
    ledger: Sequence[Line],
) -> int:
    """Write one more row file under the lock of ``folder``; return how many there are now."""
    files = row_files(folder, table)
    typed = pa.Table.from_pylist(rows, schema=schema).to_pylist()
    content = json.dumps({"rows": typed, "ledger": ledger}).encode()
    file = folder / f"{table}-{max(files, default=0) + 1:06}.rows.jsonl"
    write_atomically(file, _head(content) + content)
    return len(files) + 1


def read_row_file(file: Path, schema: ArrowSchema) -> Part | None:
    """Read a row file; None where another process has folded it by now."""
    try:
        head, line_end, content = file.read_bytes().partition(b"\n")
        if head + line_end != _head(content):
            raise ValueError("its first line is not the sha256 of the rest")
        document = parse(content)
        rows, ledger = document["rows"], document["ledger"]
        names = dict.fromkeys(["key", *(name for row in rows for name in row)])
        table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
        lines = lines_with(ledger, "stage")
    except FileNotFoundError:
        return None
    except _FAULTS as error:
        raise _unreadable(file, error) from error
    return Part(file, _checked(file, table, schema), lines)


def read_parts(folder: Path, table: str, schema: ArrowSchema) -> list[Part]:
    """Read the parquet, which may not be there, and the row files, without the lock.

    All parts have the same columns: those of ``schema``, then those that only files have. The
    newest is read first and the parquet last, because rows move that way, and numbers are used
    again: whatever is folded and appended meanwhile, no row comes without those before it.
    """
    names = row_files(folder, table).values()
    newest_first = [read_row_file(folder / name, schema) for name in reversed(names)]
    parts = [_parquet_part(folder, table, schema), *reversed(newest_first)]
    parts = [part for part in parts if part]
    for part in parts:
        try:
            schema = pa.unify_schemas([schema, part.table.schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise _unreadable(part.file, error) from error
    return [part._replace(table=_with_columns(part.table, schema)) for part in parts]


def write_tables(
    folder: Path, table: str, schema: ArrowSchema, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Replace the CSV and then the parquet, which is the one that is read."""
    stored = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), stored, write_page_checksum=True)
    flat = pa.schema([field for field in schema if not pa.types.is_nested(field.type)])
    shown = [{name: guarded(row[name]) for name in flat.names} for row in rows]
    csv = io.BytesIO()
    pacsv.write_csv(pa.Table.from_pylist(shown, schema=flat), csv)
    write_atomically(folder / f"{table}.csv", csv.getvalue())
    write_atomically(folder / f"{table}.parquet", stored.getvalue())


def _parquet_part(folder: Path, table: str, schema: ArrowSchema) -> Part | None:
    file = folder / f"{table}.parquet"
    try:
        # One opening: a name may come to mean another file between two.
        data = pa.BufferReader(pa.py_buffer(file.read_bytes()))
        stored = pq.ParquetFile(data, page_checksum_verification=True)
        rows, copy = stored.read(), (stored.metadata.metadata or {}).get(b"ARROW:schema")
        names = pa.ipc.read_schema(pa.py_buffer(b64decode(copy))).names if copy else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(file, error) from error
    # Names have no checksum: a flipped bit would make a column of ours an unknown one.
    if names not in (None, rows.schema.names):
        raise _unreadable(file, ValueError("its two lists of columns differ"))
    return Part(file, _checked(file, rows, schema))


def _head(content: bytes) -> bytes:
    return json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode() + b"\n"


def _checked(file: Path, rows: ArrowTable, schema: ArrowSchema) -> ArrowTable:
    """Refuse rows without keys, and columns of other types than here; nulls have any type."""
    names = rows.schema.names
    types = {field.name: (field.type, pa.null()) for field in schema}
    typed = all(field.type in types.get(field.name, [field.type]) for field in rows.schema)
    keyed = names.count("key") == 1 and not rows["key"].null_count
    if not typed or not keyed or len(set(names)) < len(names):
        raise StoreError(f"{file} is of another version; choose another RESULTS folder")
    return rows


def _with_columns(rows: ArrowTable, schema: ArrowSchema) -> ArrowTable:
    return pa.concat_tables([schema.empty_table(), rows], promote_options="permissive")


def _unreadable(file: Path, error: Exception) -> StoreError:
    why = " ".join(str(error).split()) or type(error).__name__
    return StoreError(f"{file} cannot be read ({why}); restore it or move it away")
