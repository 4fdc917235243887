"""``coreset export``: write a set or a data set in the formats of other programs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import tyro
import xxhash
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import LEDGER_NAME, RUNNING_NAME
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact, lock
from coreset.engine.condensed.condensed_set import SET_NAME, open_set
from coreset.engine.runtime.fields import choice_of, require_at_least
from coreset.engine.runtime.progress import progress
from coreset.engine.stages.options import MovedData, Result
from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.export import (
    FORMATS,
    ExportPlan,
    ImageFormat,
    ListFormat,
    StoredSample,
    standard_split,
)
from coreset.shards.format.dataset import MANIFEST_NAME, Dataset
from coreset.shards.format.files import COMMAND_NAME, missing, write_atomically

OWN_NAMES = frozenset({PROVENANCE_NAME, LEDGER_NAME, RUNNING_NAME, COMMAND_NAME})
READ_TOGETHER = 8  # enough to keep a disk busy; an image may take 256 MiB
Ids: TypeAlias = NDArray[np.int64]
SourcePath: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SET|DATA")]
OutPath: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Write the stored images of a set or a data set for other programs, or a list of them.

    In .csv files an apostrophe stands before a name that a spreadsheet would run, such as =1+1.
    """

    source: SourcePath
    """A condensed set (only its images) or a packed data set (all of them)."""
    out: OutPath
    """Directory to make; for paths and ids, a file."""
    to: Annotated[str, choice_of(FORMATS)]
    data: MovedData = None
    samples_per_shard: int = 2000
    """Samples per tar or parquet file."""

    def __post_init__(self) -> None:
        require_at_least("samples_per_shard", self.samples_per_shard, 1)
        out, source = self.out, self.source
        if out.resolve().is_relative_to(source.resolve()):
            raise UsageError(f"out {out} lies in source {source}; choose a place outside it")

    def run(self) -> Result:
        """Find the samples, write all of them or nothing, name what reads them."""
        dataset, ids = self._samples()
        export_format, lines = FORMATS[self.to], list[str]()
        if isinstance(export_format, ListFormat):
            done, output = self._write_list(dataset, ids, export_format), f"a list of {self.to}"
            reader = f"coreset ingest {self.out} SET --data {dataset.path}"
        else:
            done, output = self._write_directory(dataset, ids, export_format), self.to
            split = standard_split(dataset.manifest.split)
            reader = export_format.reader.format(out=self.out, split=split)
            sizes = np.bincount(dataset.labels[ids], minlength=len(dataset.classes))
            if export_format.class_folders and not sizes.all():
                lines.append(
                    f"warning: {int((sizes == 0).sum())} classes have no images, such as "
                    f"{dataset.classes[int(sizes.argmin())]}; torchvision needs allow_empty=True "
                    "to read them"
                )
        state = "are there already" if done else "written"
        images = f"{ids.size:,} images of {len(dataset.classes):,} classes"
        lines += [f"{images} {state} as {output}: {self.out}", f"next: {reader}"]
        return Result(tuple(lines), {"out": str(self.out), "images": ids.size, "to": self.to})

    def _samples(self) -> tuple[Dataset, Ids]:
        if (self.source / SET_NAME).is_file():
            condensed = open_set(self.source, data=self.data)
            return condensed.dataset, condensed.ids
        if (self.source / MANIFEST_NAME).is_file():
            dataset = Dataset.open(self.source)
            return dataset, np.arange(len(dataset))
        remedy = "make one with `coreset select` or `coreset pack`"
        fault = "is neither a condensed set nor a packed data set"
        raise missing(self.source, remedy, otherwise=fault)

    def _write_directory(self, dataset: Dataset, ids: Ids, export_format: ImageFormat) -> bool:
        config: dict[str, Any] = {"to": self.to}
        if export_format.sharded:
            config["samples_per_shard"] = self.samples_per_shard
        role = "set" if (self.source / SET_NAME).is_file() else "data"
        recorded = Provenance.read(self.source).as_input(role, self.source, self.out)
        provenance = Provenance(kind="export", stage="export", config=config, inputs=(recorded,))
        with create_artifact(self.out, provenance, inputs=[self.source]) as work:
            if not work.done:
                self._fill(work, dataset, ids, export_format)
        return work.done

    def _fill(
        self, work: ArtifactWriter, dataset: Dataset, ids: Ids, export_format: ImageFormat
    ) -> None:
        plan = ExportPlan(
            name=dataset.manifest.name,
            split=standard_split(dataset.manifest.split),
            classes=dataset.classes,
            n_samples=ids.size,
            samples_per_shard=self.samples_per_shard,
        )
        # Class folders lie beside the files of every artifact.
        if export_format.class_folders and (taken := OWN_NAMES.intersection(dataset.classes)):
            raise UsageError(
                f"class {min(taken)} has the name of a file that every export holds; use --to "
                "webdataset, or rename it and pack again"
            )
        with progress("export", ids.size) as bar:

            def counted() -> Iterator[StoredSample]:
                for sample in stored_samples(dataset, ids):
                    work.meter.images += 1  # before the yield: a writer may stop at the last sample
                    work.meter.bytes_read += len(sample.image)
                    bar.advance()
                    yield sample

            export_format.write(counted(), work.scratch, plan)
        binds = {"identity": dataset.manifest.identity, "content": dataset.manifest.content}
        work.provenance = replace(work.provenance, binds=binds)

    def _write_list(self, dataset: Dataset, ids: Ids, export_format: ListFormat) -> bool:
        rows = dataset.table(export_format.columns).take(ids)
        content = export_format.content(rows, self.out.suffix)
        with lock(self.out):
            done = self.out.exists()
            if not done:
                write_atomically(self.out, content)
            elif not self.out.is_file() or self.out.read_bytes() != content:
                raise UsageError(
                    f"{self.out} exists with other content; remove it or choose another output"
                )
        return done


def stored_samples(dataset: Dataset, ids: Ids) -> Iterator[StoredSample]:
    """Yield the samples ``ids`` with their stored bytes, in that order."""
    from coreset.engine.data.reader import ShardReader

    rows = dataset.table(["key", "format", "content_hash", "label"]).take(ids)
    with ShardReader(dataset) as reader:
        for start in range(0, ids.size, READ_TOGETHER):
            some = ids[start : start + READ_TOGETHER]
            columns = rows.slice(start, some.size).to_pylist()
            for sample, row, image in zip(some.tolist(), columns, reader.read(some), strict=True):
                if xxhash.xxh3_128_digest(image) != row["content_hash"]:
                    raise ManifestError(
                        f"{reader.name_of(sample)} is not the image that was packed; run "
                        f"`coreset verify {dataset.path}`"
                    )
                yield StoredSample(
                    sample_id=sample,
                    key=row["key"],
                    label=row["label"],
                    class_name=dataset.classes[row["label"]],
                    extension=row["format"],
                    image=image,
                )
