"""Verify a packed data set against its manifest, and find images that occur twice.

Readers of tar files take a shard that is cut between two members for a shorter one, so sizes and
counts are compared as well as digests. Three depths: sizes in the file system; bytes (digests,
headers, indices); images (every one is decoded).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from coreset.shards.arrow import ArrowTable
from coreset.shards.errors import DataError
from coreset.shards.format.dataset import QUARANTINE_NAME, SAMPLES_NAME, Dataset
from coreset.shards.format.files import sha256_of_file, write_atomically
from coreset.shards.format.manifest import (
    ShardEntry,
    classes_digest,
    content_digest,
    identity_digest,
)
from coreset.shards.format.records import Row
from coreset.shards.format.tar import Member, index_bytes, index_path, walk
from coreset.shards.images.flags import Flag
from coreset.shards.images.probe import Probe, Refusal, probe
from coreset.shards.tables.csv_cells import csv_table

_NAMED_DAMAGES = 3
_MEMBER_COLUMNS = ("member", "offset", "bytes")
"""Columns of the fields of `coreset.shards.format.tar.Member`."""


class Depth(StrEnum):
    """How much of a data set is read."""

    FAST = "fast"
    """Sizes and counts of all files, digests of the tables."""
    BYTES = "bytes"
    """Also every byte of the shards: digests, headers, indices, the offsets of the rows."""
    DEEP = "deep"
    """Also every image is decoded and compared with its row in the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Size of a data set that was found whole."""

    n_samples: int
    n_shards: int
    bytes_read: int


def verify(
    data: Path, *, depth: Depth, workers: int, on_shard: Callable[[ShardEntry], None]
) -> Verification:
    """Compare every file of a packed data set with its manifest.

    Args:
        data: Packed data set.
        depth: How much is read.
        workers: Threads, one shard each.
        on_shard: Called in this thread for every verified shard.

    Raises:
        UsageError: ``data`` is not a packed data set.
        DataError: Damage; the message names the files with expected and actual values.
    """
    dataset = Dataset.open(data)
    shards, passes = dataset.manifest.shards, 0
    damages = list(_table_damages(dataset, depth))
    if depth is Depth.FAST:
        damages += _size_damages(dataset)
    else:
        deep, passes = depth is Depth.DEEP, 2 if depth is Depth.DEEP else 1
        rows = dataset.samples if deep else dataset.table(("key", *_MEMBER_COLUMNS))

        def check(shard: int) -> list[str]:
            return list(_shard_damages(dataset, rows, shard, deep=deep))

        with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
            checks = pool.map(check, range(len(shards)))
            for entry, of_shard in zip(shards, checks, strict=True):
                damages += of_shard
                on_shard(entry)
    _require_none(data, damages)
    n_bytes = passes * sum(entry.bytes for entry in shards)
    return Verification(n_samples=len(dataset), n_shards=len(shards), bytes_read=n_bytes)


def _size_damages(dataset: Dataset) -> Iterator[str]:
    """Compare sizes with the directory, which is listed once."""
    with os.scandir(dataset.path) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    for entry in dataset.manifest.shards:
        index = index_path(Path(entry.name)).name
        for name, size in ((entry.name, entry.bytes), (index, entry.index_bytes)):
            yield from _difference(name, "bytes", size, sizes.get(name, "no file"))


def _require_none(data: Path, damages: Sequence[str]) -> None:
    if not damages:
        return
    named = "; ".join(islice(damages, _NAMED_DAMAGES))
    more = f"; and {len(damages) - _NAMED_DAMAGES} more" if len(damages) > _NAMED_DAMAGES else ""
    raise DataError(
        f"{data} is damaged: {named}{more}; restore it from a copy, or build a shard again: "
        "--repair SHARD"
    )


def _table_damages(dataset: Dataset, depth: Depth) -> Iterator[str]:
    """Compare tables and digests; `Dataset.open` has compared the bytes of the sample table."""
    manifest = dataset.manifest
    quarantine = dataset.path / QUARANTINE_NAME
    digest = sha256_of_file(quarantine) if quarantine.is_file() else "no file"
    yield from _difference(QUARANTINE_NAME, "sha256", manifest.quarantine_sha256, digest)
    total = manifest.n_samples + manifest.n_quarantined
    yield from _difference("manifest.json", "packed + quarantined", manifest.n_found, total)
    classes = classes_digest(manifest.classes)
    yield from _difference("manifest.json", "classes_sha256", manifest.classes_sha256, classes)
    if depth is Depth.FAST:  # the tables' bytes are those of the manifest, as these digests are
        return
    identity = identity_digest(dataset.keys, dataset.labels.tolist())
    yield from _difference(SAMPLES_NAME, "identity", manifest.identity, identity)
    hashes = dataset.table(["content_hash"])["content_hash"]
    content = content_digest(hashes.to_pylist())
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
    yield from _index_damages(path, members)
    first_id = sum(earlier.samples for earlier in dataset.manifest.shards[:shard])
    rows: list[Row] = table.slice(first_id, entry.samples).to_pylist()
    samples = list(zip(rows, members[::2], members[1::2], strict=False))
    for row, image, _ in samples:
        for column, actual in zip(_MEMBER_COLUMNS, image, strict=True):
            yield from _difference(_place(path, row, image), column, row[column], actual)
    if deep:
        with path.open("rb") as file:
            for row, image, label in samples:
                data, place = _content(file, image), _place(path, row, image)
                yield from _difference(place, "label", b"%d" % row["label"], _content(file, label))
                yield from _image_damages(place, row, data)


def _index_damages(path: Path, members: Sequence[Member]) -> Iterator[str]:
    index = index_path(path)
    expected = index_bytes(list(zip(members[::2], members[1::2], strict=False)))
    if not index.is_file() or index.read_bytes() != expected:
        yield f"{index.name}: expected the index of {path.name}, found another or none"


def _place(shard: Path, row: Row, image: Member) -> str:
    return f"{shard.name}:{image.offset}:{row['key']}"


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


@dataclass(frozen=True, slots=True)
class Pairs:
    """Duplicates: samples with equal bytes, in one data set or one of each of two.

    Both fields are int64 sample ids of shape (pairs,), in ascending order of ``second``.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]

    def __len__(self) -> int:
        return self.second.size


