"""Repair a packed data set from its source: a damaged shard, or refused files."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import replace_files
from coreset.shards.format.manifest import ShardEntry
from coreset.shards.format.records import ShardRecord, read_refused
from coreset.shards.format.tar import index_path, shard_name
from coreset.shards.packing.blocks import Observer
from coreset.shards.packing.pack import pack_shards
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.base import compute


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

    Returns:
        The number of samples that were refused before and are packed now.
    """
    samples, refused = dataset.table(), read_refused(dataset.path)
    _require_unchanged(plan, samples, refused)
    per_shard = dataset.manifest.settings["samples_per_shard"]
    again = np.unique(refused["position"].to_numpy() // per_shard).tolist()
    first_id = 0
    for shard, entry in enumerate(dataset.manifest.shards):
        if shard not in again:
            _link_shard(dataset.path, scratch, entry, shard, samples.slice(first_id, entry.samples))
        first_id += entry.samples
    pack_shards(plan, scratch, again, workers=workers, observer=observer)
    packed = sum(ShardRecord.read(scratch, shard).entry.samples for shard in again)
    return packed - sum(dataset.manifest.shards[shard].samples for shard in again)


def _link_shard(data: Path, scratch: Path, entry: ShardEntry, shard: int, rows: ArrowTable) -> None:
    for path in (data / entry.name, index_path(data / entry.name)):
        os.link(path, scratch / path.name)
    columns: dict[str, list[Any]] = rows.drop_columns(["id"]).to_pydict()
    for name in ("content_hash", "source_hash"):
        columns[name] = [content_hash.hex() for content_hash in columns[name]]
    ShardRecord(entry=entry, samples=columns, refused=[]).commit(scratch, shard)


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
    current = source.row_keys.take(source.rows[positions]).to_pylist()
    changed = next((key for key, new in zip(keys, current, strict=True) if key != new), None)
    if changed is None and plan.short_side is None:
        stored = samples["bytes"].to_numpy()
        differs = source.sizes[positions[: stored.size]] != stored
        changed = keys[int(np.flatnonzero(differs)[0])] if differs.any() else None
    if changed is not None:
        raise UsageError(
            f"{changed} of {source.place} is not as it was packed, and only refused files may "
            "change; pack it again as another data set"
        )


def shard_number(dataset: Dataset, name: str) -> int:
    """Return the number of the shard with this file name or number."""
    names = [entry.name for entry in dataset.manifest.shards]
    file_name = shard_name(int(name)) if name.isdecimal() else Path(name).name
    if file_name not in names:
        raise UsageError(f"{dataset.path} has no shard {name}; it has {names[0]} to {names[-1]}")
    return names.index(file_name)
