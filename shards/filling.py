"""A shard that several threads fill: blocks are made in any order and written in turn."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from shards.manifest import ShardEntry
from shards.plan import Plan
from shards.records import Row, ShardRecord
from shards.storing import Stored
from shards.tar import ShardWriter, index_path, shard_name


class Filling:
    """One shard in the making; opened by its first block."""

    def __init__(self, plan: Plan, shard: int, scratch: Path) -> None:
        self.shard = shard
        self.blocks = plan.blocks(shard)
        self._positions = plan.positions(shard)
        self._path = scratch / shard_name(shard)
        self._writer: ShardWriter | None = None
        self._samples: list[Row] = []
        self._refused: list[Row] = []
        self._made: dict[int, Sequence[Stored]] = {}
        self._n_written = 0
        self._writing = False
        self._turn = Lock()

    def put(self, number: int, block: Sequence[Stored]) -> tuple[int, bool]:
        """Take a block; write it and those after it whose turn it is, unless another thread does.

        Returns:
            How many blocks this call wrote, and whether the last one was among them.
        """
        with self._turn:
            self._made[number] = block
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
            self._write(self.blocks[self._n_written], ready)
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
            samples=len(self._samples),
            bytes=writer.size,
            index_bytes=index_path(self._path).stat().st_size,
            sha256=sha256,
        )
        record = ShardRecord(entry=entry, samples=columns_of(self._samples), refused=self._refused)
        self._samples, self._refused, self._writer = [], [], None  # fillings outlive their shards
        return record

    def abandon(self) -> None:
        """Remove what was written; a finished shard stays."""
        if self._writer is not None:
            self._writer.abandon()

    def _opened(self) -> ShardWriter:
        if self._writer is None:
            self._writer = ShardWriter(self._path)
        return self._writer

    def _write(self, positions: range, block: Sequence[Stored]) -> None:
        packed = [
            (position, row, data)
            for position, (row, data) in zip(positions, block, strict=True)
            if data is not None
        ]
        members = self._opened().extend(
            (position, row["format"], data, row["label"]) for position, row, data in packed
        )
        for (_, row, _), member in zip(packed, members, strict=True):
            place = {"shard": self.shard, "member": member.name, "offset": member.offset}
            self._samples.append(row | place)
        self._refused += [row for row, data in block if data is None]


def columns_of(rows: Sequence[Row]) -> dict[str, list[object]]:
    """Rows of equal keys as lists by column: half the JSON, and a table at once."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
