"""Between a packing and its artifact: progress and cost while it runs, what it binds at its end."""

from dataclasses import dataclass, replace
from pathlib import Path

from engine.ledger import Meter
from engine.progress import Progress
from engine.provenance import Provenance
from shards.manifest import Manifest
from shards.records import ShardRecord


@dataclass(frozen=True, slots=True)
class Account:
    """Passes on what the packing reports to the display and the ledger."""

    meter: Meter
    bar: Progress
    scratch: Path | None
    """Where to leave the cost so far; None on ranks whose cost the leading rank does not keep."""

    def block(self, found: int, source_bytes: int, *, refused: int) -> None:
        """Count files that were read."""
        self.meter.images += found
        self.meter.bytes_read += source_bytes
        self._show(found, refused=refused)

    def shard(self, record: ShardRecord, *, resumed: bool) -> None:
        """Count a shard; what was spent so far survives a kill from here on."""
        if resumed:
            self._show(record.entry.found, refused=len(record.refused))
        else:
            self.meter.bytes_written += record.entry.bytes + record.entry.index_bytes
            if self.scratch is not None:
                self.meter.checkpoint(self.scratch)

    def _show(self, found: int, *, refused: int) -> None:
        quarantined = int(self.bar.notes.get("quarantined", 0)) + refused
        self.bar.advance(found, quarantined=quarantined)


def bound(provenance: Provenance, manifest: Manifest) -> Provenance:
    """The provenance of a packed data set, with what later stages check."""
    names = ("identity", "content", "classes_sha256")
    binds = {name: getattr(manifest, name) for name in names}
    return replace(provenance, binds=binds, digest=manifest.digest)
