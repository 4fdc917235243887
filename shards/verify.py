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

import xxhash

from shards.atomic import sha256_of_file
from shards.dataset import QUARANTINE_NAME, SAMPLES_NAME, Dataset, Flag, Table
from shards.errors import DataError
from shards.manifest import ShardEntry, classes_digest, content_digest, identity_digest
from shards.probe import Probe, Refusal, probe
from shards.records import Row
from shards.tar import Member, index_bytes, index_path, walk

_NAMED_DAMAGES = 3
_PLACE = ("member", "offset", "bytes")
"""Columns that say what `shards.tar.Member` does."""


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
