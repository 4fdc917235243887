"""``coreset verify``: whether a packed data set is still what was packed."""

from dataclasses import dataclass

from engine.config import DataPath, Outcome
from engine.progress import progress
from shards.manifest import Manifest
from shards.packing import thread_count
from shards.verify import verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Compare every file of a packed data set with its manifest."""

    data: DataPath
    """Packed data set."""
    deep: bool = False
    """Also decode every image and compare its content hash."""
    workers: int = 0
    """Threads; 0 is one per core."""

    def run(self) -> Outcome:
        """Check sizes, counts, digests and indices; return what was checked.

        Raises:
            UsageError: ``data`` is not a packed data set.
            DataError: Damage, named by file with what was expected and found.
        """
        total = Manifest.read(self.data).n_samples
        with progress("verify", total) as bar:
            whole = verify(
                self.data,
                deep=self.deep,
                workers=thread_count(self.workers),
                on_shard=lambda entry: bar.advance(entry.samples),
            )
        depth = "every image decodes" if self.deep else "add --deep to decode every image"
        counts = f"{whole.n_samples:,} samples in {whole.n_shards:,} shards"
        line = f"{self.data} is whole: {counts}, {whole.bytes_read:,} bytes read; {depth}"
        return Outcome((line,), {"data": str(self.data), "samples": whole.n_samples})
