"""From found files to shards: several filled at once, committed one by one.

A shard owns a fixed range of found positions, so its bytes depend on nothing but its own files:
workers, interruptions and repetitions end in the same bytes. Tar and index get their names when
they are whole; then the shard's record (``shards.format.records``) commits it. At the end the
records become the tables and the manifest, and are removed.
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
from coreset.shards.packing.workers import EncodedBlock, Worker, can_fork, forget_code, workers_of
from coreset.shards.sources.base import Source

SOURCE_STATE_NAME = "source-state.sha256"
# Headers, label and padding of a sample come to 1.8 KiB, its rows to 0.5 KiB.
_EXTRA_BYTES_PER_SAMPLE = 2400
_BLOCKS_PER_WORKER = 8


class Observer(Protocol):
    """Is told what happens, one call at a time; an exception from it stops the packing."""

    def block(self, found: int, source_bytes: int, *, refused: int) -> None:
        """Some files were read, of which some were refused."""
        ...

    def shard(self, record: ShardRecord, *, resumed: bool) -> None:
        """A shard is committed, now or (``resumed``) by an interrupted run."""
        ...


def pack(plan: Plan, scratch: Path, *, workers: int, listed: Path, observer: Observer) -> Manifest:
    """Fill ``scratch`` with a packed data set, or continue what an interrupted run left there.

    Args:
        plan: What to pack.
        scratch: Directory that only this call writes to.
        workers: Threads or processes.
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
        from coreset.kernels.jpeg.resize import warm_up

        warm_up()
        forget_code("libllvmlite")  # the compiler has done its work: 60 MB
    # Decoding needs the interpreter often enough for processes to be faster; copying does not.
    processes = plan.decodes and workers > 1 and can_fork()
    _Packing(plan, scratch, observer, workers).pack(uncommitted, processes=processes)


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
    needed = 0
    for shard in shards:
        positions = plan.positions(shard)
        sizes = plan.source.row_sizes[plan.source.rows[positions.start : positions.stop]]
        needed += int(sizes[sizes <= MAX_FILE_BYTES].sum()) + _EXTRA_BYTES_PER_SAMPLE * sizes.size
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise MachineError(
            f"packing needs {needed:,} bytes in {scratch.parent}, {free:,} are free; free some "
            "space or choose another output"
        )


class _Packing:
    """State shared by the threads of one packing; each gets blocks made and writes them in turn.

    As many shards as there are workers are filled at once, block by block in turns, so that the
    last ones keep all threads busy too. A block gets its room in memory before it is begun, in the
    order of writing: those that wait for their turn cannot keep the one whose turn it is waiting.
    """

    def __init__(self, plan: Plan, scratch: Path, observer: Observer, workers: int) -> None:
        self._plan, self._scratch, self._observer = plan, scratch, observer
        self._workers = workers
        self._idle = SimpleQueue[Worker]()
        self._room = Semaphore(_BLOCKS_PER_WORKER * workers)
        self._stop = Event()
        self._failure: BaseException | None = None
        self._turn = Lock()

    def pack(self, shards: Sequence[int], *, processes: bool) -> None:
        """Write and commit shards."""
        fillings: list[ShardBuilder] = []
        # One process more than may work at once fills the gaps between question and answer.
        n_makers = self._workers + processes
        try:
            with (
                workers_of(self._plan, n_makers, self._stop.is_set, processes=processes) as makers,
                # Twice as many threads as may make blocks at once: the others wait for the disk.
                ThreadPoolExecutor(2 * self._workers, thread_name_prefix="pack") as pool,
            ):
                for maker in makers:
                    self._idle.put(maker)
                try:
                    for filling, number in self._in_turns(shards, fillings):
                        self._room.acquire()
                        maker = self._idle.get()  # here, so that blocks are begun in their order
                        if self._stop.is_set():
                            break
                        pool.submit(self._make, maker, filling, number)
                except BaseException:
                    self._stop.set()
                    raise
            if self._failure is not None:
                raise self._failure
        finally:
            for filling in fillings:
                filling.abandon()

    def _in_turns(
        self, shards: Sequence[int], fillings: list[ShardBuilder]
    ) -> Iterator[tuple[ShardBuilder, int]]:
        """Blocks of the first shards in turns, then of the next ones."""
        for first in range(0, len(shards), self._workers):
            group = [
                ShardBuilder(self._plan, shard, self._scratch)
                for shard in shards[first : first + self._workers]
            ]
            fillings += group
            for number in range(max(len(filling.blocks) for filling in group)):
                yield from ((one, number) for one in group if number < len(one.blocks))

    def _make(self, maker: Worker, filling: ShardBuilder, number: int) -> None:
        """Make one block; commit the shard if it was the last that was missing."""
        try:
            made = self._made(maker, filling.blocks[number])
            written, complete = filling.put(number, made)
            for _ in range(written):
                self._room.release()
            if complete:
                self._commit(filling)
        except BaseException as error:  # noqa: BLE001 - raised by ``pack``, in its thread
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Keep the first error, stop the threads, and wake the one that hands out blocks."""
        with self._turn:
            if not self._stop.is_set():
                self._failure = self._disk_error(error) if isinstance(error, OSError) else error
            self._stop.set()
        self._room.release()

    def _made(self, maker: Worker, positions: range) -> EncodedBlock:
        try:
            if self._stop.is_set():
                raise CancelledError
            made = maker.make(positions)
            # Before the next block is begun, which may be told to stop.
            self._tell(positions, refused=len(made.block.refused))
        finally:
            self._idle.put(maker)
        return made

    def _tell(self, positions: range, *, refused: int) -> None:
        source = self._plan.source
        n_bytes = int(source.row_sizes[source.rows[positions.start : positions.stop]].sum())
        with self._turn:
            self._observer.block(len(positions), n_bytes, refused=refused)

    def _commit(self, filling: ShardBuilder) -> None:
        record = filling.finish()
        record.commit(self._scratch, filling.shard)
        with self._turn:
            self._observer.shard(record, resumed=False)

    def _disk_error(self, error: OSError) -> MachineError:
        free = shutil.disk_usage(self._scratch).free
        return MachineError(
            f"{error.filename or self._scratch} cannot be written ({error.strerror}; {free:,} "
            "bytes are free); mend that, and the same command continues"
        )
