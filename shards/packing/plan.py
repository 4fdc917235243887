"""What is to be packed, and how: the part of a packing that decides every byte of its output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.shards.sources.base import Source

BLOCK_SAMPLES = 128
"""Most samples of a block."""
BLOCK_BYTES = 1 << 22
"""Most bytes of a block of several samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """How images are re-encoded when they are packed."""

    short_side: int
    """Pixels; images whose short side is smaller keep their size."""
    quality: int
    """JPEG quality, 1 to 100."""


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
    check: bool = True
    """Decode every image; else only its header is read."""
    resize: Resize | None = None
    """Re-encode to this size; None keeps the bytes as they are."""
    skip_damaged: bool = True
    """List files that cannot be packed, up to a limit; else the first one stops the packing."""

    @property
    def n_shards(self) -> int:
        """Shards, the last one possibly short."""
        return -(-len(self.source) // self.samples_per_shard)

    @property
    def decodes(self) -> bool:
        """Whether pixels are looked at, which is most of the work."""
        return self.resize is not None or (self.check and self.source.facts is None)

    def positions(self, shard: int) -> range:
        """Found positions of a shard."""
        first = shard * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, len(self.source)))

    def blocks(self, shard: int) -> list[range]:
        """Found positions of a shard in pieces that one thread makes at once.

        A piece has up to 128 samples and, if it has several, up to 4 MiB.
        """
        positions = self.positions(shard)
        sizes = self.source.row_sizes[self.source.rows[positions.start : positions.stop]]
        blocks: list[range] = []
        first, n_bytes = positions.start, 0
        for position, size in zip(positions, sizes.tolist(), strict=True):
            if position > first and (
                position - first == BLOCK_SAMPLES or n_bytes + size > BLOCK_BYTES
            ):
                blocks.append(range(first, position))
                first, n_bytes = position, 0
            n_bytes += size
        return [*blocks, range(first, positions.stop)]
