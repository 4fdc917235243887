"""The record that commits a shard, and the tables and the manifest that all records become."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import sha256_of_file, sync_and_rename, temporary_name, write_atomically
from shards.dataset import QUARANTINE_NAME, QUARANTINE_SCHEMA, SAMPLES_NAME, SAMPLES_SCHEMA
from shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    classes_digest,
    content_digest,
    identity_digest,
)
from shards.tar import index_path, shard_name

Row = dict[str, Any]
_Table: TypeAlias = Any  # pyarrow.Table, which has no types
# Fixed, so that equal rows give equal files whatever the defaults of a pyarrow version.
_ROWS_PER_GROUP = 1 << 17
_COMPRESSION = "zstd"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """What one shard holds; its file, written last, commits the shard."""

    entry: ShardEntry
    index_bytes: int
    samples: list[Row]
    """Rows of ``SAMPLES_SCHEMA`` without ``id``; content hashes are hexadecimal."""
    refused: list[Row]
    """Rows of ``QUARANTINE_SCHEMA``; content hashes are hexadecimal."""

    def commit(self, scratch: Path, shard: int) -> None:
        """Write the record; compact, because indented JSON takes ten times as long."""
        write_atomically(record_path(scratch, shard), json.dumps(asdict(self)).encode())

    @staticmethod
    def read(scratch: Path, shard: int) -> "ShardRecord":
        """Read the record of a committed shard."""
        document: dict[str, Any] = json.loads(record_path(scratch, shard).read_bytes())
        entry = ShardEntry(**document.pop("entry"))
        return ShardRecord(entry=entry, **document)


def record_path(scratch: Path, shard: int) -> Path:
    """File that commits a shard: ``shard-000003.json``."""
    return (scratch / shard_name(shard)).with_suffix(".json")


def is_committed(scratch: Path, shard: int) -> bool:
    """Whether record, tar and index are there with the recorded sizes."""
    try:
        record = ShardRecord.read(scratch, shard)
        tar = scratch / record.entry.name
        sizes = tar.stat().st_size, index_path(tar).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return sizes == (record.entry.bytes, record.index_bytes)


def read_records(scratch: Path, n_shards: int) -> Iterator[ShardRecord]:
    """Yield the records of all shards in order, one in memory at a time."""
    return (ShardRecord.read(scratch, shard) for shard in range(n_shards))


def refused_rows(scratch: Path, n_shards: int) -> list[Row]:
    """Rows of ``QUARANTINE_SCHEMA`` of all shards, in pack order."""
    rows = [row for record in read_records(scratch, n_shards) for row in record.refused]
    return [_with_binary_hash(row) for row in rows]


def write_tables(
    scratch: Path,
    *,
    n_shards: int,
    name: str,
    split: str,
    classes: Sequence[str],
    settings: Mapping[str, Any],
) -> Manifest:
    """Turn the records of a packing into both tables and, last, the manifest."""
    samples = _samples_table(scratch, n_shards)
    quarantine = pa.Table.from_pylist(refused_rows(scratch, n_shards), QUARANTINE_SCHEMA)
    shards = tuple(record.entry for record in read_records(scratch, n_shards))
    manifest = Manifest(
        name=name,
        split=split,
        classes=tuple(classes),
        settings=settings,
        n_found=sum(shard.found for shard in shards),
        n_samples=len(samples),
        n_quarantined=len(quarantine),
        shards=shards,
        identity=identity_digest(samples["key"].to_pylist(), samples["label"].to_pylist()),
        content=content_digest(samples["content_hash"].to_pylist()),
        classes_sha256=classes_digest(classes),
        samples_sha256=_write_table(scratch / SAMPLES_NAME, samples),
        quarantine_sha256=_write_table(scratch / QUARANTINE_NAME, quarantine),
    )
    write_atomically(scratch / MANIFEST_NAME, manifest.to_bytes())
    return manifest


def remove_records(scratch: Path) -> None:
    """Remove what a finished data set does not need."""
    for path in scratch.glob("shard-*.json"):
        path.unlink()


def _samples_table(scratch: Path, n_shards: int) -> _Table:
    """All samples in id order; ids are ranks of the packed, which lie in pack order already."""
    tables: list[_Table] = []
    next_id = 0
    for record in read_records(scratch, n_shards):
        rows = [
            {"id": sample_id, **_with_binary_hash(row)}
            for sample_id, row in enumerate(record.samples, next_id)
        ]
        next_id += len(rows)
        tables.append(pa.Table.from_pylist(rows, SAMPLES_SCHEMA))
    return pa.concat_tables(tables)


def _with_binary_hash(row: Row) -> Row:
    text = row["content_hash"]
    return {**row, "content_hash": None if text is None else bytes.fromhex(text)}


def _write_table(path: Path, table: _Table) -> str:
    with temporary_name(path).open("wb") as file:
        pq.write_table(
            table.combine_chunks(), file, row_group_size=_ROWS_PER_GROUP, compression=_COMPRESSION
        )
        sync_and_rename(file, path)
    return sha256_of_file(path)
