"""Found files become stored samples, or refusals."""

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import xxhash

from shards.errors import DataError
from shards.plan import Plan
from shards.probe import Probe, Reason, Refusal, glance, misnamed, probe, refuse_long_file
from shards.records import Row
from shards.reencode import reencode
from shards.sources.base import Sample, Source
from shards.tar import sample_parts


class Block(NamedTuple):
    """Consecutive found files, n of which are stored."""

    positions: list[int]
    """Of the n stored ones."""
    samples: dict[str, list[Any]]
    """Columns of ``SAMPLES_SCHEMA`` but ``id``, ``shard``, ``member`` and ``offset``, of n values;
    content hashes are hexadecimal."""
    refused: list[Row]
    """Rows of ``QUARANTINE_SCHEMA``; content hashes are hexadecimal."""


class _Stored(NamedTuple):
    row: Row
    """Of ``Block.samples`` or ``Block.refused``."""
    data: bytes | None
    """None: refused."""


def store_block(
    plan: Plan,
    positions: range,
    put: Callable[[bytes], object],
    stopped: Callable[[], bool] = lambda: False,
) -> Block:
    """Make the stored form of consecutive found files, one by one.

    The bytes are read once: hashed, checked, kept or re-encoded from the same buffer.

    Args:
        plan: What is packed.
        positions: Of the files.
        put: Takes the samples' `sample_parts`, in order.
        stopped: Asked before every sample whether to give up.

    Raises:
        UsageError: A file cannot be read, or changed after it was found.
        DataError: It cannot be packed, and the plan tolerates none such.
        CancelledError: ``stopped`` says so.
    """
    stored: list[int] = []
    rows: list[Row] = []
    refused: list[Row] = []
    for position, sample in zip(positions, plan.source.samples(positions), strict=True):
        if stopped():
            raise CancelledError
        row, data = _store(plan, position, sample)
        if data is None:
            refused.append(row)
            continue
        for part in sample_parts(position, row["format"], data, row["label"]):
            put(part)
        stored.append(position)
        rows.append(row)
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    return Block(stored, columns, refused)


def _store(plan: Plan, position: int, sample: Sample) -> _Stored:
    source, source_hash = plan.source, None
    try:
        _refuse_unreadable(source, sample)
        data = source.contents.read(sample)
        source_hash = xxhash.xxh3_128_hexdigest(data)
        data, image = _stored(plan, sample, data, source_hash)
    except Refusal as refusal:
        if not plan.tolerant:
            raise DataError(
                f"{sample.name} of {source.place} cannot be packed ({refusal}); mend or remove it, "
                "or list such files with --on-bad quarantine"
            ) from refusal
        return _Stored(_refused_row(source, sample, position, source_hash, refusal), None)
    label = int(plan.labels[position])
    row = {
        "bytes": len(data),
        "format": image.format,
        "label": label,
        "class": source.classes[label],
        "folder_label": sample.label,
        "key": sample.key,
        "source": sample.name,
        "width": image.width,
        "height": image.height,
        "content_hash": source_hash if plan.resize is None else xxhash.xxh3_128_hexdigest(data),
        "source_hash": source_hash,
        "flags": int(image.flags),
    }
    return _Stored(row, data)


def _refused_row(
    source: Source, sample: Sample, position: int, source_hash: str | None, refusal: Refusal
) -> Row:
    return {
        "position": position,
        "source": sample.name,
        "key": sample.key,
        "class": source.classes[sample.label],
        "bytes": sample.size,
        "content_hash": source_hash,
        "reason": str(refusal.reason),
        "detail": refusal.detail,
    }


def _refuse_unreadable(source: Source, sample: Sample) -> None:
    if sample.row in source.unreadable:
        raise Refusal(Reason.NOT_A_FILE, source.unreadable[sample.row])
    refuse_long_file(sample.size)


def _stored(plan: Plan, sample: Sample, data: bytes, content_hash: str) -> tuple[bytes, Probe]:
    """The bytes to store and what they are."""
    image = _examined(plan, sample, data, content_hash)
    if plan.resize is None:
        return data, image
    size, quality = plan.resize.short_side, plan.resize.quality
    stored = reencode(data, image, short_side=size, quality=quality)
    if plan.check and stored.data is data:  # small enough as it is, so not decoded yet
        probe(data)
    return stored.data, Probe(stored.format, stored.width, stored.height, stored.flags)


def _examined(plan: Plan, sample: Sample, data: bytes, content_hash: str) -> Probe:
    facts = plan.source.facts
    if facts is not None:
        known = facts.stored(sample.row)
        if known.content_hash.hex() != content_hash:
            raise DataError(
                f"{sample.name} in {plan.source.place} is not what was packed there; run "
                f"`coreset verify {plan.source.place}`"
            )
        return known.image
    # What is resized is decoded in full anyway.
    image = probe(data) if plan.check and plan.resize is None else glance(data)
    return misnamed(image, sample.name)
