"""``RESULTS/``: append-only tables of trained students and measured sets, and the sets' lineage.

The tables (`result_tables`) are parquet, with a CSV beside and the newest rows in row files.
``lineage/<set digest>.json`` is for costs of sets that have gone. A row's key says what was run; a
run that finds its row does nothing.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

from coreset.engine.artifacts.ledger import Line, append_lines, lines_with, read_ledger
from coreset.engine.artifacts.writer import lock
from coreset.engine.condensed.condensed_set import CondensedSet
from coreset.engine.evaluation.result_tables import (
    CURVES,
    METRICS,
    PER_CLASS,
    SCHEMAS,
    STUDENTS,
    Row,
    completed,
    missing_columns,
)
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
    json_bytes,
    make_directory,
    parse,
    write_atomically,
)

LINEAGE = "lineage"
FOLD_AT = 256
"""Row files of a table that an append folds: fewer cost rewrites, more cost readers."""


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
            missing = missing_columns(table, row)
            if missing:
                where = f"{part.file} has no {missing[0]} in the row {row['key']}"
                raise StoreError(f"{where}; restore it or move it away")
        return [row for _, rows in parts for row in rows]

    def _parts(self, table: str) -> Iterator[tuple[Part, list[Row]]]:
        """Yield each file of a table with those of its rows whose key no earlier file has."""
        self._require_folder()
        known = set[str]()
        for part in read_parts(self.path, table, SCHEMAS[table]):
            rows: list[Row] = part.table.to_pylist()
            if table == STUDENTS:
                rows = [completed(row) for row in rows]
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
            for table, schema in SCHEMAS.items()
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
            n_files = write_row_file(self.path, table, SCHEMAS[table], rows, ledger)
            if n_files >= FOLD_AT:
                self._fold(table)

    def append_student(
        self,
        row: Mapping[str, Any],
        *,
        curve: Iterable[Mapping[str, Any]],
        per_class: Iterable[Mapping[str, Any]],
        ledger: Sequence[Line],
    ) -> None:
        """Append a student's row after its curve and its accuracies by class, which get its key.

        The row says that the student is done. After a kill before it the others are appended
        again, and readers take the first: those of a key are of one file.
        """
        for table, rows in ((CURVES, curve), (PER_CLASS, per_class)):
            self.append(table, [{**each, "key": row["key"]} for each in rows], [])
        self.append(STUDENTS, [row], ledger)

    def fold(self) -> None:
        """Move what is in row files into the parquet and the CSV tables, at the end of a run."""
        if any(row_files(self.path, table) for table in SCHEMAS):
            with lock(self.path, wait=True):
                for table in SCHEMAS:
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
