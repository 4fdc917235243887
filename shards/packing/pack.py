"""Packing of source files into shards, all of them or some again: damaged, or with refused files.

A shard owns a fixed range of positions, so its bytes depend on its own files alone: any number of
workers, interruptions and repetitions gives the same bytes. A shard's record commits it. At the end
the records become the tables and the manifest, and are removed.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.dataset import MANIFEST_NAME, QUARANTINE_SCHEMA, Dataset, Manifest
from coreset.shards.format.files import replace_files, require_space, write_atomically
from coreset.shards.format.records import (
    Row,
    ShardRecord,
    committed_record,
    read_refused,
    refused_rows,
    write_tables,
)
from coreset.shards.format.tar import index_path, shard_name
from coreset.shards.images.flags import MAX_FILE_BYTES
from coreset.shards.packing.blocks import Observer, Packing
from coreset.shards.packing.plan import Plan
from coreset.shards.packing.workers import can_fork
from coreset.shards.sources.base import compute
from coreset.shards.sources.staging import PACKED_EXTRA_BYTES
from coreset.shards.tables.formats import csv_table

_SOURCE_STATE_NAME = "source-state.sha256"


def pack(plan: Plan, scratch: Path, *, workers: int, listed: Path, observer: Observer) -> Manifest:
    """Make a packed data set in ``scratch``, or continue an interrupted packing.

    Raises:
        UsageError: A source file cannot be read, or changed since the source was listed.
        DataError: More files were refused than the limits allow; ``listed`` lists them.
        MachineError: The disk is full or fails; committed shards are kept.
    """
    if prepare(plan, scratch):
        pack_shards(plan, scratch, range(plan.n_shards), workers=workers, observer=observer)
    return finish(plan, scratch, listed)


def prepare(plan: Plan, scratch: Path) -> bool:
    """Bind ``scratch`` to the source; True if shards may be missing."""
    if (scratch / MANIFEST_NAME).is_file():
        return False
    # Modification times included.
    path, state = scratch / _SOURCE_STATE_NAME, plan.source.state_sha256()
    if not path.exists():
        write_atomically(path, state.encode())
    elif path.read_text() != state:
        raise UsageError(
            f"files of {plan.source.place} were written again since the interrupted packing in "
            f"{scratch}; remove that folder and pack again"
        )
    return True


def pack_shards(
    plan: Plan, scratch: Path, shards: Sequence[int], *, workers: int, observer: Observer
) -> None:
    """Write and commit those of ``shards`` that are not committed yet, as `pack` does."""
    uncommitted: list[int] = []
    needed = 0
    for shard in shards:
        if record := committed_record(scratch, shard):
            observer.shard(record, resumed=True)
            continue
        uncommitted.append(shard)
        sizes = plan.sizes(plan.positions(shard))
        needed += int(sizes[sizes <= MAX_FILE_BYTES].sum()) + PACKED_EXTRA_BYTES * sizes.size
    require_space(needed, scratch, "packing")
    if plan.short_side is not None:
        from coreset.kernels.jpeg.resize import warm_up

        warm_up()
    # Decoding needs the interpreter often enough for processes to be faster; copying does not.
    decodes = plan.short_side is not None or (plan.check and plan.source.facts is None)
    processes = decodes and workers > 1 and can_fork()
    Packing(plan, scratch, observer, workers).pack(uncommitted, processes=processes)


def finish(plan: Plan, scratch: Path, listed: Path) -> Manifest:
    """Write tables and manifest from the records of all shards, as `pack` does."""
    if (scratch / MANIFEST_NAME).is_file():
        manifest = Manifest.read(scratch)
    else:
        refused, classes = refused_rows(scratch, plan.n_shards), plan.source.classes
        class_sizes = np.bincount(plan.source.row_labels, minlength=len(classes))
        require_few(refused, classes, class_sizes, listed)
        manifest = write_tables(
            scratch,
            n_shards=plan.n_shards,
            refused=refused,
            name=plan.name,
            split=plan.split,
            classes=classes,
            settings=plan.settings,
        )
    for record in scratch.glob("shard-*.json"):  # which a finished data set does not need
        record.unlink()
    (scratch / _SOURCE_STATE_NAME).unlink(missing_ok=True)
    return manifest


def thread_count(workers: int) -> int:
    """Return ``workers``, or for 0 one thread per core of this process."""
    if workers < 0:
        raise UsageError(f"workers must be 0 (one per core) or more, got {workers}")
    return workers or len(os.sched_getaffinity(0))


def list_path(data: Path) -> Path:
    """Return the list of the refused files of a failed packing, beside its output."""
    return data.with_name(f"{data.name}.quarantine.csv")


def write_list(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of ``QUARANTINE_SCHEMA`` as CSV."""
    names: Sequence[str] = QUARANTINE_SCHEMA.names
    readable = (row | {"content_hash": (row["content_hash"] or b"").hex()} for row in rows)
    write_atomically(path, csv_table(names, (map(row.get, names) for row in readable)))


