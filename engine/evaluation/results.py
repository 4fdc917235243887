"""``RESULTS/``: append-only tables of trained students and measured sets, and the sets' lineage.

``students`` and ``metrics`` are parquet, with a CSV beside. ``lineage/<set digest>.json`` is for
costs of sets that have gone. A row's key says what was run; a run that finds its row does nothing.
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from coreset.engine.artifacts.ledger import Line, append_lines, lines_with, read_ledger
from coreset.engine.artifacts.writer import lock
from coreset.engine.condensed.condensed_set import CondensedSet
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import (
    digest_of,
    json_bytes,
    make_directory,
    parse,
    write_atomically,
)
from coreset.shards.tables.formats import guarded

STUDENTS, METRICS, LINEAGE = "students", "metrics", "lineage"
CLASSES, DUPLICATES = "classes", "duplicates"
"""Tables with several rows for a row of ``metrics``, by its key."""
PUBLISHED_PRECISION = "float32"

_INPUT_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("key", pa.string()),  # digest of everything that went in: one row per key
    ("data", pa.string()),  # name of the data set that the set condenses
    ("method", pa.string()),
    ("ipc", pa.int64()),
    ("set_kind", pa.string()),
    ("set_digest", pa.string()),
    ("set_path", pa.string()),  # relative to RESULTS
    ("set_seed", pa.int64()),
    ("parameters", pa.string()),  # JSON of the method's parameters
    ("val", pa.string()),
    ("val_path", pa.string()),
    ("val_identity", pa.string()),
    ("n_val", pa.int64()),
]
STUDENTS_SCHEMA = pa.schema(
    [
        *_INPUT_COLUMNS,
        ("protocol", pa.string()),  # name@version, +precision, +short where it is not comparable
        ("student", pa.string()),
        ("seed", pa.int64()),
        ("top1_best", pa.float64()),  # percent
        ("top1_last", pa.float64()),
        ("top5_last", pa.float64()),
        ("epochs", pa.int64()),
        ("evaluations", pa.int64()),
        ("size", pa.int64()),
        ("batch", pa.int64()),
        ("steps", pa.int64()),
        ("train_seconds", pa.float64()),
        ("evaluation_seconds", pa.float64()),
        ("peak_rss_bytes", pa.int64()),
        ("image_bytes", pa.int64()),
        ("label_bytes", pa.int64()),
        ("device", pa.string()),
        ("runtime", pa.string()),  # JSON: precision, threads, versions
    ]
)
METRICS_SCHEMA = pa.schema(
    [
        *_INPUT_COLUMNS,
        ("metric", pa.string()),  # name@version
        ("value", pa.float64()),  # mean over classes
        ("backbone", pa.string()),  # name@pixels
        ("weights", pa.string()),  # sha256 of the backbone's weights
        ("n_classes", pa.int64()),
        ("runtime", pa.string()),
    ]
)
CLASSES_SCHEMA = pa.schema(
    [("key", pa.string()), ("class", pa.string()), ("metric", pa.string()), ("value", pa.float64())]
)
DUPLICATES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("kind", pa.string()),  # exact: the same bytes; near: by the cosine
        ("place", pa.string()),  # of the copy: set or reference
        ("image", pa.string()),  # keys
        ("copy", pa.string()),
        ("cosine", pa.float64()),
    ]
)
_SCHEMAS = {
    STUDENTS: STUDENTS_SCHEMA,
    METRICS: METRICS_SCHEMA,
    CLASSES: CLASSES_SCHEMA,
    DUPLICATES: DUPLICATES_SCHEMA,
}
_ALWAYS = [name for name, _ in _INPUT_COLUMNS]
_REQUIRED = {
    STUDENTS: (*_ALWAYS, "protocol", "student", "seed", "top1_best", "top1_last", "epochs",
               "evaluations", "size", "image_bytes"),
    METRICS: (*_ALWAYS, "metric", "backbone", "weights"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Results:
    """A results directory; made on the first append."""

    path: Path

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Read all rows of a table; empty if there are none yet."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"results {self.path} is a file; name a folder")
        file = self.path / f"{table}.parquet"
        if not file.is_file():
            return []
        try:
            read = pq.read_table(file, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            why = " ".join(str(error).split())
            raise StoreError(
                f"{file} cannot be read ({why}); restore it or move it away"
            ) from error
        if not read.schema.equals(_SCHEMAS[table]):
            raise StoreError(f"{file} is of another version; choose another RESULTS folder")
        rows = read.to_pylist()
        return [_with_precision(row) for row in rows] if table == STUDENTS else rows

    def complete_rows(self, table: str) -> list[dict[str, Any]]:
        """Read all rows, for those who compare and show them."""
        rows = self.rows(table)
        for row in rows:
            odd = [name for name in _REQUIRED[table] if row[name] is None]
            odd += [name for name in ("parameters", "runtime") if _object_in(row[name]) is None]
            if odd:
                where = f"{self.path / table}.parquet has no {odd[0]} in the row {row['key']}"
                raise StoreError(f"{where}; restore it or move it away")
        return rows

    def keys(self, table: str) -> set[str]:
        """Return the keys of the rows that are there."""
        return {row["key"] for row in self.rows(table)}

    def append(self, table: str, rows: Sequence[Mapping[str, Any]], ledger: Sequence[Line]) -> None:
        """Append rows whose key is not there yet, and the ledger lines of their making.

        The parquet file, which tells what is done, is replaced last: a kill loses nothing.
        """
        with lock(self.path, wait=True):
            make_directory(self.path)
            existing = self.rows(table)
            known = {row["key"] for row in existing}
            fresh = [dict(row) for row in rows if row["key"] not in known]
            if table in {STUDENTS, METRICS}:
                fresh = {row["key"]: row for row in fresh}.values()
            parquet, csv = _encoded([*existing, *fresh], table)
            append_lines(self.path, ledger)
            write_atomically(self.path / f"{table}.csv", csv)
            write_atomically(self.path / f"{table}.parquet", parquet)

    def record_lineage(self, condensed: CondensedSet) -> None:
        """Keep provenance and ledger of a set, so that its cost can be told without it."""
        provenance = condensed.provenance
        document = {"provenance": provenance.document(), "ledger": read_ledger(condensed.path)}
        path = self.path / LINEAGE / f"{provenance.digest[:24]}.json"
        with lock(self.path, wait=True):  # two runs on one set share the temporary name
            make_directory(path.parent)
            write_atomically(path, json_bytes(document))

    def lineage(self, set_digest: str) -> dict[str, Any] | None:
        """Return provenance and ledger of a set as recorded, or None."""
        path = self.path / LINEAGE / f"{set_digest[:24]}.json"
        try:
            kept = parse(path.read_bytes()) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}); remove it") from error
        ledger = kept["ledger"] if kept and isinstance(kept.get("ledger"), list) else []
        return kept and {**kept, "ledger": lines_with(ledger, "stage")}

    def input_columns(self, condensed: CondensedSet, val: Dataset) -> dict[str, Any]:
        """Return the columns that describe a set and its validation set, common to both tables."""
        info = condensed.info
        return {
            "data": info.source_name,
            "method": info.method,
            "ipc": info.ipc,
            "set_kind": info.kind,
            "set_digest": condensed.provenance.digest,
            "set_path": relpath(condensed.path.resolve(), self.path.resolve()),
            "set_seed": info.seed,
            "parameters": json.dumps(dict(info.parameters), sort_keys=True),
            "val": val.manifest.name,
            "val_path": relpath(val.path.resolve(), self.path.resolve()),
            "val_identity": val.manifest.identity,
            "n_val": len(val),
        }


def in_precision(stamp: str, key: str, precision: str) -> dict[str, str]:
    """Name a student's precision, unless it is float32, in the protocol's stamp and in its key."""
    if precision != PUBLISHED_PRECISION:
        name, plus, changes = stamp.partition("+")
        stamp = f"{name}+{precision}{plus}{changes}"
        key = digest_of({"student": key, "precision": precision})
    return {"protocol": stamp, "key": key}


def _with_precision(row: dict[str, Any]) -> dict[str, Any]:
    """Give a row that was written before stamps named the precision its stamp and its key."""
    runtime = _object_in(row["runtime"]) or {}  # a damaged one is refused by `complete_rows`
    precision = runtime.get("precision", PUBLISHED_PRECISION)
    if precision == PUBLISHED_PRECISION or precision in row["protocol"].split("+"):
        return row
    return row | in_precision(row["protocol"], row["key"], precision)


def _encoded(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[bytes, bytes]:
    table = pa.Table.from_pylist(rows, schema=_SCHEMAS[name])
    parquet, csv = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet, write_page_checksum=True)
    shown = [{column: guarded(cell) for column, cell in row.items()} for row in rows]
    pacsv.write_csv(pa.Table.from_pylist(shown, schema=_SCHEMAS[name]), csv)
    return parquet.getvalue(), csv.getvalue()


def _object_in(text: str | None) -> dict[str, Any] | None:
    """Parse the JSON object in a cell; None where there is none."""
    with suppress(ValueError):
        return parse((text or "").encode())
    return None
