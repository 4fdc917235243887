"""Shards built block by block: blocks are encoded in any order, and written in theirs."""

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Semaphore
from typing import Any, Protocol

from coreset.shards.errors import MachineError
from coreset.shards.format.dataset import ShardEntry
from coreset.shards.format.records import Row, ShardRecord
from coreset.shards.format.tar import ShardWriter, index_path, shard_name
from coreset.shards.packing.encode import Block
from coreset.shards.packing.plan import Plan
from coreset.shards.packing.workers import Worker, start_workers

_BLOCKS_PER_WORKER = 8


class Observer(Protocol):
    """Progress of a packing, one call at a time; an exception from a method stops the packing."""

    def block(self, found: int, source_bytes: int, *, refused: int) -> None:
        """Count files that were read, some of which were refused."""

    def shard(self, record: ShardRecord, *, resumed: bool) -> None:
        """Count a shard that was committed now or, if ``resumed``, by an interrupted run."""


class ShardBuilder:
    """Builder of one shard; its file is created by the first block."""

    def __init__(self, plan: Plan, shard: int, scratch: Path) -> None:
        self.shard = shard
        self.blocks = plan.blocks(shard)
        self._positions = plan.positions(shard)
        self._path = scratch / shard_name(shard)
        self._writer: ShardWriter | None = None
        self._samples = defaultdict[str, list[Any]](list)
        self._refused: list[Row] = []
        self._waiting: dict[int, Block] = {}
        self._n_written = 0
        self._lock = Lock()

    def put(self, number: int, block: Block) -> tuple[int, bool]:
        """Take a block and write those that are next.

        Return the number of blocks written, and whether the shard is complete with them.
        """
        with self._lock:
            self._waiting[number] = block
            before = self._n_written
            while self._n_written in self._waiting:
                self._write(self._waiting.pop(self._n_written))
                self._n_written += 1
            return self._n_written - before, self._n_written == len(self.blocks)

    def finish(self) -> ShardRecord:
        """Make the complete shard durable under its name; the caller commits the record."""
        writer = self._open()
        sha256 = writer.finish()
        entry = ShardEntry(
            name=self._path.name,
            first_position=self._positions.start,
            found=len(self._positions),
            samples=len(writer.samples),
            bytes=writer.size,
            index_bytes=index_path(self._path).stat().st_size,
            sha256=sha256,
        )
        return ShardRecord(entry=entry, samples=dict(self._samples), refused=self._refused)

    def close(self) -> None:
        """Remove an unfinished shard; a finished one stays."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> ShardWriter:
        self._writer = self._writer or ShardWriter(self._path)
        return self._writer

    def _write(self, block: Block) -> None:
        positions, columns, refused, parts = block
        self._refused += refused
        if not positions:
            return
        described = (columns[name] for name in ("format", "bytes", "label"))
        members = self._open().extend(parts, zip(positions, *described, strict=True))
        places: dict[str, list[Any]] = {
            "shard": [self.shard] * len(members),
            "member": [member.name for member in members],
            "offset": [member.offset for member in members],
        }
        for name, values in (columns | places).items():
            self._samples[name] += values


class Packing:
    """Threads of one packing: each has a block encoded, then writes the blocks that are next.

    As many shards as workers are built at once, so that the last shards keep all threads busy too.
    A block is admitted to memory in the order of writing before it is encoded: waiting blocks
    cannot keep out the block that they wait for.
    """

    def __init__(self, plan: Plan, scratch: Path, observer: Observer, workers: int) -> None:
        self._plan, self._scratch, self._observer = plan, scratch, observer
        self._workers = workers
        self._idle = SimpleQueue[Worker]()
        self._admitted = Semaphore(_BLOCKS_PER_WORKER * workers)
        self._stop = Event()
        self._failure: BaseException | None = None
        self._lock = Lock()
        self._builders: list[ShardBuilder] = []  # of unfinished shards

    def pack(self, shards: Sequence[int], *, processes: bool) -> None:
        """Write and commit shards; an OSError of the disk becomes a MachineError."""
        n_workers = self._workers + processes  # an extra process hides the delay of the pipes
        stopped = self._stop.is_set
        try:
            with (
                start_workers(self._plan, n_workers, stopped, processes=processes) as workers,
                # Twice as many threads as may encode blocks at once: the others wait for the disk.
                ThreadPoolExecutor(2 * self._workers, thread_name_prefix="pack") as pool,
            ):
                for worker in workers:
                    self._idle.put(worker)
                self._submit(pool, shards)
            if self._failure is not None:
                raise self._failure
        finally:
            for builder in self._builders:
                builder.close()

    def _submit(self, pool: ThreadPoolExecutor, shards: Sequence[int]) -> None:
        try:
            for builder, number in self._blocks(shards):
                self._admitted.acquire()
                worker = self._idle.get()  # in this thread, so that blocks begin in order
                if self._stop.is_set():
                    return
                pool.submit(self._run, worker, builder, number)
        except BaseException:
            self._stop.set()
            raise

    def _blocks(self, shards: Sequence[int]) -> Iterator[tuple[ShardBuilder, int]]:
        for first in range(0, len(shards), self._workers):
            some = shards[first : first + self._workers]
            group = [ShardBuilder(self._plan, shard, self._scratch) for shard in some]
            self._builders += group
            for number in range(max(len(builder.blocks) for builder in group)):
                yield from ((b, number) for b in group if number < len(b.blocks))

    def _run(self, worker: Worker, builder: ShardBuilder, number: int) -> None:
        try:
            block = self._encode(worker, builder.blocks[number])
            written, complete = builder.put(number, block)
            for _ in range(written):
                self._admitted.release()
            if complete:
                record = builder.finish()
                record.commit(self._scratch, builder.shard)
                self._builders.remove(builder)
                with self._lock:
                    self._observer.shard(record, resumed=False)
        except BaseException as error:  # noqa: BLE001 - raised by ``pack``, in its thread
            self._fail(error)

    def _encode(self, worker: Worker, positions: range) -> Block:
        try:
            if self._stop.is_set():
                raise CancelledError
            block = worker(positions)
            # Before the worker is idle again, because the observer may stop the packing.
            n_bytes = int(self._plan.sizes(positions).sum())
            with self._lock:
                self._observer.block(len(positions), n_bytes, refused=len(block.refused))
        finally:
            self._idle.put(worker)
        return block

    def _fail(self, error: BaseException) -> None:
        """Keep the first error, stop the threads, and wake the one that submits blocks."""
        with self._lock:
            if not self._stop.is_set():
                self._failure = error
                if isinstance(error, OSError):
                    free = shutil.disk_usage(self._scratch).free
                    self._failure = MachineError(
                        f"{error.filename or self._scratch} cannot be written ({error.strerror}; "
                        f"{free:,} bytes are free); mend that, and the same command continues"
                    )
            self._stop.set()
        self._admitted.release()