def require_few(
    rows: Sequence[Row], classes: Sequence[str], class_sizes: NDArray[np.int64], listed: Path
) -> None:
    """Refuse too many refused files, of all or of a class, and list them in ``listed``.

    ``class_sizes`` counts packed and refused files, int64 of shape (classes,).
    """
    n_found = int(class_sizes.sum())
    limit = max(10, n_found // 1000)
    allowed = np.minimum(np.maximum(2, class_sizes // 20), np.maximum(0, class_sizes - 1))
    refused = np.array([sum(row["class"] == name for row in rows) for name in classes])
    if len(rows) <= limit and (refused <= allowed).all():
        return
    write_list(listed, rows)
    worst = int(np.argmax(refused / np.maximum(allowed, 0.5)))
    first = next(row for row in rows if row["class"] == classes[worst])
    raise DataError(
        f"{len(rows):,} of {n_found:,} files cannot be packed (limit {limit:,}), the worst class "
        f"is {classes[worst]} with {refused[worst]:,} of {class_sizes[worst]:,} (limit "
        f"{allowed[worst]:,}), such as {first['source']} ({first['reason']}); replace or remove "
        f"the files listed in {listed} and pack again"
    )


def repair_shard(
    dataset: Dataset, plan: Plan, shard: int, scratch: Path, *, observer: Observer
) -> None:
    """Pack one shard again in ``scratch`` and, if it is equal, replace the damaged one."""
    entry = dataset.manifest.shards[shard]
    pack_shards(plan, scratch, [shard], workers=1, observer=observer)
    built = ShardRecord.read(scratch, shard).entry
    if built != entry:
        raise DataError(
            f"{entry.name} built again from {plan.source.place} has sha256 {built.sha256[:12]}, "
            f"{entry.sha256[:12]} was packed: the source has changed; pack it again as another "
            "data set"
        )
    replace_files((scratch / entry.name, index_path(scratch / entry.name)), dataset.path)


def retry_refused(
    dataset: Dataset, plan: Plan, scratch: Path, *, workers: int, observer: Observer
) -> int:
    """Pack the shards with refused files again in ``scratch``, and link the others there.

    ``plan`` is that of the source as it is now; the records of all shards stay in ``scratch``.
    Return the number of samples that were refused before and are packed now.
    """
    samples, refused = dataset.table(), read_refused(dataset.path)
    _require_unchanged(plan, samples, refused)
    per_shard = dataset.manifest.settings["samples_per_shard"]
    again = np.unique(refused["position"].to_numpy() // per_shard).tolist()
    first_id = 0
    for shard, entry in enumerate(dataset.manifest.shards):
        if shard not in again:
            for path in (dataset.path / entry.name, index_path(dataset.path / entry.name)):
                os.link(path, scratch / path.name)
            rows = samples.slice(first_id, entry.samples).drop_columns(["id"])
            columns: dict[str, list[Any]] = rows.to_pydict()
            for name in ("content_hash", "source_hash"):
                columns[name] = [content_hash.hex() for content_hash in columns[name]]
            ShardRecord(entry=entry, samples=columns, refused=[]).commit(scratch, shard)
        first_id += entry.samples
    pack_shards(plan, scratch, again, workers=workers, observer=observer)
    packed = sum(ShardRecord.read(scratch, shard).entry.samples for shard in again)
    return packed - sum(dataset.manifest.shards[shard].samples for shard in again)


def _require_unchanged(plan: Plan, samples: ArrowTable, refused: ArrowTable) -> None:
    """Compare the source's keys by position, and the sizes of files that were stored unchanged."""
    members = compute.utf8_slice_codeunits(samples["member"], 0, 9)
    positions = np.concatenate(
        [compute.cast(members, "int64").to_numpy(), refused["position"].to_numpy()]
    )
    keys = samples["key"].to_pylist() + refused["key"].to_pylist()
    source = plan.source
    if len(source) != len(keys):
        raise UsageError(
            f"{source.place} holds {len(source):,} files, {len(keys):,} were found when it was "
            "packed; pack it again as another data set"
        )
    rows = source.rows[positions]
    current = source.row_keys.take(rows).to_pylist()
    changed = [key for key, new in zip(keys, current, strict=True) if key != new]
    if plan.short_side is None:
        stored = samples["bytes"].to_numpy()
        differs = source.row_sizes[rows[: stored.size]] != stored
        changed += [keys[at] for at in np.flatnonzero(differs)]
    if changed:
        raise UsageError(
            f"{changed[0]} of {source.place} is not as it was packed, and only refused files may "
            "change; pack it again as another data set"
        )


def shard_number(dataset: Dataset, name: str) -> int:
    """Return the number of the shard with this file name or number."""
    names = [entry.name for entry in dataset.manifest.shards]
    file_name = shard_name(int(name)) if name.isdecimal() else Path(name).name
    if file_name not in names:
        raise UsageError(f"{dataset.path} has no shard {name}; it has {names[0]} to {names[-1]}")
    return names.index(file_name)
