"""Plan of a packing: source, labels and options, which determine every byte of its output."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.shards.errors import UsageError
from coreset.shards.images.flags import Refusal
from coreset.shards.images.probe import probe
from coreset.shards.sources.base import Source
from coreset.shards.tables.sample_names import SEVERAL, UNKNOWN, SampleNames
from coreset.shards.tables.table import SEPARATORS, Table, class_in, read_table

MAX_BLOCK_SAMPLES = 128
MAX_BLOCK_BYTES = 1 << 22
"""Limit of a block with several samples."""
_NO_ROW = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Input of a packing; a position is an index into the files of the source."""

    source: Source
    labels: NDArray[np.int64]
    """Class of each file, of shape (files,)."""
    samples_per_shard: int
    """Files of a shard, packed or refused."""
    name: str
    split: str
    settings: Mapping[str, Any]
    check: bool = True
    """Decode every image, not only its header."""
    short_side: int | None = None
    """Most pixels of the short side of re-encoded images; None keeps the bytes of the files."""
    quality: int = 90
    """JPEG quality of re-encoded images, 1 to 100."""
    skip_damaged: bool = True
    """List files that cannot be packed, up to a limit; else the first one stops the packing."""

    @property
    def n_shards(self) -> int:
        """Number of shards; the last one may be short."""
        return -(-len(self.source) // self.samples_per_shard)

    def positions(self, shard: int) -> range:
        """Return the positions of a shard."""
        first = shard * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, len(self.source)))

    def sizes(self, positions: range) -> NDArray[np.int64]:
        """Return the sizes in bytes of files."""
        return self.source.row_sizes[self.source.rows[positions.start : positions.stop]]

    def blocks(self, shard: int) -> list[range]:
        """Divide the positions of a shard into blocks, each encoded by one worker at once."""
        positions = self.positions(shard)
        blocks: list[range] = []
        first, n_bytes = positions.start, 0
        for position, size in zip(positions, self.sizes(positions).tolist(), strict=True):
            full = position - first == MAX_BLOCK_SAMPLES or n_bytes + size > MAX_BLOCK_BYTES
            if position > first and full:
                blocks.append(range(first, position))
                first, n_bytes = position, 0
            n_bytes += size
        return [*blocks, range(first, positions.stop)]


def read_labels(path: Path, column: str, source: Source) -> NDArray[np.int64]:
    """Return the label of every file, int64 of shape (files,), by ``column`` of a table.

    Another column names the image, as `SampleNames` matches it. Rows of other images are ignored.
    A file without a row keeps its folder's label if it is no image and will be refused.
    """
    root = source.place if source.place.is_dir() else source.place.parent
    keys, sources = (column.take(source.rows) for column in (source.row_keys, source.row_names))
    names = SampleNames(keys, sources, folder=root.resolve().name)
    table = read_table(path, "labels table", names.known, asked=column)
    name_column, label_column = _columns(table, column)
    labels = np.full(len(source), _NO_ROW, dtype=np.int64)
    label_of = {name: label for label, name in enumerate(source.classes)}
    for line, cells in table.rows():
        if len(cells) <= max(name_column, label_column):
            continue
        position, value = names.position(cells[name_column]), cells[label_column].strip()
        if position == UNKNOWN:
            continue
        label = label_of.get(value, label_of.get(class_in(value)))
        if position == SEVERAL:
            raise UsageError(f"{table.where(line)} names several images; list their sample keys")
        if label is None:
            raise UsageError(
                f"{table.where(line)}: {column} is {value!r}, which is no class folder of "
                f"{source.place}; correct the table or choose another column"
            )
        if labels[position] not in (_NO_ROW, label):
            raise UsageError(
                f"{table.where(line)} contradicts an earlier row of "
                f"{source.sample(position).name}; remove one of them"
            )
        labels[position] = label
    _require_rows(table, name_column, labels, source)
    return np.where(labels == _NO_ROW, source.labels, labels)


def _columns(table: Table, column: str) -> tuple[int, int]:
    label_columns = [at for at, name in enumerate(table.header) if name == column]
    name_column = table.sample_column() if len(table.header) > 1 else 0
    if len(label_columns) != 1 or label_columns[0] == name_column:
        choices = [name for at, name in enumerate(table.header) if at != name_column]
        remedy = f"choose one of {', '.join(choices)}"
        if not choices:
            seen = table.described()
            remedy = f"it has {seen}; write a header, and separate columns by {SEPARATORS}"
        raise UsageError(f"{table.path} has no label column {column!r}; {remedy}")
    return name_column, label_columns[0]


def _require_rows(
    table: Table, name_column: int, labels: NDArray[np.int64], source: Source
) -> None:
    missing = np.flatnonzero(labels == _NO_ROW)
    if missing.size == labels.size:
        sample, first = source.sample(0), next((row.cells[name_column] for row in table.head), "")
        raise UsageError(
            f"no row of {table.path} names an image of {source.place}: column "
            f"{table.header[name_column]!a} has {first!a}, looked for was {sample.key!a}, "
            f"{sample.name!a} or a path that ends in one of these; correct the names"
        )
    for position in missing:
        sample = source.sample(int(position))
        if sample.row in source.unreadable:
            continue
        with suppress(Refusal):  # what is no image needs no label
            probe(source.contents.read(sample))
            raise UsageError(
                f"{sample.name} has no row in {table.path} ({missing.size:,} of {len(source):,} "
                "files have none); add the rows or remove the files"
            )
