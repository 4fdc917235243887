"""``coreset export``: write a set or a data set in layouts that other programs read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro
import xxhash
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import LEDGER_NAME, RUNNING_NAME, Meter
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact, lock
from coreset.engine.condensed.condensed_set import SET_NAME, open_set
from coreset.engine.runtime.progress import Progress, progress
from coreset.engine.runtime.result import Result
from coreset.engine.stages.options import require_at_least
from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.export.image_folder import write_image_folder
from coreset.shards.export.lists import ids_list, paths_list
from coreset.shards.export.names import ExportPlan, StoredSample, standard_split
from coreset.shards.export.parquet import write_parquet
from coreset.shards.export.webdataset import write_webdataset
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import COMMAND_NAME, missing, write_atomically
from coreset.shards.format.manifest import MANIFEST_NAME

Layout: TypeAlias = Literal["imagefolder", "webdataset", "parquet", "paths", "ids"]
WRITERS: Mapping[str, Callable[[Iterable[StoredSample], Path, ExportPlan], None]] = {
    "imagefolder": write_image_folder,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
}
SHARDED = ("webdataset", "parquet")
OWN_NAMES = frozenset({PROVENANCE_NAME, LEDGER_NAME, RUNNING_NAME, COMMAND_NAME})
READ_TOGETHER = 8  # enough to keep a disk busy; an image may take 256 MiB
SourcePath: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SET|DATA")]
OutPath: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Write the images of a set or a data set, as they are stored, for other programs.

    imagefolder: a folder per class (torchvision, timm, Hugging Face). webdataset: tar shards with
    DALI's index and timm's _info.json. parquet: as on the Hugging Face Hub. paths, ids: a list of
    source paths (.csv: with labels and keys) or sample ids (.npy: an array), without the images.
    In .csv an apostrophe stands before a name that a spreadsheet would run, such as =1+1.
    """

    source: SourcePath
    """A condensed set (only its images) or a packed data set (all of them)."""
    out: OutPath
    """Directory to make; for paths and ids, a file."""
    to: Layout
    """Layout to write."""
    data: Path | None = None
    """Where the data set of a coreset lies now, if it was moved."""
    samples_per_shard: int = 2000
    """Samples per tar or parquet file."""

    def __post_init__(self) -> None:
        require_at_least("samples_per_shard", self.samples_per_shard, 1)
        if self.out.resolve().is_relative_to(self.source.resolve()):
            raise UsageError(
                f"out {self.out} lies in source {self.source}; choose a place outside it"
            )

    def run(self) -> Result:
        """Find the samples, write all of them or nothing, name what reads them."""
        dataset, ids = self._samples()
        if self.to in WRITERS:
            return self._write_directory(dataset, ids)
        return self._write_list(dataset, ids)

    def _samples(self) -> tuple[Dataset, NDArray[np.int64]]:
        if (self.source / SET_NAME).is_file():
            condensed = open_set(self.source, data=self.data)
            return condensed.dataset, condensed.ids
        if (self.source / MANIFEST_NAME).is_file():
            dataset = Dataset.open(self.source)
            return dataset, np.arange(len(dataset))
        remedy = "make one with `coreset select` or `coreset pack`"
        if not self.source.exists():
            raise missing(self.source, remedy)
        raise UsageError(
            f"{self.source} is neither a condensed set nor a packed data set; {remedy}"
        )

    def _write_directory(self, dataset: Dataset, ids: NDArray[np.int64]) -> Result:
        config: dict[str, Any] = {"to": self.to}
        if self.to in SHARDED:
            config["samples_per_shard"] = self.samples_per_shard
        role = "set" if (self.source / SET_NAME).is_file() else "data"
        recorded = Provenance.read(self.source).as_input(role, self.source, self.out)
        provenance = Provenance(kind="export", stage="export", config=config, inputs=(recorded,))
        with create_artifact(self.out, provenance, inputs=[self.source]) as work:
            if not work.done:
                self._fill(work, dataset, ids)
        return self._outcome(dataset, ids, done=work.done)

    def _fill(self, work: ArtifactWriter, dataset: Dataset, ids: NDArray[np.int64]) -> None:
        plan = ExportPlan(
            name=dataset.manifest.name,
            split=standard_split(dataset.manifest.split),
            classes=dataset.classes,
            n_samples=ids.size,
            samples_per_shard=self.samples_per_shard,
        )
        if self.to == "imagefolder":
            _require_free_names(dataset.classes)
        with progress("export", ids.size) as bar:
            samples = _counted(stored_samples(dataset, ids), work.meter, bar)
            WRITERS[self.to](samples, work.scratch, plan)
        binds = {"identity": dataset.manifest.identity, "content": dataset.manifest.content}
        work.provenance = replace(work.provenance, binds=binds)

    def _write_list(self, dataset: Dataset, ids: NDArray[np.int64]) -> Result:
        suffix = self.out.suffix
        if self.to == "ids":
            content = ids_list(ids, suffix)
        else:
            content = paths_list(dataset.table(["source", "label", "key"]).take(ids), suffix)
        with lock(self.out):
            done = self.out.exists()
            if not done:
                write_atomically(self.out, content)
            elif not self.out.is_file() or self.out.read_bytes() != content:
                raise UsageError(
                    f"{self.out} exists with other content; remove it or choose another output"
                )
        return self._outcome(dataset, ids, done=done)

    def _outcome(self, dataset: Dataset, ids: NDArray[np.int64], *, done: bool) -> Result:
        how = "are there already" if done else "written"
        what = self.to if self.to in WRITERS else f"a list of {self.to}"
        empty = np.flatnonzero(
            np.bincount(dataset.labels[ids], minlength=len(dataset.classes)) == 0
        )
        lines = [
            f"{ids.size:,} images of {len(dataset.classes):,} classes {how} as {what}: {self.out}"
        ]
        if empty.size and self.to == "imagefolder":
            lines.insert(
                0,
                f"warning: {empty.size} classes have no images, such as "
                f"{dataset.classes[empty[0]]}; torchvision needs allow_empty=True to read them",
            )
        lines.append(f"next: {self._next(standard_split(dataset.manifest.split), dataset)}")
        return Result(tuple(lines), {"out": str(self.out), "images": ids.size, "to": self.to})

    def _next(self, split: str, dataset: Dataset) -> str:
        out = str(self.out)
        match self.to:
            case "imagefolder":
                return f'torchvision.datasets.ImageFolder("{out}")'
            case "webdataset":
                return f'timm.data.create_dataset("wds/", root="{out}", split="{split}")'
            case "parquet":
                return f'datasets.load_dataset("{out}", split="{split}")'
            case _:
                return f"coreset ingest {out} SET --data {dataset.path}"


def stored_samples(dataset: Dataset, ids: NDArray[np.int64]) -> Iterator[StoredSample]:
    """Yield the samples ``ids`` with their stored bytes, in that order.

    Raises:
        ManifestError: A shard is missing or cut, or an image is not the one that was packed.
    """
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


def _counted(
    samples: Iterable[StoredSample], meter: Meter, bar: Progress
) -> Iterator[StoredSample]:
    for sample in samples:
        meter.images += 1  # before the yield: a writer may stop at the last sample
        meter.bytes_read += len(sample.image)
        bar.advance()
        yield sample


def _require_free_names(classes: Iterable[str]) -> None:
    """Refuse class names that the files of every artifact have: class folders lie beside them."""
    taken = sorted(OWN_NAMES.intersection(classes))
    if taken:
        raise UsageError(
            f"class {taken[0]} has the name of a file that every export holds; use --to "
            "webdataset, or rename it and pack again"
        )
