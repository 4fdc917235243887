"""The record that commits a shard, and the tables and the manifest that all records become."""

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from coreset.shards.errors import ManifestError
from coreset.shards.format.dataset import (
    QUARANTINE_NAME,
    QUARANTINE_SCHEMA,
    SAMPLES_NAME,
    SAMPLES_SCHEMA,
)
from coreset.shards.format.files import (
    new_file,
    sha256_of_file,
    sync_and_rename,
    temporary_name,
    write_atomically,
)
from coreset.shards.format.manifest import (
    MANIFEST_NAME,
    DatasetDigests,
    Manifest,
    ShardEntry,
    classes_digest,
)
from coreset.shards.format.tar import index_path, shard_name
from coreset.shards.images.flags import Flag

Row = dict[str, Any]
_Table: TypeAlias = Any  # pyarrow.Table, which has no types
# Fixed, so that equal rows give equal files whatever the defaults of a pyarrow version.
_ROWS_PER_GROUP = 1 << 15
_COMPRESSION = "zstd"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """What one shard holds; its file, written last, commits the shard."""

    entry: ShardEntry
    samples: dict[str, list[Any]]
    """Columns of ``SAMPLES_SCHEMA`` without ``id``; content hashes are hexadecimal."""
    refused: list[Row]
    """Rows of ``QUARANTINE_SCHEMA``; content hashes are hexadecimal."""

    def commit(self, scratch: Path, shard: int) -> None:
        """Write the record; compact, because indented JSON takes ten times as long."""
        document = {"entry": asdict(self.entry), "samples": self.samples, "refused": self.refused}
        write_atomically(record_path(scratch, shard), json.dumps(document).encode())

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
    return sizes == (record.entry.bytes, record.entry.index_bytes)


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
    refused: Sequence[Row],
    name: str,
    split: str,
    classes: Sequence[str],
    settings: Mapping[str, Any],
) -> Manifest:
    """Turn the records of a packing into both tables and, last, the manifest.

    ``refused`` are the rows that ``refused_rows`` found.
    """
    shards: list[ShardEntry] = []
    digests, kinds = DatasetDigests(), Counter[str]()
    with _table_file(scratch / SAMPLES_NAME, SAMPLES_SCHEMA) as write:
        for record in read_records(scratch, n_shards):
            shards.append(record.entry)
            table = _sample_table(record, first_id=digests.samples)
            hashes: list[bytes] = table["content_hash"].to_pylist()
            digests.add(table["key"].to_pylist(), table["label"].to_pylist(), hashes)
            kinds.update(_kinds(record.samples))
            write(table)
    with _table_file(scratch / QUARANTINE_NAME, QUARANTINE_SCHEMA) as write:
        write(pa.Table.from_pylist(list(refused), QUARANTINE_SCHEMA))
    manifest = Manifest(
        name=name,
        split=split,
        classes=tuple(classes),
        settings=settings,
        n_found=sum(shard.found for shard in shards),
        n_samples=digests.samples,
        n_quarantined=sum(shard.found - shard.samples for shard in shards),
        kinds=dict(sorted(kinds.items())),
        shards=tuple(shards),
        identity=digests.identity,
        content=digests.content,
        classes_sha256=classes_digest(classes),
        samples_sha256=sha256_of_file(scratch / SAMPLES_NAME),
        quarantine_sha256=sha256_of_file(scratch / QUARANTINE_NAME),
    )
    write_atomically(scratch / MANIFEST_NAME, manifest.to_bytes())
    return manifest


def read_refused(data: Path) -> _Table:
    """Read the table of refused files of a packed data set.

    Raises:
        ManifestError: It is missing or damaged.
    """
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


def remove_records(scratch: Path) -> None:
    """Remove what a finished data set does not need."""
    for path in scratch.glob("shard-*.json"):
        path.unlink()


def _sample_table(record: ShardRecord, first_id: int) -> _Table:
    """Table of one shard; ids are ranks of the packed, which lie in pack order already."""
    columns: dict[str, Any] = record.samples | {
        "id": range(first_id, first_id + record.entry.samples)
    }
    for name in ("content_hash", "source_hash"):
        columns[name] = [bytes.fromhex(text) for text in columns.get(name, ())]
    return pa.table(
        [pa.array(columns.get(field.name, ()), field.type) for field in SAMPLES_SCHEMA],
        SAMPLES_SCHEMA,
    )


def _kinds(columns: Mapping[str, list[Any]]) -> Counter[str]:
    """Samples by stored format and by flag, as the manifest counts them."""
    kinds = Counter[str](columns.get("format", ()))
    for flags, n in Counter[int](columns.get("flags", ())).items():
        kinds.update({str(flag.name).lower(): n for flag in Flag(flags)})
    return kinds


def _with_binary_hash(row: Row) -> Row:
    text = row["content_hash"]
    return row | {"content_hash": None if text is None else bytes.fromhex(text)}


@contextmanager
def _table_file(path: Path, schema: _Table) -> Generator[Callable[[_Table], None]]:
    """Yield a function that appends tables; what is in memory stays below two row groups."""
    with new_file(temporary_name(path)) as file:
        waiting: list[_Table] = []
        with pq.ParquetWriter(file, schema, compression=_COMPRESSION) as writer:

            def write(table: _Table) -> None:
                waiting.append(table)
                if sum(map(len, waiting)) >= _ROWS_PER_GROUP:
                    _write_groups(writer, waiting, whole=True)

            yield write
            _write_groups(writer, waiting, whole=False)
        sync_and_rename(file, path)


def _write_groups(writer: _Table, waiting: list[_Table], *, whole: bool) -> None:
    """Write what waits in groups of a fixed size; with ``whole``, leave a shorter rest waiting."""
    if not waiting:
        return
    table = pa.concat_tables(waiting).combine_chunks()
    end = len(table) - len(table) % _ROWS_PER_GROUP if whole else len(table)
    writer.write_table(table.slice(0, end), row_group_size=_ROWS_PER_GROUP)
    waiting[:] = [table.slice(end)] if whole else []
