"""Damage in a packed data set: what the disk holds against what the manifest says.

Readers of tar files take a shard cut between two members for a shorter one, without a word, so
sizes and counts are compared as well as digests. Three depths: what the file system says (sizes),
what the bytes say (digests, headers, indices), and what the images say (every one is decoded).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import xxhash
from numpy.typing import NDArray

from coreset.shards.errors import DataError
from coreset.shards.format.dataset import QUARANTINE_NAME, SAMPLES_NAME, Dataset, Table
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
_PLACE = ("member", "offset", "bytes")
"""Columns that say what `coreset.shards.format.tar.Member` does."""


class Depth(StrEnum):
    """How much is read."""

    FAST = "fast"
    """Sizes and counts of all files, digests of the tables."""
    BYTES = "bytes"
    """Also every byte of the shards: digests, headers, indices, the places that the rows name."""
    DEEP = "deep"
    """Also every image is decoded, and compared with its row in the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was read and found whole."""

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
        on_shard: Called in this thread for every shard checked.

    Raises:
        UsageError: ``data`` is not a packed data set.
        DataError: Damage, with the file, what was expected and what was found.
    """
    dataset = Dataset.open(data)
    shards = dataset.manifest.shards
    damages = list(_damages_of_tables(dataset, depth))
    if depth is Depth.FAST:
        damages += _damages_of_sizes(dataset)
        _require_none(data, damages)
        return Verification(n_samples=len(dataset), n_shards=len(shards), bytes_read=0)

    deep = depth is Depth.DEEP
    rows = dataset.samples if deep else dataset.table(("key", *_PLACE))

    def check(shard: int) -> list[str]:
        return list(_damages_of_shard(dataset, rows, shard, deep=deep))

    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        checks = pool.map(check, range(len(shards)))
        for entry, found in zip(shards, checks, strict=True):
            damages += found
            on_shard(entry)
    _require_none(data, damages)
    return Verification(
        n_samples=len(dataset),
        n_shards=len(shards),
        bytes_read=sum(entry.bytes for entry in shards) * (2 if deep else 1),
    )


def _damages_of_sizes(dataset: Dataset) -> Iterator[str]:
    """Compare sizes with the directory, which is listed once."""
    with os.scandir(dataset.path) as entries:
        there = {entry.name: entry.stat().st_size for entry in entries}
    for entry in dataset.manifest.shards:
        index = index_path(Path(entry.name)).name
        for name, size in ((entry.name, entry.bytes), (index, entry.index_bytes)):
            yield from _difference(name, "bytes", size, there.get(name, "no file"))


def _require_none(data: Path, damages: Sequence[str]) -> None:
    if not damages:
        return
    named = "; ".join(islice(damages, _NAMED_DAMAGES))
    more = f"; and {len(damages) - _NAMED_DAMAGES} more" if len(damages) > _NAMED_DAMAGES else ""
    raise DataError(
        f"{data} is damaged: {named}{more}; restore it from a copy, or build a shard again: "
        "--repair SHARD"
    )


def _damages_of_tables(dataset: Dataset, depth: Depth) -> Iterator[str]:
    """Compare tables and digests; ``Dataset.open`` has compared the sample table's bytes."""
    manifest = dataset.manifest
    quarantine = dataset.path / QUARANTINE_NAME
    found = sha256_of_file(quarantine) if quarantine.is_file() else "no file"
    yield from _difference(QUARANTINE_NAME, "sha256", manifest.quarantine_sha256, found)
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


def _difference(file: str, what: str, expected: object, found: object) -> Iterator[str]:
    if expected != found:
        yield f"{file}: {what} expected {expected}, found {found}"


