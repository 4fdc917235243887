"""Shard records: one commits each shard, and all of them become the tables and the manifest."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coreset.shards.arrow import ArrowSchema, ArrowTable
from coreset.shards.errors import ManifestError
from coreset.shards.format.dataset import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    QUARANTINE_SCHEMA,
    SAMPLES_NAME,
    SAMPLES_SCHEMA,
    Manifest,
    ShardEntry,
    classes_digest,
    identity_bytes,
)
from coreset.shards.format.files import replacing, sha256_of_file, write_atomically
from coreset.shards.format.tar import index_path, shard_name
from coreset.shards.images.flags import Flag

Row = dict[str, Any]
# Fixed, so that equal rows give equal files whatever the defaults of a pyarrow version.
_ROWS_PER_GROUP = 1 << 15
_COMPRESSION = "zstd"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """Contents of one shard; the record's file is written last and commits the shard."""

    entry: ShardEntry
    samples: dict[str, list[Any]]
    """Columns of ``SAMPLES_SCHEMA`` without ``id``; content hashes are hexadecimal."""
    refused: list[Row]
    """Rows of ``QUARANTINE_SCHEMA``; content hashes are hexadecimal."""

    def commit(self, scratch: Path, shard: int) -> None:
        """Write the record, as compact JSON: indented JSON takes ten times as long."""
        document = {"entry": asdict(self.entry), "samples": self.samples, "refused": self.refused}
        write_atomically(_record_path(scratch, shard), json.dumps(document).encode())

    @staticmethod
    def read(scratch: Path, shard: int) -> "ShardRecord":
        """Read the record of a committed shard."""
        document: dict[str, Any] = json.loads(_record_path(scratch, shard).read_bytes())
        entry = ShardEntry(**document.pop("entry"))
        return ShardRecord(entry=entry, **document)


def _record_path(scratch: Path, shard: int) -> Path:
    return (scratch / shard_name(shard)).with_suffix(".json")


def committed_record(scratch: Path, shard: int) -> ShardRecord | None:
    """Return a shard's record if tar and index exist with the recorded sizes."""
    try:
        record = ShardRecord.read(scratch, shard)
        tar = scratch / record.entry.name
        sizes = tar.stat().st_size, index_path(tar).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if sizes == (record.entry.bytes, record.entry.index_bytes) else None


def refused_rows(scratch: Path, n_shards: int) -> list[Row]:
    """Return the rows of ``QUARANTINE_SCHEMA`` of all shards, in pack order."""
    rows: list[Row] = []
    for shard in range(n_shards):
        rows += ShardRecord.read(scratch, shard).refused
    for row in rows:
        if row["content_hash"] is not None:
            row["content_hash"] = bytes.fromhex(row["content_hash"])
    return rows


def write_tables(
    scratch: Path,
    *,
    n_shards: int,
    refused: Sequence[Row],
    name: str,
    split: str,
    classes: Sequence[str],
    settings: Mapping[str, Any],
) -> Manifest:
    """Write the tables of samples and ``refused`` files and, last, the manifest."""
    shards: list[ShardEntry] = []
    identity, content, kinds = sha256(), sha256(), Counter[str]()

    def tables() -> Iterator[ArrowTable]:
        for shard in range(n_shards):
            record = ShardRecord.read(scratch, shard)
            table = _sample_table(record, first_id=sum(entry.samples for entry in shards))
            shards.append(record.entry)
            keys, labels, hashes = (
                table[name].to_pylist() for name in ("key", "label", "content_hash")
            )
            identity.update(identity_bytes(keys, labels))
            content.update(b"".join(hashes))
            kinds.update(record.samples.get("format", ()))
            for flags, n in Counter[int](record.samples.get("flags", ())).items():
                kinds.update({str(flag.name).lower(): n for flag in Flag(flags)})
            yield table

    _write_table(scratch / SAMPLES_NAME, SAMPLES_SCHEMA, tables())
    of_refused = pa.Table.from_pylist(list(refused), QUARANTINE_SCHEMA)
    _write_table(scratch / QUARANTINE_NAME, QUARANTINE_SCHEMA, [of_refused])
    manifest = Manifest(
        name=name,
        split=split,
        classes=tuple(classes),
        settings=settings,
        n_found=sum(shard.found for shard in shards),
        n_samples=sum(shard.samples for shard in shards),
        n_quarantined=sum(shard.found - shard.samples for shard in shards),
        kinds=dict(sorted(kinds.items())),
        shards=tuple(shards),
        identity=identity.hexdigest(),
        content=content.hexdigest(),
        classes_sha256=classes_digest(classes),
        samples_sha256=sha256_of_file(scratch / SAMPLES_NAME),
        quarantine_sha256=sha256_of_file(scratch / QUARANTINE_NAME),
    )
    write_atomically(scratch / MANIFEST_NAME, manifest.to_bytes())
    return manifest


def read_refused(data: Path) -> ArrowTable:
    """Read the table of refused files of a packed data set."""
    path = data / QUARANTINE_NAME
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
            table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path} cannot be read; run `coreset verify {data}`") from error
    if table.schema != QUARANTINE_SCHEMA:
        raise ManifestError(f"{path} has other columns than a list of refused files; pack again")
    return table


def _sample_table(record: ShardRecord, first_id: int) -> ArrowTable:
    ids = range(first_id, first_id + record.entry.samples)
    columns: dict[str, Any] = record.samples | {"id": ids}
    for name in ("content_hash", "source_hash"):
        columns[name] = [bytes.fromhex(text) for text in columns.get(name, ())]
    return pa.table(
        [pa.array(columns.get(field.name, ()), field.type) for field in SAMPLES_SCHEMA],
        SAMPLES_SCHEMA,
    )


def _write_table(path: Path, schema: ArrowSchema, tables: Iterable[ArrowTable]) -> None:
    """Write tables in row groups of a fixed size, one and a table of which are in memory."""
    with (
        replacing(path) as file,
        pq.ParquetWriter(file, schema, compression=_COMPRESSION) as writer,
    ):
        rest = schema.empty_table()
        for table in tables:
            rest = pa.concat_tables([rest, table])
            whole = len(rest) - len(rest) % _ROWS_PER_GROUP
            if whole:
                group = rest.slice(0, whole).combine_chunks()
                writer.write_table(group, row_group_size=_ROWS_PER_GROUP)
                rest = rest.slice(whole)
        writer.write_table(rest.combine_chunks())
