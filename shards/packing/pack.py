"""Pack source files into shards: several are built at once and committed one by one.

A shard owns a fixed range of positions, so its bytes depend on its own files alone: any number of
workers, interruptions and repetitions gives the same bytes. Complete tars and indices are renamed;
then the shard's record (``shards.format.records``) commits it. At the end the records become the
tables and the manifest, and are removed.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Semaphore
from typing import Protocol

from coreset.shards.errors import MachineError, UsageError
from coreset.shards.format.files import write_atomically
from coreset.shards.format.manifest import MANIFEST_NAME, Manifest
from coreset.shards.format.records import (
    ShardRecord,
    is_committed,
    refused_rows,
    remove_records,
    write_tables,
)
from coreset.shards.images.probe import MAX_FILE_BYTES
from coreset.shards.packing.plan import Plan
from coreset.shards.packing.quarantine import require_few
from coreset.shards.packing.shard_builder import ShardBuilder
from coreset.shards.packing.workers import EncodedBlock, Worker, can_fork, evict_code, start_workers
from coreset.shards.sources.base import Source

SOURCE_STATE_NAME = "source-state.sha256"
# Headers, label and padding of a sample come to 1.8 KiB, its rows to 0.5 KiB.
_EXTRA_BYTES_PER_SAMPLE = 2400
_BLOCKS_PER_WORKER = 8


class Observer(Protocol):
    """Progress of a packing, one call at a time; an exception from a method stops the packing."""

    def block(self, found: int, source_bytes: int, *, refused: int) -> None:
        """Count files that were read, some of which were refused."""
        ...

    def shard(self, record: ShardRecord, *, resumed: bool) -> None:
        """Count a shard that was committed now or, if ``resumed``, by an interrupted run."""
        ...


def pack(plan: Plan, scratch: Path, *, workers: int, listed: Path, observer: Observer) -> Manifest:
    """Make a packed data set in ``scratch``, or continue an interrupted packing.

    Args:
        plan: The packing.
        scratch: Directory that only this call writes to.
        workers: Threads or processes.
        listed: CSV file that lists the refused files if they are too many.
        observer: Notified of every file and shard.

    Raises:
        UsageError: A source file cannot be read, or changed since the source was listed.
        DataError: More files were refused than the limits allow.
        MachineError: The disk is full or fails; committed shards are kept.
    """
    if prepare(plan, scratch):
        pack_shards(plan, scratch, range(plan.n_shards), workers=workers, observer=observer)
    return finish(plan, scratch, listed)


def prepare(plan: Plan, scratch: Path) -> bool:
    """Remove partial files and bind ``scratch`` to the source.

    Returns:
        Whether shards may be missing.

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
    """Write and commit those of ``shards`` that are not committed yet, as `pack` does."""
    uncommitted: list[int] = []
    for shard in shards:
        if is_committed(scratch, shard):
            observer.shard(ShardRecord.read(scratch, shard), resumed=True)
        else:
            uncommitted.append(shard)
    _require_space(plan, scratch, uncommitted)
    if plan.resize is not None:
        from coreset.kernels.jpeg.resize import warm_up

        warm_up()
        evict_code("libllvmlite")  # the compiler has done its work: 60 MB
    # Decoding needs the interpreter often enough for processes to be faster; copying does not.
    processes = plan.decodes and workers > 1 and can_fork()
    _Packing(plan, scratch, observer, workers).pack(uncommitted, processes=processes)


def finish(plan: Plan, scratch: Path, listed: Path) -> Manifest:
    """Write tables and manifest from the records of all shards, as `pack` does."""
    if (scratch / MANIFEST_NAME).is_file():
        manifest = Manifest.read(scratch)
    else:
        refused, source = refused_rows(scratch, plan.n_shards), plan.source
        require_few(refused, source.classes, source.class_sizes(), listed)
        manifest = write_tables(
            scratch,
            n_shards=plan.n_shards,
            refused=refused,
            name=plan.name,
            split=plan.split,
            classes=source.classes,
            settings=plan.settings,
        )
    remove_records(scratch)
    (scratch / SOURCE_STATE_NAME).unlink(missing_ok=True)
    return manifest


def thread_count(workers: int) -> int:
    """Return the number of threads: ``workers``, or for 0 one per core of this process.

    Raises:
        UsageError: ``workers`` is negative.
    """
    if workers < 0:
        raise UsageError(f"workers must be 0 (one per core) or more, got {workers}")
    return workers or len(os.sched_getaffinity(0))


def _pin_source(source: Source, scratch: Path) -> None:
    """Record the state of the files, modification times included, and refuse another one."""
    path, state = scratch / SOURCE_STATE_NAME, source.state_sha256()
    if not path.exists():
        write_atomically(path, state.encode())
    elif path.read_text() != state:
        raise UsageError(
            f"files of {source.place} were written again since the interrupted packing in "
            f"{scratch}; remove that folder and pack again"
        )