def copies(dataset: Dataset) -> Pairs:
    """Find every sample that equals an earlier one; ``first`` is the earliest."""
    hashes = _hashes(dataset)
    _, earliest, group = np.unique(hashes, return_index=True, return_inverse=True)
    first = earliest[group.ravel()]
    second = np.flatnonzero(first != np.arange(len(hashes)))
    return Pairs(first[second], second)


def shared(dataset: Dataset, other: Dataset) -> Pairs:
    """Find every sample of ``other`` that equals one of ``dataset``, which is ``first``."""
    hashes, other_hashes = _hashes(dataset), _hashes(other)
    order = np.argsort(hashes, kind="stable")
    ranks = np.minimum(np.searchsorted(hashes, other_hashes, sorter=order), len(hashes) - 1)
    first = order[ranks]
    second = np.flatnonzero(hashes[first] == other_hashes)
    return Pairs(first[second], second)


def under_another_label(pairs: Pairs, dataset: Dataset, other: Dataset) -> NDArray[np.bool_]:
    """Test which pairs belong to two classes: bool of shape (pairs,)."""
    names, other_names = np.array(dataset.classes), np.array(other.classes)
    return names[dataset.labels[pairs.first]] != other_names[other.labels[pairs.second]]


def write_pairs(path: Path, pairs: Pairs, dataset: Dataset, other: Dataset) -> None:
    """List the pairs as CSV: id, key and class of both."""
    header = ("id", "key", "class", "other_id", "other_key", "other_class")
    columns = (*_described(dataset, pairs.first), *_described(other, pairs.second))
    write_atomically(path, csv_table(header, zip(*columns, strict=True)))


def _described(dataset: Dataset, ids: NDArray[np.int64]) -> tuple[list[Any], ...]:
    keys, labels = dataset.keys, dataset.labels[ids]
    return ids.tolist(), [keys[at] for at in ids], [dataset.classes[label] for label in labels]


def _hashes(dataset: Dataset) -> NDArray[np.bytes_]:
    """Return the xxh3_128 of every sample's source bytes as a pair of numbers."""
    column = dataset.table(["source_hash"])["source_hash"].combine_chunks()
    # Fixed-width bytes drop trailing zeros; as numbers nothing is dropped.
    words = np.frombuffer(column.buffers()[1], np.uint8)[: 16 * len(column)]
    return words.reshape(-1, 16).view([("high", "u8"), ("low", "u8")]).ravel()
