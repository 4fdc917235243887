"""From found files to shards: threads that each own a whole shard, committed one by one.

A shard owns a fixed range of found positions, so its bytes depend on nothing but its own files:
threads, interruptions and repetitions end in the same bytes. Tar and index get their names when
they are whole; then the shard's record (``shards.records``) commits it. At the end the records
become the tables and the manifest, and are removed.
"""

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.atomic import write_atomically
from shards.errors import MachineError, UsageError
from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry
from shards.probe import MAX_FILE_BYTES, Probe, Refusal, probe, refuse_long_file
from shards.quarantine import require_few
from shards.records import (
    Row,
    ShardRecord,
    is_committed,
    refused_rows,
    remove_records,
    write_tables,
)
from shards.sources import Source, sample_key
from shards.tar import Member, ShardWriter, index_path, shard_name

SOURCE_STATE_NAME = "source-state.sha256"
# Headers, label and padding of a sample come to 1.8 KiB, its rows to 0.5 KiB.
_EXTRA_BYTES_PER_SAMPLE = 2400


class Observer(Protocol):
    """Is told what happens, one call at a time; an exception from it stops the packing."""

    def image(self, source_bytes: int, *, packed: bool) -> None:
        """A file was packed or refused."""
        ...

    def shard(self, record: ShardRecord, *, resumed: bool) -> None:
        """A shard is committed, now or (``resumed``) by an interrupted run."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be packed, and how it will be called."""

    source: Source
    """Found files in pack order."""
    labels: NDArray[np.int64]
    """Label of each found file, int64 of shape (found,)."""
    samples_per_shard: int
    """Found positions per shard."""
    name: str
    split: str
    settings: Mapping[str, Any]
    """What the manifest will record of how the bytes were shaped."""

    @property
    def n_shards(self) -> int:
        """Shards, the last one possibly short."""
        return -(-len(self.source) // self.samples_per_shard)

    def positions(self, shard: int) -> range:
        """Found positions of a shard."""
        first = shard * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, len(self.source)))


def pack(plan: Plan, scratch: Path, *, workers: int, listed: Path, observer: Observer) -> Manifest:
    """Fill ``scratch`` with a packed data set, or continue what an interrupted run left there.

    Args:
        plan: What to pack.
        scratch: Directory that only this call writes to.
        workers: Threads.
        listed: CSV file to list the refused files in, if they are too many.
        observer: Is told of every file and shard.

    Raises:
        UsageError: A source file cannot be read, or changed after it was found.
        DataError: More files were refused than the limits allow.
        MachineError: The disk is full or fails; what was committed is kept.
    """
    for leftover in scratch.glob(".*.partial"):
        leftover.unlink()
    if (scratch / MANIFEST_NAME).is_file():
        manifest = Manifest.read(scratch)
    else:
        _pin_source(plan.source, scratch)
        _pack_shards(plan, scratch, workers, observer)
        refused, source = refused_rows(scratch, plan.n_shards), plan.source
        require_few(refused, source.classes, source.class_sizes(), listed)
        manifest = write_tables(
            scratch,
            n_shards=plan.n_shards,
            name=plan.name,
            split=plan.split,
            classes=source.classes,
            settings=plan.settings,
        )
    remove_records(scratch)
    (scratch / SOURCE_STATE_NAME).unlink(missing_ok=True)
    return manifest


def thread_count(workers: int) -> int:
    """Threads to use: ``workers``, or for 0 one per core that this process may run on.

    Raises:
        UsageError: ``workers`` is negative.
    """
    if workers < 0:
        raise UsageError(f"workers must be 0 (one per core) or more, got {workers}")
    return workers or len(os.sched_getaffinity(0))


def _pin_source(source: Source, scratch: Path) -> None:
    """Bind an interrupted packing to the files as they were, down to their modification times."""
    path, state = scratch / SOURCE_STATE_NAME, source.state_sha256()
    if not path.exists():
        write_atomically(path, state.encode())
    elif path.read_text() != state:
        raise UsageError(
            f"files of {source.root} were written again since the interrupted packing in "
            f"{scratch}; remove that folder and pack again"
        )