def _damages_of_shard(dataset: Dataset, table: Table, shard: int, *, deep: bool) -> Iterator[str]:
    entry = dataset.manifest.shards[shard]
    path = dataset.path / entry.name
    if not path.is_file():
        yield f"{entry.name}: expected {entry.samples:,} samples, found no file"
        return
    members: list[Member] = []
    try:
        members.extend(walk(path))  # what lies before the damage stays counted
    except ValueError as error:
        yield f"{entry.name}: {error}"
    yield from _difference(entry.name, "samples", entry.samples, len(members) // 2)
    yield from _difference(entry.name, "bytes", entry.bytes, path.stat().st_size)
    yield from _difference(entry.name, "sha256", entry.sha256, sha256_of_file(path))
    yield from _damages_of_index(path, members)
    first_id = sum(other.samples for other in dataset.manifest.shards[:shard])
    rows: list[Row] = table.slice(first_id, entry.samples).to_pylist()
    yield from _damages_of_places(path, rows, members[::2])
    if deep:
        yield from _damages_of_samples(path, rows, members)


def _damages_of_places(path: Path, rows: Sequence[Row], images: Sequence[Member]) -> Iterator[str]:
    """Compare where the table says that images lie with where they do."""
    for row, image in zip(rows, images, strict=False):
        place = f"{path.name}:{image.offset}:{row['key']}"
        for column, found in zip(_PLACE, image, strict=True):
            yield from _difference(place, column, row[column], found)


def _damages_of_index(path: Path, members: Sequence[Member]) -> Iterator[str]:
    index = index_path(path)
    expected = index_bytes(list(zip(members[::2], members[1::2], strict=False)))
    if not index.is_file() or index.read_bytes() != expected:
        yield f"{index.name}: expected the index of {path.name}, found another or none"


def _damages_of_samples(
    path: Path, rows: Sequence[Row], members: Sequence[Member]
) -> Iterator[str]:
    with path.open("rb") as file:
        for row, image, label in zip(rows, members[::2], members[1::2], strict=False):
            place = f"{path.name}:{image.offset}:{row['key']}"
            data = _content(file, image)
            found_hash = xxhash.xxh3_128_hexdigest(data)
            yield from _difference(place, "hash", row["content_hash"].hex(), found_hash)
            yield from _difference(place, "label", b"%d" % row["label"], _content(file, label))
            yield from _damages_of_image(place, row, data)


def _damages_of_image(place: str, row: Row, data: bytes) -> Iterator[str]:
    # The name that a misnamed image had is gone: the flag is all that is known of it.
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
    """Samples with equal bytes: ``first`` of one data set and ``second`` of another, or the same.

    Both are int64 sample ids of shape (pairs,), in ascending order of ``second``.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]

    def __len__(self) -> int:
        return self.second.size


def copies(dataset: Dataset) -> Pairs:
    """Every sample whose bytes an earlier sample has, with the earliest of those."""
    hashes = _hashes(dataset)
    _, earliest, group = np.unique(hashes, return_index=True, return_inverse=True)
    first = earliest[group.ravel()]
    second = np.flatnonzero(first != np.arange(len(hashes)))
    return Pairs(first[second], second)


def shared(dataset: Dataset, other: Dataset) -> Pairs:
    """Every sample of ``other`` whose bytes a sample of ``dataset`` has."""
    here, there = _hashes(dataset), _hashes(other)
    order = np.argsort(here, kind="stable")
    place = np.minimum(np.searchsorted(here, there, sorter=order), len(here) - 1)
    first = order[place]
    second = np.flatnonzero(here[first] == there)
    return Pairs(first[second], second)


def under_another_label(pairs: Pairs, dataset: Dataset, other: Dataset) -> NDArray[np.bool_]:
    """Which pairs belong to two classes, bool of shape (pairs,)."""
    names, other_names = np.array(dataset.classes), np.array(other.classes)
    return names[dataset.labels[pairs.first]] != other_names[other.labels[pairs.second]]


def write_pairs(path: Path, pairs: Pairs, dataset: Dataset, other: Dataset) -> None:
    """List the pairs as CSV: id, key and class of both."""
    keys, other_keys = dataset.keys, other.keys

    def described(first: int, second: int) -> tuple[object, ...]:
        here = (first, keys[first], dataset.classes[dataset.labels[first]])
        return (*here, second, other_keys[second], other.classes[other.labels[second]])

    header = ("id", "key", "class", "other_id", "other_key", "other_class")
    both = zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    write_atomically(path, csv_table(header, (described(*one) for one in both)))


def _hashes(dataset: Dataset) -> NDArray[np.bytes_]:
    """xxh3_128 of every sample as found, in a form that NumPy sorts: 16 bytes in a row."""
    column = dataset.table(["source_hash"])["source_hash"].combine_chunks()
    # Fixed-width bytes drop trailing zeros; as numbers nothing is dropped.
    words = np.frombuffer(column.buffers()[1], np.uint8)[: 16 * len(column)]
    return words.reshape(-1, 16).view([("high", "u8"), ("low", "u8")]).ravel()