def _require_space(plan: Plan, scratch: Path, shards: list[int]) -> None:
    """Check before the long part that the uncommitted shards fit on the disk."""
    needed = 0
    for shard in shards:
        sizes = plan.sizes(plan.positions(shard))
        needed += int(sizes[sizes <= MAX_FILE_BYTES].sum()) + _EXTRA_BYTES_PER_SAMPLE * sizes.size
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise MachineError(
            f"packing needs {needed:,} bytes in {scratch.parent}, {free:,} are free; free some "
            "space or choose another output"
        )


class _Packing:
    """Threads of one packing: each has a block encoded, then writes the blocks that are next.

    As many shards as workers are built at once, one block of each in turn, so that the last shards
    keep all threads busy too. A block is admitted to memory in the order of writing before it is
    encoded: waiting blocks cannot keep out the block that they wait for.
    """

    def __init__(self, plan: Plan, scratch: Path, observer: Observer, workers: int) -> None:
        self._plan, self._scratch, self._observer = plan, scratch, observer
        self._workers = workers
        self._idle = SimpleQueue[Worker]()
        self._admitted = Semaphore(_BLOCKS_PER_WORKER * workers)
        self._stop = Event()
        self._failure: BaseException | None = None
        self._lock = Lock()

    def pack(self, shards: Sequence[int], *, processes: bool) -> None:
        """Write and commit shards."""
        builders: list[ShardBuilder] = []
        n_workers = self._workers + processes  # an extra process hides the delay of the pipes
        try:
            with (
                start_workers(
                    self._plan, n_workers, self._stop.is_set, processes=processes
                ) as workers,
                # Twice as many threads as may encode blocks at once: the others wait for the disk.
                ThreadPoolExecutor(2 * self._workers, thread_name_prefix="pack") as pool,
            ):
                for worker in workers:
                    self._idle.put(worker)
                self._submit(pool, shards, builders)
            if self._failure is not None:
                raise self._failure
        finally:
            for builder in builders:
                builder.abandon()

    def _submit(
        self, pool: ThreadPoolExecutor, shards: Sequence[int], builders: list[ShardBuilder]
    ) -> None:
        """Submit all blocks in the order of writing, and keep the builders of their shards."""
        try:
            for builder, number in self._blocks(shards, builders):
                self._admitted.acquire()
                worker = self._idle.get()  # in this thread, so that blocks begin in order
                if self._stop.is_set():
                    return
                pool.submit(self._run, worker, builder, number)
        except BaseException:
            self._stop.set()
            raise

    def _blocks(
        self, shards: Sequence[int], builders: list[ShardBuilder]
    ) -> Iterator[tuple[ShardBuilder, int]]:
        """Yield the blocks of the first shards in turn, then of the next ones."""
        for first in range(0, len(shards), self._workers):
            group = [
                ShardBuilder(self._plan, shard, self._scratch)
                for shard in shards[first : first + self._workers]
            ]
            builders += group
            for number in range(max(len(builder.blocks) for builder in group)):
                yield from ((b, number) for b in group if number < len(b.blocks))

    def _run(self, worker: Worker, builder: ShardBuilder, number: int) -> None:
        """Encode and write one block; commit the shard if it is complete."""
        try:
            block = self._encode(worker, builder.blocks[number])
            written, complete = builder.put(number, block)
            for _ in range(written):
                self._admitted.release()
            if complete:
                record = builder.finish()
                record.commit(self._scratch, builder.shard)
                with self._lock:
                    self._observer.shard(record, resumed=False)
        except BaseException as error:  # noqa: BLE001 - raised by ``pack``, in its thread
            self._fail(error)

    def _encode(self, worker: Worker, positions: range) -> EncodedBlock:
        try:
            if self._stop.is_set():
                raise CancelledError
            encoded = worker.encode(positions)
            # Before the worker is idle again, because the observer may stop the packing.
            n_bytes = int(self._plan.sizes(positions).sum())
            with self._lock:
                self._observer.block(len(positions), n_bytes, refused=len(encoded.block.refused))
        finally:
            self._idle.put(worker)
        return encoded

    def _fail(self, error: BaseException) -> None:
        """Keep the first error, stop the threads, and wake the one that submits blocks."""
        with self._lock:
            if not self._stop.is_set():
                self._failure = self._disk_error(error) if isinstance(error, OSError) else error
            self._stop.set()
        self._admitted.release()

    def _disk_error(self, error: OSError) -> MachineError:
        free = shutil.disk_usage(self._scratch).free
        return MachineError(
            f"{error.filename or self._scratch} cannot be written ({error.strerror}; {free:,} "
            "bytes are free); mend that, and the same command continues"
        )
