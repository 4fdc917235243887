"""From found files to shards: threads that each own a whole shard, committed one by one.

A shard owns a fixed range of found positions, so its bytes depend on nothing but its own files:
threads, interruptions and repetitions end in the same bytes. Tar and index get their names when
they are whole; then the shard's record (``shards.records``) commits it. At the end the records
become the tables and the manifest, and are removed.
"""

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Semaphore
from typing import Protocol

import numpy as np

from shards.atomic import write_atomically
from shards.errors import MachineError, UsageError
from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry
from shards.plan import Plan
from shards.probe import MAX_FILE_BYTES
from shards.quarantine import require_few
from shards.records import (
    Row,
    ShardRecord,
    is_committed,
    refused_rows,
    remove_records,
    write_tables,
)
from shards.sources.base import Source
from shards.storing import store_sample
from shards.tar import ShardWriter, index_path, shard_name

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
    if prepare(plan, scratch):
        pack_shards(plan, scratch, range(plan.n_shards), workers=workers, observer=observer)
    return finish(plan, scratch, listed)


def prepare(plan: Plan, scratch: Path) -> bool:
    """Clear what a kill left and bind ``scratch`` to the source; whether shards may be missing.

    Raises:
        UsageError: The source was written again since the interrupted packing in ``scratch``.
    """
    for leftover in scratch.glob(".*.partial"):
        leftover.unlink()
    if (scratch / MANIFEST_NAME).is_file():
        return False
    _pin_source(plan.source, scratch)
    return True


def pack_shards(
    plan: Plan, scratch: Path, shards: Sequence[int], *, workers: int, observer: Observer
) -> None:
    """Write and commit those of ``shards`` that are not committed yet; see ``pack``."""
    uncommitted: list[int] = []
    for shard in shards:
        if is_committed(scratch, shard):
            observer.shard(ShardRecord.read(scratch, shard), resumed=True)
        else:
            uncommitted.append(shard)
    _require_space(plan, scratch, uncommitted)
    if plan.resize is not None:
        from kernels.resample import warm_up  # imports Numba and compiles: 4 s and 130 MB

        warm_up()
    packing = _Packing(plan, scratch, observer, Semaphore(workers))
    # Twice as many threads as may work at once: the others wait for the disk to take a shard.
    with ThreadPoolExecutor(2 * workers, thread_name_prefix="pack") as pool:
        tasks = [pool.submit(packing.pack, shard) for shard in uncommitted]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            packing.stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def finish(plan: Plan, scratch: Path, listed: Path) -> Manifest:
    """Turn the records of all shards into tables and manifest; see ``pack``."""
    if (scratch / MANIFEST_NAME).is_file():
        manifest = Manifest.read(scratch)
    else:
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
            f"files of {source.place} were written again since the interrupted packing in "
            f"{scratch}; remove that folder and pack again"
        )


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
    working: Semaphore
    """As many threads as there are workers; none while the disk takes a finished shard."""
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

    def _write(self, shard: int, path: Path) -> ShardRecord:
        writer = ShardWriter.open(path)
        try:
            with self.working:
                rows = [self._store(position, writer) for position in self.plan.positions(shard)]
            sha256 = writer.finish()
        except BaseException:
            writer.abandon()
            raise
        positions = self.plan.positions(shard)
        entry = ShardEntry(
            name=path.name,
            first_position=positions.start,
            found=len(positions),
            samples=len(writer.samples),
            bytes=writer.size,
            index_bytes=index_path(path).stat().st_size,
            sha256=sha256,
        )
        return ShardRecord(
            entry=entry,
            samples=[{"shard": shard, **row} for row in rows if "reason" not in row],
            refused=[row for row in rows if "reason" in row],
        )

    def _store(self, position: int, writer: ShardWriter) -> Row:
        if self.stop.is_set():
            raise CancelledError
        row = store_sample(self.plan, position, writer)
        source = self.plan.source
        size = int(source.row_sizes[source.rows[position]])
        with self._turn:
            self.observer.image(size, packed="reason" not in row)
        return row
