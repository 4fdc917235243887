"""Plan of a packing: its source, labels and options, which determine every byte of its output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.shards.sources.base import Source

MAX_BLOCK_SAMPLES = 128
MAX_BLOCK_BYTES = 1 << 22
"""Limit of a block with several samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Re-encoding of packed images."""

    short_side: int
    """Pixels; smaller images keep their size."""
    quality: int
    """JPEG quality, 1 to 100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Input of a packing."""

    source: Source
    """Files in pack order; a position is an index into them."""
    labels: NDArray[np.int64]
    """Of shape (files,)."""
    samples_per_shard: int
    """Files of a shard, packed or refused."""
    name: str
    split: str
    settings: Mapping[str, Any]
    """Options that the manifest records."""
    check: bool = True
    """Decode every image, not only its header."""
    resize: Resize | None = None
    """None keeps the bytes of the files."""
    skip_damaged: bool = True
    """List files that cannot be packed, up to a limit; else the first one stops the packing."""

    @property
    def n_shards(self) -> int:
        """Number of shards; the last one may be short."""
        return -(-len(self.source) // self.samples_per_shard)

    @property
    def decodes(self) -> bool:
        """Whether images are decoded, which is most of the work."""
        return self.resize is not None or (self.check and self.source.facts is None)

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