def _pack_shards(plan: Plan, scratch: Path, workers: int, observer: Observer) -> None:
    uncommitted: list[int] = []
    for shard in range(plan.n_shards):
        if is_committed(scratch, shard):
            observer.shard(ShardRecord.read(scratch, shard), resumed=True)
        else:
            uncommitted.append(shard)
    _require_space(plan, scratch, uncommitted)
    packing = _Packing(plan, scratch, observer)
    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
        shards = [pool.submit(packing.pack, shard) for shard in uncommitted]
        try:
            for shard in as_completed(shards):
                shard.result()
        except BaseException:
            packing.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _require_space(plan: Plan, scratch: Path, shards: list[int]) -> None:
    """Check before the long part that what is left to pack fits on the disk."""
    left = np.array([at for shard in shards for at in plan.positions(shard)], dtype=np.int64)
    sizes = plan.source.sizes[left]
    needed = int(sizes[sizes <= MAX_FILE_BYTES].sum()) + _EXTRA_BYTES_PER_SAMPLE * left.size
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise MachineError(
            f"packing needs {needed:,} bytes in {scratch.parent}, {free:,} are free; free some "
            "space or choose another output"
        )


@dataclass(frozen=True, slots=True)
class _Packing:
    """State shared by the threads of one packing."""

    plan: Plan
    scratch: Path
    observer: Observer
    stop: Event = field(default_factory=Event)
    _turn: Lock = field(default_factory=Lock)

    def pack(self, shard: int) -> None:
        """Write and commit one shard."""
        path = self.scratch / shard_name(shard)
        try:
            record = self._write(shard, path)
            record.commit(self.scratch, shard)
        except OSError as error:
            free = shutil.disk_usage(self.scratch).free
            raise MachineError(
                f"{path} cannot be written ({error.strerror}; {free:,} bytes are free); mend that, "
                "and the same command continues"
            ) from error
        with self._turn:
            self.observer.shard(record, resumed=False)

    def _require_going_on(self) -> None:
        if self.stop.is_set():
            raise CancelledError

    def _write(self, shard: int, path: Path) -> ShardRecord:
        rows: list[Row] = []
        positions = self.plan.positions(shard)
        writer = ShardWriter.open(path)
        try:
            for position in positions:
                self._require_going_on()
                row = _pack_file(self.plan, position, writer)
                rows.append(row)
                with self._turn:
                    self.observer.image(row["bytes"], packed="reason" not in row)
            sha256 = writer.finish()
        except BaseException:
            writer.abandon()
            raise
        entry = ShardEntry(
            name=path.name,
            first_position=positions.start,
            found=len(positions),
            samples=len(writer.samples),
            bytes=writer.size,
            sha256=sha256,
        )
        return ShardRecord(
            entry=entry,
            index_bytes=index_path(path).stat().st_size,
            samples=[{"shard": shard, **row} for row in rows if "reason" not in row],
            refused=[row for row in rows if "reason" in row],
        )


def _pack_file(plan: Plan, position: int, writer: ShardWriter) -> Row:
    """Append one file to its shard; the row of a refused file has a reason.

    The bytes are read once: hashed, decoded and written from the same buffer.
    """
    source, name = plan.source, plan.source.names[position]
    row: Row = {"key": sample_key(name), "source": name, "bytes": int(source.sizes[position])}
    row["content_hash"] = None
    folder_label = int(source.labels[position])
    try:
        refuse_long_file(row["bytes"])
        data = _read(source, position)
        row["content_hash"] = xxhash.xxh3_128_hexdigest(data)
        image = probe(data)
    except Refusal as refusal:
        row |= {"position": position, "class": source.classes[folder_label]}
        return row | {"reason": str(refusal.reason), "detail": refusal.detail}
    label = int(plan.labels[position])
    member = writer.add(position, image.format, data, label)
    row |= {"label": label, "class": source.classes[label], "folder_label": folder_label}
    return row | _image_columns(member, image)


def _image_columns(member: Member, image: Probe) -> Row:
    return {
        "member": member.name,
        "offset": member.offset,
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "flags": int(image.flags),
    }


def _read(source: Source, position: int) -> bytes:
    path = source.root / source.names[position]
    expected = int(source.sizes[position]), int(source.mtimes_ns[position])
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(expected[0] + 1)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}); mend that, and the same command continues"
        ) from error
    if (status.st_size, status.st_mtime_ns) != expected or len(data) != expected[0]:
        raise UsageError(
            f"{path} changed while it was being packed; pack again when nothing writes to "
            f"{source.root}"
        )
    return data
