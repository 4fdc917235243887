"""Verification of a packed data set against its manifest, and images that occur twice."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import DataError
from coreset.shards.format.dataset import (
    QUARANTINE_NAME,
    SAMPLES_NAME,
    Dataset,
    ShardEntry,
    classes_digest,
    content_digest,
    identity_digest,
)
from coreset.shards.format.files import sha256_of_file, write_atomically
from coreset.shards.format.records import Row
from coreset.shards.format.tar import Member, index_bytes, index_path, walk
from coreset.shards.images.flags import Flag, Refusal
from coreset.shards.images.probe import Probe, probe
from coreset.shards.sources.base import compute
from coreset.shards.tables.formats import csv_table

_NAMED_DAMAGES = 3
_MEMBER_COLUMNS = ("member", "offset", "bytes")
"""Columns of the fields of `coreset.shards.format.tar.Member`."""
Pairs: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ids of samples with equal bytes: the first of a pair, and the second in ascending order."""


def verify(
    dataset: Dataset,
    *,
    fast: bool = False,
    deep: bool = False,
    workers: int,
    on_shard: Callable[[ShardEntry], None],
) -> int:
    """Compare every file of a packed data set with its manifest; return the bytes that were read.

    With ``fast`` sizes and counts of all files and digests of the tables; else also every byte of
    the shards (digests, headers, indices, the offsets of the rows); with ``deep`` also every image
    is decoded and compared with its row. ``on_shard`` is called in this thread. A DataError names
    the damaged files.
    """
    shards = dataset.manifest.shards
    damages = list(_table_damages(dataset, fast=fast))
    if fast:
        damages += _size_damages(dataset)
    else:
        rows = dataset.table(None if deep else ("key", *_MEMBER_COLUMNS))

        def check(shard: int) -> list[str]:
            return list(_shard_damages(dataset, rows, shard, deep=deep))

        with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
            checks = pool.map(check, range(len(shards)))
            for entry, of_shard in zip(shards, checks, strict=True):
                damages += of_shard
                on_shard(entry)
    if damages:
        n_more = len(damages) - _NAMED_DAMAGES
        more = f"; and {n_more} more" if n_more > 0 else ""
        raise DataError(
            f"{dataset.path} is damaged: {'; '.join(damages[:_NAMED_DAMAGES])}{more}; restore "
            "it from a copy, or build a shard again: --repair SHARD"
        )
    return 0 if fast else (1 + deep) * sum(entry.bytes for entry in shards)


def _size_damages(dataset: Dataset) -> Iterator[str]:
    for entry in dataset.manifest.shards:
        path = dataset.path / entry.name
        for file, size in ((path, entry.bytes), (index_path(path), entry.index_bytes)):
            actual = file.stat().st_size if file.is_file() else "no file"
            yield from _difference(file.name, "bytes", size, actual)


def _table_damages(dataset: Dataset, *, fast: bool) -> Iterator[str]:
    """Compare tables and digests; `Dataset.open` has compared the bytes of the sample table."""
    manifest = dataset.manifest
    quarantine = dataset.path / QUARANTINE_NAME
    digest = sha256_of_file(quarantine) if quarantine.is_file() else "no file"
    yield from _difference(QUARANTINE_NAME, "sha256", manifest.quarantine_sha256, digest)
    total = manifest.n_samples + manifest.n_quarantined
    yield from _difference("manifest.json", "packed + quarantined", manifest.n_found, total)
    classes = classes_digest(manifest.classes)
    yield from _difference("manifest.json", "classes_sha256", manifest.classes_sha256, classes)
    if fast:  # the tables' bytes are those of the manifest, as these digests are
        return
    identity = identity_digest(dataset.keys, dataset.labels.tolist())
    yield from _difference(SAMPLES_NAME, "identity", manifest.identity, identity)
    content = content_digest(dataset.table(["content_hash"])["content_hash"].to_pylist())
    yield from _difference(SAMPLES_NAME, "content", manifest.content, content)


def _difference(file: str, quantity: str, expected: object, actual: object) -> Iterator[str]:
    if expected != actual:
        yield f"{file}: {quantity} expected {expected}, found {actual}"


def _shard_damages(dataset: Dataset, table: ArrowTable, shard: int, *, deep: bool) -> Iterator[str]:
    entry = dataset.manifest.shards[shard]
    path = dataset.path / entry.name
    if not path.is_file():
        yield f"{entry.name}: expected {entry.samples:,} samples, found no file"
        return
    members: list[Member] = []
    try:
        members.extend(walk(path))  # members before the damage count
    except ValueError as error:
        yield f"{entry.name}: {error}"
    yield from _difference(entry.name, "samples", entry.samples, len(members) // 2)
    yield from _difference(entry.name, "bytes", entry.bytes, path.stat().st_size)
    yield from _difference(entry.name, "sha256", entry.sha256, sha256_of_file(path))
    index = index_path(path)
    expected = index_bytes(list(zip(members[::2], members[1::2], strict=False)))
    if not index.is_file() or index.read_bytes() != expected:
        yield f"{index.name}: expected the index of {path.name}, found another or none"
    first_id = sum(earlier.samples for earlier in dataset.manifest.shards[:shard])
    rows: list[Row] = table.slice(first_id, entry.samples).to_pylist()
    with path.open("rb") as file:
        for row, image, label in zip(rows, members[::2], members[1::2], strict=False):
            place = f"{path.name}:{image.offset}:{row['key']}"
            for column, actual in zip(_MEMBER_COLUMNS, image, strict=True):
                yield from _difference(place, column, row[column], actual)
            if deep:
                digits = b"%d" % row["label"]
                yield from _difference(place, "label", digits, _content(file, label))
                yield from _image_damages(place, row, _content(file, image))


def _image_damages(place: str, row: Row, data: bytes) -> Iterator[str]:
    content_hash = xxhash.xxh3_128_hexdigest(data)
    yield from _difference(place, "hash", row["content_hash"].hex(), content_hash)
    # A shard keeps no original name, so only the flag tells that it was wrong.
    flags = Flag(row["flags"]) & ~Flag.MISNAMED
    expected = Probe(row["format"], row["width"], row["height"], flags)
    try:
        yield from _difference(place, "image", expected, probe(data))
    except Refusal as refusal:
        yield f"{place}: expected an image, found one that is refused ({refusal})"


def _content(file: IO[bytes], member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def duplicates(dataset: Dataset, other: Dataset) -> Pairs:
    """Find every sample of ``other`` that equals one of ``dataset``, the earliest of them.

    In one data set, find every sample that equals an earlier one.
    """
    hashes, others = (data.table(["source_hash"])["source_hash"] for data in (dataset, other))
    matches = compute.fill_null(compute.index_in(others, hashes), -1).combine_chunks()
    first = np.from_dlpack(matches).astype(np.int64)
    second = np.flatnonzero(first >= 0)
    if dataset is other:
        second = np.flatnonzero(first != np.arange(len(first)))
    return first[second], second


def write_pairs(path: Path, pairs: Pairs, dataset: Dataset, other: Dataset) -> None:
    """List the pairs as CSV: id, key and class of both."""
    header = ("id", "key", "class", "other_id", "other_key", "other_class")
    columns = (*_described(dataset, pairs[0]), *_described(other, pairs[1]))
    write_atomically(path, csv_table(header, zip(*columns, strict=True)))


def _described(dataset: Dataset, ids: NDArray[np.int64]) -> tuple[list[Any], ...]:
    keys, labels = dataset.keys, dataset.labels[ids]
    return ids.tolist(), [keys[at] for at in ids], [dataset.classes[label] for label in labels]
