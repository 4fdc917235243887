"""A shard that several threads fill: blocks are made in any order and written in turn."""

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
    """One shard in the making; opened by its first block."""

    def __init__(self, plan: Plan, shard: int, scratch: Path) -> None:
        self.shard = shard
        self.blocks = plan.blocks(shard)
        self._positions = plan.positions(shard)
        self._path = scratch / shard_name(shard)
        self._writer: ShardWriter | None = None
        self._samples = defaultdict[str, list[Any]](list)
        self._refused: list[Row] = []
        self._made: dict[int, EncodedBlock] = {}
        self._n_written = 0
        self._writing = False
        self._turn = Lock()

    def put(self, number: int, made: EncodedBlock) -> tuple[int, bool]:
        """Take a block; write it and those after it whose turn it is, unless another thread does.

        Returns:
            How many blocks this call wrote, and whether the last one was among them.
        """
        with self._turn:
            self._made[number] = made
            if self._writing:
                return 0, False
            self._writing = True
        written = 0
        while True:
            with self._turn:
                ready = self._made.pop(self._n_written, None)
                if ready is None:
                    self._writing = False
                    return written, self._n_written == len(self.blocks)
            self._write(ready)
            self._n_written += 1
            written += 1

    def finish(self) -> ShardRecord:
        """Make the shard durable under its name; its record is still to be committed."""
        writer = self._opened()
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
        # Fillings outlive their shards.
        self._samples, self._refused, self._writer = defaultdict(list), [], None
        return record

    def abandon(self) -> None:
        """Remove what was written; a finished shard stays."""
        if self._writer is not None:
            self._writer.abandon()

    def _opened(self) -> ShardWriter:
        if self._writer is None:
            self._writer = ShardWriter(self._path)
        return self._writer

    def _write(self, made: EncodedBlock) -> None:
        (positions, columns, refused), parts = made
        self._refused += refused
        if not positions:
            return
        facts = (columns[name] for name in ("format", "bytes", "label"))
        members = self._opened().extend(parts, zip(positions, *facts, strict=True))
        place: dict[str, list[Any]] = {
            "shard": [self.shard] * len(members),
            "member": [member.name for member in members],
            "offset": [member.offset for member in members],
        }
        for name, values in (columns | place).items():
            self._samples[name] += values
