"""``coreset pack``: a folder of images per class becomes a packed data set."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.artifact import Work, making
from engine.config import DataPath, Outcome, SourcePath
from engine.ledger import Meter
from engine.progress import Progress, progress
from engine.provenance import Provenance
from shards.atomic import sha256_of_file
from shards.classes import recognise
from shards.errors import DataError, UsageError
from shards.labels import read_labels
from shards.manifest import Manifest
from shards.packing import Plan, pack, thread_count
from shards.probe import MAX_PIXELS
from shards.quarantine import list_path
from shards.records import ShardRecord
from shards.sources import Order, Source, find_images

SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Pack a folder of images (SRC/CLASS/FILE) into shards that every later verb reads."""

    src: SourcePath
    """Folder that holds one folder per class; every file in them is packed or listed as refused."""
    data: DataPath
    """Packed data set to make."""
    name: str = ""
    """Name of the data set; default: recognised by its classes, else by the folder's name."""
    split: str = ""
    """Split, such as train or val; default: the folder's name."""
    order: Order = "shuffled"
    """Order of the samples: permuted, so that sequential readers see mixed classes, or sorted by
    sample key."""
    order_seed: int = 0
    """Seed of the permutation."""
    samples_per_shard: int = 2000
    """Found files per shard."""
    labels: Path | None = None
    """CSV table that replaces the labels of the folders; its first column names the image."""
    column: str = ""
    """Column of the table that holds the class, such as noisy_labels_25."""
    workers: int = 0
    """Threads; 0 is one per core. They do not change the result."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise UsageError(f"samples_per_shard must be at least 1, got {self.samples_per_shard}")
        if (self.labels is None) != (self.column == ""):
            raise UsageError(
                f"labels and column go together, got labels {self.labels} and column "
                f"{self.column!r}; name both or neither"
            )
        if self.data.resolve().is_relative_to(self.src.resolve()):
            raise UsageError(f"data {self.data} lies in src {self.src}; choose a place outside it")

    def run(self) -> Outcome:
        """Find the files, pack them shard by shard, publish the data set and account for it.

        Raises:
            UsageError: The folder, the labels or a resumed run's input are not as they must be.
            DataError: Too many files were refused; they are listed beside the output.
            MachineError: The disk is full or fails.
            LockedError: Another process is packing into ``data``.
        """
        found = find_images(self.src)
        plan = self._plan(found)
        provenance = Provenance(kind="dataset", stage="pack", config=_config(plan, found))
        with making(self.data, provenance, resumable=True) as work:
            if not work.done:
                self._fill(plan, work)
        manifest = Manifest.read(self.data)
        lines = self._summary(manifest, found, was_there=work.done)
        facts = {"data": str(self.data), "samples": manifest.n_samples}
        return Outcome(tuple(lines), facts | {"quarantined": manifest.n_quarantined})

    def _plan(self, found: Source) -> Plan:
        folder = self.src.resolve()
        by_folder = folder.parent.name if folder.name in SPLITS else folder.name
        source = found.in_order(self.order, self.order_seed)
        labels = source.labels
        if self.labels is not None:
            labels = read_labels(self.labels, self.column, source)
        return Plan(
            source=source,
            labels=labels,
            samples_per_shard=self.samples_per_shard,
            name=self.name or recognise(found.classes) or by_folder,
            split=self.split or folder.name,
            settings=self._settings(),
        )

    def _settings(self) -> dict[str, Any]:
        table = self.labels and {"sha256": sha256_of_file(self.labels), "column": self.column}
        return {
            "order": self.order,
            "order_seed": self.order_seed if self.order == "shuffled" else None,
            "samples_per_shard": self.samples_per_shard,
            "max_pixels": MAX_PIXELS,
            "labels": table,
        }

    def _fill(self, plan: Plan, work: Work) -> None:
        listed = list_path(self.data)
        with progress("pack", len(plan.source)) as bar:
            observer = _Account(work.meter, bar, work.scratch)
            try:
                manifest = pack(
                    plan,
                    work.scratch,
                    workers=thread_count(self.workers),
                    listed=listed,
                    observer=observer,
                )
            except DataError:
                # The remedy changes the source, so these shards could never be continued.
                shutil.rmtree(work.scratch)
                raise
        listed.unlink(missing_ok=True)
        binds = {
            name: getattr(manifest, name) for name in ("identity", "content", "classes_sha256")
        }
        work.provenance = replace(work.provenance, binds=binds, digest=manifest.digest)

    def _summary(self, manifest: Manifest, found: Source, *, was_there: bool) -> list[str]:
        lines: list[str] = []
        if found.n_outside:
            lines.append(
                f"left out: {found.n_outside:,} files of {self.src} that lie in no class folder"
            )
        if manifest.n_quarantined:
            lines.append(
                f"warning: {manifest.n_quarantined:,} of {manifest.n_found:,} files were refused; "
                f"see {self.data / 'quarantine.parquet'}"
            )
        fact = "was there already" if was_there else "packed"
        lines.append(
            f"{fact}: {manifest.n_samples:,} samples of {len(manifest.classes):,} classes in "
            f"{len(manifest.shards):,} shards, {self.data}"
        )
        lines.append(f"next: coreset score {self.data} SCORES")
        return lines


@dataclass(frozen=True, slots=True)
class _Account:
    """Passes on what the packing reports to the display and the ledger."""

    meter: Meter
    bar: Progress
    scratch: Path

    def image(self, source_bytes: int, *, packed: bool) -> None:
        """Count one file."""
        self.meter.images += 1
        self.meter.bytes_read += source_bytes
        self._show(1, refused=not packed)

    def shard(self, record: ShardRecord, *, resumed: bool) -> None:
        """Count a shard; what was spent so far survives a kill from here on."""
        if resumed:
            self._show(record.entry.found, refused=len(record.refused))
        else:
            self.meter.bytes_written += record.entry.bytes + record.index_bytes
            self.meter.checkpoint(self.scratch)

    def _show(self, found: int, *, refused: int) -> None:
        quarantined = int(self.bar.notes.get("quarantined", 0)) + refused
        self.bar.advance(found, quarantined=quarantined)


def _config(plan: Plan, found: Source) -> Mapping[str, Any]:
    """What shapes the bytes: paths, threads and modification times do not."""
    return {
        "name": plan.name,
        "split": plan.split,
        **plan.settings,
        "n_found": len(found),
        "source_sha256": found.list_sha256(),
    }
