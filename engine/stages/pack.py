"""``coreset pack``: pack images of any common layout into a data set."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coreset.engine.artifacts.pack_inputs import (
    Account,
    Places,
    bound,
    config_of,
    plan_of,
    spool_of,
)
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact, require_output
from coreset.engine.runtime.distributed import Distributed, join
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.runtime.progress import progress
from coreset.engine.stages.options import DataPath, Result, SourcePath
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.classes import class_list, recognise
from coreset.shards.format.dataset import Dataset, Manifest, classes_digest
from coreset.shards.format.files import sha256_of_file
from coreset.shards.images.flags import MAX_PIXELS
from coreset.shards.packing.pack import finish, list_path, pack_shards, prepare, thread_count
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.base import Order, Repeats, Source
from coreset.shards.sources.names import split_of

# Kinds of images that the summary counts.
UNUSUAL = {"cmyk", "deep", "misnamed", "exif_rotated", "alpha", "palette", "odd_sampling"}
SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Pack images into shards that every later verb reads, whatever layout they come in.

    SRC is a folder with one folder per class; ILSVRC2012_img_train.tar, or a folder of class tars;
    a folder or tar of the ILSVRC validation images (with --ground-truth); a folder of WebDataset
    shards or of Hugging Face parquet files; a list of paths and labels (.csv, .tsv, .txt, .json,
    .parquet); or a packed data set.
    """

    src: SourcePath
    """Source of the images; every file is packed, listed as refused or, where its name says that it
    is no image, counted as left out."""
    data: DataPath
    """Packed data set to make."""
    name: str = ""
    """Name of the data set; default: recognised by its classes, else by the source's name."""
    split: str = ""
    """Split, such as train or val; default: the source's name."""
    classes: str = ""
    """Classes to take: imagenet100, imagenette, or a file that lists them, one a line or as a table
    or JSON; default: all."""
    one_class: bool = False
    """Pack a source that holds a single class; else it is refused, since often one folder holds the
    images of all classes."""
    class_names: str = ""
    """Names of integer labels, for sources that have none: imagenet-1k, or a file that lists them
    in the order of the labels or with their numbers from 0."""
    ground_truth: Path | None = None
    """Labels of ILSVRC validation images: ILSVRC2012_devkit_t12 (folder or tar.gz), or a file that
    lists a WordNet id or sorted class number per image."""
    order: Order = "shuffled"
    """Order of the samples: permuted, so that sequential readers see mixed classes, or sorted by
    sample key."""
    order_seed: int = 0
    """Seed of the permutation."""
    samples_per_shard: int = 2000
    """Found files per shard."""
    store: Literal["original", "resized"] = "original"
    """Keep the bytes of every file, or re-encode once to --short-side, which makes every later pass
    several times faster."""
    short_side: int = 256
    """Short side in pixels of resized images; smaller ones keep their size."""
    quality: int = 90
    """JPEG quality of resized images."""
    check: bool = True
    """Decode every image, so that no later stage meets a bad one; --no-check reads headers only."""
    on_bad: Literal["quarantine", "fail"] = "quarantine"
    """List files that cannot be packed, up to max(10, 0.1 %) of all and max(2, 5 %) of a class, but
    never all of a class; or stop at the first."""
    duplicates: Repeats = "error"
    """Two samples with one key: stop, or keep the first image found."""
    labels: Path | None = None
    """Table that replaces the labels of the source; another column names the image."""
    column: str = ""
    """Column of the table that holds the class, such as noisy_labels_25."""
    workers: int = 0
    """Threads; 0 is one per core. They do not change the result."""

    def __post_init__(self) -> None:
        require_at_least("samples_per_shard", self.samples_per_shard, 1)
        require_at_least("short_side", self.short_side, 1)
        thread_count(self.workers)  # refused before anything is made
        if not 1 <= self.quality <= 100:
            raise UsageError(f"quality must be in [1, 100], got {self.quality}")
        if (self.labels is None) != (self.column == ""):
            raise UsageError(
                f"labels and column go together, got labels {self.labels} and column "
                f"{self.column!r}; name both or neither"
            )
        if self.data.resolve().is_relative_to(self.src.resolve()):
            raise UsageError(f"data {self.data} lies in src {self.src}; choose a place outside it")

    def run(self) -> Result:
        """Find the files, pack them shard by shard, publish the data set and account for it."""
        require_output(self.data)
        with join() as ranks:
            # The main rank goes first: it may have to decompress the source for all.
            plan = ranks.run_main_first(self._plan)
            return self._pack(plan, ranks)

    def _pack(self, plan: Plan, ranks: Distributed) -> Result:
        provenance = Provenance(kind="dataset", stage="pack", config=config_of(plan))
        with ExitStack() as stack:
            writer = create_artifact(self.data, provenance, resumable=True)
            work = ranks.run_on_main(lambda: stack.enter_context(writer))
            work.meter.notes["places"] = self._places.recorded(self.data)
            if ranks.run_on_main(
                lambda: not work.done and prepare(plan, work.scratch), patient=True
            ):
                work.meter.notes["ranks"] = ranks.world
                ranks.run_on_all(lambda: self._pack_part(plan, work, ranks), patient=True)
            if not ranks.is_main:
                return Result((f"rank {ranks.rank} of {ranks.world} is done with its part",))
            if not work.done:
                self._finish(plan, work)
        shutil.rmtree(spool_of(self.data), ignore_errors=True)
        manifest = Manifest.read(self.data)
        data = {"data": str(self.data), "samples": manifest.n_samples}
        data |= {"quarantined": manifest.n_quarantined, "kinds": dict(manifest.kinds)}
        return Result(tuple(self._summary(manifest, plan.source, existed=work.done)), data)

    def _pack_part(self, plan: Plan, work: ArtifactWriter, ranks: Distributed) -> None:
        """Pack every shard whose number is this rank's modulo the number of ranks."""
        shards = range(ranks.rank, plan.n_shards, ranks.world)
        workers = thread_count(self.workers)
        with progress("pack", sum(len(plan.positions(shard)) for shard in shards)) as bar:
            observer = Account(work.meter, bar, work.scratch if ranks.is_main else None)
            pack_shards(plan, work.scratch, shards, workers=workers, observer=observer)

    def _plan(self) -> Plan:
        wanted = tuple(sorted(class_list(self.classes, ordered=False))) if self.classes else None
        source = self._places.find(
            only=wanted, duplicates=self.duplicates, data=self.data, one_class=self.one_class
        )
        place = self.src.resolve()
        name, split = place.stem, split_of(place.stem) or place.stem
        if place.name in SPLITS:
            name, split = place.parent.name, place.name
        return plan_of(
            source,
            self._settings(wanted),
            name=self.name or recognise(source.classes) or name,
            split=self.split or split,
            labels=self.labels,
            skip_damaged=self.on_bad == "quarantine",
        )

    @property
    def _places(self) -> Places:
        return Places(
            src=self.src,
            class_names=self.class_names,
            ground_truth=self.ground_truth,
            labels=self.labels,
        )

    def _settings(self, wanted: tuple[str, ...] | None) -> dict[str, Any]:
        resized = self.store == "resized"
        if self.labels and not self.labels.is_file():
            raise UsageError(f"labels table {self.labels} does not exist; name a CSV file")
        table = self.labels and {"sha256": sha256_of_file(self.labels), "column": self.column}
        return {
            "order": self.order,
            "order_seed": self.order_seed if self.order == "shuffled" else None,
            "samples_per_shard": self.samples_per_shard,
            "store": self.store,
            "short_side": self.short_side if resized else None,
            "quality": self.quality if resized else None,
            "checked": self.check,
            "max_pixels": MAX_PIXELS,
            "classes": wanted and classes_digest(wanted),
            "duplicates": self.duplicates,
            "labels": table,
        }

    def _finish(self, plan: Plan, work: ArtifactWriter) -> None:
        listed = list_path(self.data)
        try:
            manifest = finish(plan, work.scratch, listed)
        except DataError:
            # The remedy changes the source, so these shards could never be continued.
            shutil.rmtree(work.scratch)
            raise
        listed.unlink(missing_ok=True)
        work.provenance = bound(work.provenance, manifest)

    def _summary(self, manifest: Manifest, source: Source, *, existed: bool) -> Iterator[str]:
        yield from (f"left out: {skipped}" for skipped in source.skipped)
        if manifest.n_quarantined:
            yield (
                f"warning: {manifest.n_quarantined:,} of {manifest.n_found:,} files were refused; "
                f"see {self.data / 'quarantine.parquet'}"
            )
        sizes = np.bincount(Dataset.open(self.data).labels, minlength=len(manifest.classes))
        if not sizes.all():
            yield (
                f"warning: {int((sizes == 0).sum()):,} of {sizes.size:,} classes have no samples, "
                f"such as {manifest.classes[int(sizes.argmin())]}: none of the packed images has "
                "their label"
            )
        if unusual := [f"{n:,} {kind}" for kind, n in manifest.kinds.items() if kind in UNUSUAL]:
            yield f"stored as they are, and flagged: {', '.join(unusual)}"
        state = "was there already" if existed else "packed"
        counts = f"{manifest.n_samples:,} samples of {len(manifest.classes):,} classes"
        yield f"{state}: {counts} in {len(manifest.shards):,} shards, {self.data}"
        yield f"next: coreset score {self.data} SCORES"
