"""``RESULTS/``: append-only tables of trained students and measured sets, and the sets' lineage.

``students`` and ``metrics`` are parquet, with a CSV beside and the newest rows in row files.
``lineage/<set digest>.json`` is for costs of sets that have gone. A row's key says what was run; a
run that finds its row does nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from coreset.engine.artifacts.ledger import Line, append_lines, lines_with, read_ledger
from coreset.engine.artifacts.writer import lock
from coreset.engine.condensed.condensed_set import CondensedSet
from coreset.engine.evaluation.row_files import (
    Part,
    read_parts,
    read_row_file,
    row_files,
    write_row_file,
    write_tables,
)
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import (
    digest_of,
    json_bytes,
    make_directory,
    parse,
    write_atomically,
)

STUDENTS, METRICS, LINEAGE = "students", "metrics", "lineage"
CLASSES, DUPLICATES = "classes", "duplicates"
"""Tables with several rows for a row of ``metrics``, by its key."""
PUBLISHED_PRECISION = "float32"
FOLD_AT = 256
"""Row files of a table that an append folds: fewer cost rewrites, more cost readers."""
Row: TypeAlias = dict[str, Any]

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

    def rows(self, table: str) -> list[Row]:
        """Read all rows of a table; empty if there are none yet."""
        return [row for _, rows in self._parts(table) for row in rows]

    def complete_rows(self, table: str) -> list[Row]:
        """Read all rows, for those who compare and show them."""
        parts = list(self._parts(table))
        for part, row in ((part, row) for part, rows in parts for row in rows):
            odd = [name for name in _REQUIRED[table] if row[name] is None]
            odd += [name for name in ("parameters", "runtime") if _object_in(row[name]) is None]
            if odd:
                where = f"{part.file} has no {odd[0]} in the row {row['key']}"
                raise StoreError(f"{where}; restore it or move it away")
        return [row for _, rows in parts for row in rows]

    def _parts(self, table: str) -> Iterator[tuple[Part, list[Row]]]:
        """Yield each file of a table with those of its rows whose key no earlier file has."""
        self._require_folder()
        known = set[str]()
        for part in read_parts(self.path, table, _SCHEMAS[table]):
            rows: list[Row] = part.table.to_pylist()
            if table == STUDENTS:
                rows = [_with_precision(row) for row in rows]
            fresh = [row for row in rows if row["key"] not in known]
            known.update(row["key"] for row in fresh)
            yield part, fresh

    def _require_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"results {self.path} is a file; name a folder")

    def keys(self, table: str) -> set[str]:
        """Return the keys of the rows that are there."""
        return {row["key"] for row in self.rows(table)}

    def ledger(self) -> list[Line]:
        """Read the ledger lines of all appends, whether they are folded yet or not."""
        parts = [
            read_row_file(self.path / name, schema)
            for table, schema in _SCHEMAS.items()
            for name in row_files(self.path, table).values()
        ]
        waiting = [line for part in parts if part for line in part.ledger]
        lines = [*read_ledger(self.path), *waiting]
        return list({json.dumps(line, sort_keys=True): line for line in lines}.values())

    def append(self, table: str, rows: Sequence[Mapping[str, Any]], ledger: Sequence[Line]) -> None:
        """Append rows and the ledger lines of their making, by one file, whole or not at all.

        A row whose key is there already is passed over by whoever reads.
        """
        if table in {STUDENTS, METRICS}:
            rows = list({row["key"]: row for row in rows}.values())
        self._require_folder()
        with lock(self.path, wait=True):
            make_directory(self.path)
            n_files = write_row_file(self.path, table, _SCHEMAS[table], rows, ledger)
            if n_files >= FOLD_AT:
                self._fold(table)

    def fold(self) -> None:
        """Move what is in row files into the parquet and the CSV tables, at the end of a run."""
        if any(row_files(self.path, table) for table in _SCHEMAS):
            with lock(self.path, wait=True):
                for table in _SCHEMAS:
                    self._fold(table)

    def _fold(self, table: str) -> None:
        names = row_files(self.path, table).values()
        if not names:
            return
        parts = list(self._parts(table))
        append_lines(self.path, [line for part, _ in parts for line in part.ledger])
        rows = [row for _, rows in parts for row in rows]
        write_tables(self.path, table, parts[0][0].table.schema, rows)
        for name in names:  # last: until then a kill changes nothing that a reader sees
            (self.path / name).unlink(missing_ok=True)

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
    precision, stamp = runtime.get("precision", PUBLISHED_PRECISION), row["protocol"]
    if precision == PUBLISHED_PRECISION or not stamp or precision in stamp.split("+"):
        return row
    return row | in_precision(row["protocol"], row["key"], precision)


def _object_in(text: str | None) -> dict[str, Any] | None:
    """Parse the JSON object in a cell; None where there is none."""
    with suppress(ValueError):
        return parse((text or "").encode())
    return None
