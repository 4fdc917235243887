"""Shard that several threads build: blocks are encoded in any order and written in theirs."""

from collections import defaultdict
from pathlib import Path
from threading import Lock
from typing import Any

from coreset.shards.format.manifest import ShardEntry
from coreset.shards.format.records import Row, ShardRecord
from coreset.shards.format.tar import ShardWriter, index_path, shard_name
from coreset.shards.packing.plan import Plan
from coreset.shards.packing.workers import EncodedBlock


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
        self._waiting: dict[int, EncodedBlock] = {}
        self._n_written = 0
        self._writing = False
        self._lock = Lock()

    def put(self, number: int, block: EncodedBlock) -> tuple[int, bool]:
        """Take a block; write the blocks that are next, unless another thread is writing.

        Returns:
            The number of blocks that this call wrote, and whether the shard is complete with them.
        """
        with self._lock:
            self._waiting[number] = block
            if self._writing:
                return 0, False
            self._writing = True
        written = 0
        while True:
            with self._lock:
                following = self._waiting.pop(self._n_written, None)
                if following is None:
                    self._writing = False
                    return written, self._n_written == len(self.blocks)
            self._write(following)
            self._n_written += 1
            written += 1

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
        record = ShardRecord(entry=entry, samples=dict(self._samples), refused=self._refused)
        # Builders outlive their shards.
        self._samples, self._refused, self._writer = defaultdict(list), [], None
        return record

    def abandon(self) -> None:
        """Remove an unfinished shard; a finished one stays."""
        if self._writer is not None:
            self._writer.abandon()

    def _open(self) -> ShardWriter:
        if self._writer is None:
            self._writer = ShardWriter(self._path)
        return self._writer

    def _write(self, block: EncodedBlock) -> None:
        (positions, columns, refused), parts = block
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
