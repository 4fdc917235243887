"""Inputs of a packing: its plan, from a command's fields or a packed data set, and its report."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os.path import relpath
from pathlib import Path
from typing import Any

from coreset.engine.artifacts.ledger import Meter, read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.runtime.progress import Progress, progress
from coreset.shards.errors import UsageError
from coreset.shards.format.classes import class_list
from coreset.shards.format.dataset import Manifest
from coreset.shards.format.files import sha256_of_file
from coreset.shards.format.records import ShardRecord
from coreset.shards.packing.plan import Plan, read_labels
from coreset.shards.sources.base import Repeats, Source, SourceOptions
from coreset.shards.sources.detect import find


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Paths that a packing reads; the ledger keeps them, so that the source can be read again."""

    src: Path
    class_names: str = ""
    ground_truth: Path | None = None
    labels: Path | None = None

    def recorded(self, data: Path) -> dict[str, str]:
        """Return paths relative to the data set, for a ledger line."""
        names = Path(self.class_names)
        files = {name: getattr(self, name) for name in ("src", "ground_truth", "labels")}
        files["class_names"] = names if names.is_file() else None
        kept = {n: relpath(path.resolve(), data.resolve()) for n, path in files.items() if path}
        return {"class_names": self.class_names} | kept

    @staticmethod
    def remembered(data: Path, src: Path | None) -> "Places":
        """Read the places of a packed data set from its ledger; ``src`` if its source was moved."""
        lines = [line["places"] for line in read_ledger(data) if "places" in line]
        if not lines:
            raise UsageError(f"{data} was not packed from a source; make it again")
        kept: dict[str, str] = lines[-1]
        paths = {name: data / kept[name] for name in ("ground_truth", "labels") if name in kept}
        place = src or data / kept["src"]
        if not place.exists():
            raise UsageError(f"the source of {data} is not at {place} any more; name it with --src")
        names = kept.get("class_names", "")
        file = data / names
        return Places(src=place, class_names=str(file) if file.is_file() else names, **paths)

    def find(
        self,
        *,
        only: tuple[str, ...] | None,
        duplicates: Repeats,
        data: Path,
        one_class: bool = True,
    ) -> Source:
        """Find the samples of the source, to pack them into ``data`` unless that exists."""
        with ExitStack() as stack:
            bars: list[Progress] = []

            def show(done_bytes: int, all_bytes: int) -> None:
                if not bars:
                    display = progress("decompress", math.ceil(all_bytes / 1e6), "MB")
                    bars.append(stack.enter_context(display))
                bars[0].advance(math.ceil(done_bytes / 1e6) - bars[0].done)

            options = SourceOptions(
                only=only,
                class_names=class_list(self.class_names) if self.class_names else None,
                truth=self.ground_truth,
                one_class=one_class,
                repeats=duplicates,
                spool=spool_of(data),
                room_to_pack=not data.exists(),
                on_spooled=show,
            )
            return find(self.src, options)


def spool_of(data: Path) -> Path:
    """Return the folder beside a packed data set for decompressed images of its source."""
    return data.with_name(f".{data.name}.spool")


def plan_of(
    samples: Source,
    settings: Mapping[str, Any],
    *,
    name: str,
    split: str,
    labels: Path | None,
    skip_damaged: bool = True,
) -> Plan:
    """Make the plan for samples by the settings that a manifest records."""
    source = samples.in_order(settings["order"], settings["order_seed"] or 0)
    new_labels = source.labels
    if (table := settings["labels"]) is not None:
        if labels is None or sha256_of_file(labels) != table["sha256"]:
            raise UsageError(f"labels table {labels} is not the one that was packed with")
        new_labels = read_labels(labels, table["column"], source)
    return Plan(
        source=source,
        labels=new_labels,
        samples_per_shard=settings["samples_per_shard"],
        name=name,
        split=split,
        settings=settings,
        check=settings["checked"],
        short_side=settings["short_side"],
        quality=settings["quality"],
        skip_damaged=skip_damaged,
    )


def config_of(plan: Plan) -> dict[str, Any]:
    """Return what shapes the bytes, unlike paths, threads and modification times."""
    return {
        "name": plan.name,
        "split": plan.split,
        **plan.settings,
        "n_found": len(plan.source),
        "source_sha256": plan.source.list_sha256(),
    }


def plan_again(data: Path, src: Path | None) -> tuple[Plan, Provenance]:
    """Plan a packed data set again from its source; return the plan and its provenance."""
    manifest, provenance = Manifest.read(data), Provenance.read(data)
    places = Places.remembered(data, src)
    settings = dict(manifest.settings)
    only = manifest.classes if settings["classes"] else None
    source = places.find(only=only, duplicates=settings["duplicates"], data=data)
    plan = plan_of(source, settings, name=manifest.name, split=manifest.split, labels=places.labels)
    return plan, replace(provenance, config=config_of(plan))


@dataclass(frozen=True, slots=True)
class Account:
    """Observer of a packing that reports its progress to the display and the ledger."""

    meter: Meter
    bar: Progress
    scratch: Path | None
    """Directory for the cost so far; None on ranks whose cost the main process does not keep."""

    def block(self, found: int, source_bytes: int, *, refused: int) -> None:
        """Count files that were read."""
        self.meter.images += found
        self.meter.bytes_read += source_bytes
        self._show(found, refused)

    def shard(self, record: ShardRecord, *, resumed: bool) -> None:
        """Count a shard; its cost survives a kill from here on."""
        if resumed:
            self._show(record.entry.found, len(record.refused))
            return
        self.meter.bytes_written += record.entry.bytes + record.entry.index_bytes
        if self.scratch is not None:
            self.meter.checkpoint(self.scratch)

    def _show(self, found: int, refused: int) -> None:
        refused += int(self.bar.notes.get("quarantined", 0))
        self.bar.advance(found, quarantined=refused)


def bound(provenance: Provenance, manifest: Manifest) -> Provenance:
    """Add to the provenance of a packed data set what later stages check."""
    names = ("identity", "content", "classes_sha256")
    binds = {name: getattr(manifest, name) for name in names}
    return replace(provenance, binds=binds, digest=manifest.digest)
