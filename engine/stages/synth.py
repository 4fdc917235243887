"""``coreset synth`` and ``distill``: images with known truth, and images made of others."""

import shutil
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.pack_inputs import Account, bound
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.condensed.condensed_set import write_set
from coreset.engine.condensed.selection import METHODS, Task
from coreset.engine.runtime.fields import (
    choice_of,
    default_parameters,
    own_parameters,
    parameters_of,
    require_at_least,
)
from coreset.engine.runtime.progress import progress
from coreset.engine.stages.options import DataPath, Result, SetPath, shaping_fields
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import new_file, sync_and_rename, temporary_name
from coreset.shards.format.manifest import Manifest
from coreset.shards.packing.pack import list_path, pack, thread_count
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.base import SourceOptions
from coreset.shards.sources.folder import find_folder
from coreset.shards.sources.synthetic import Synthetic, position_of, synthetic_source

TRUTH_NAME = "truth.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Synth:
    """Generate a packed data set of synthetic images with known wrong labels and difficulty.

    Sizes and bytes follow ImageNet's. The class of an image shows in its colours and its pattern;
    truth.parquet beside the shards holds the true label and the difficulty of every sample.
    """

    data: DataPath
    """Packed data set to make."""
    images: int
    """Images."""
    classes: int = 10
    """Classes, of equal sizes."""
    size: str = "imagenet"
    """ImageNet's distribution of sizes, or the side of small square images in pixels."""
    label_noise: float = 0.05
    """Share of the images whose label is that of another class."""
    seed: int = 0
    """Seed of the images; another seed makes other images of the same classes, such as for
    validation."""
    class_seed: int = 0
    """Seed of the colours and patterns of the classes."""
    split: str = "train"
    """Split to record."""
    samples_per_shard: int = 2000
    """Images per shard."""
    workers: int = 0
    """Threads; 0 is one per core. They do not change the result."""

    def __post_init__(self) -> None:
        require_at_least("samples_per_shard", self.samples_per_shard, 1)
        if self.size != "imagenet" and not self.size.isdecimal():
            raise UsageError(f"size must be imagenet or a number of pixels, got {self.size}")

    def run(self) -> Result:
        """Generate and pack in threads, write the truth in id order, publish."""
        size: int | Literal["imagenet"] = "imagenet" if self.size == "imagenet" else int(self.size)
        synthetic = Synthetic(
            images=self.images,
            classes=self.classes,
            seed=self.seed,
            class_seed=self.class_seed,
            label_noise=self.label_noise,
            size=size,
        )
        config = shaping_fields(self, without=("workers",))
        provenance = Provenance(kind="dataset", stage="synth", config=config)
        with create_artifact(self.data, provenance, resumable=True) as work:
            if not work.done:
                self._fill(work, synthetic)
        manifest = Manifest.read(self.data)
        how = "are there already"
        if not work.done:
            seconds = work.meter.wall_seconds
            per_core = work.meter.images / seconds / thread_count(self.workers)
            how = f"made in {seconds:.1f} s, {per_core:,.0f} images/s per core"
        made = f"{manifest.n_samples:,} images of {len(manifest.classes):,} classes {how}"
        place = f"{self.data} (truth: {self.data / TRUTH_NAME})"
        lines = f"{made}: {place}", f"next: coreset score {self.data} SCORES"
        return Result(lines, {"data": str(self.data), "samples": manifest.n_samples})

    def _fill(self, work: ArtifactWriter, synthetic: Synthetic) -> None:
        source = synthetic_source(synthetic).in_order("shuffled", self.seed)
        plan = Plan(
            source=source,
            labels=source.labels,
            samples_per_shard=self.samples_per_shard,
            name="synthetic",
            split=self.split,
            settings={"samples_per_shard": self.samples_per_shard, "store": "original"},
            check=False,
        )
        listed, workers = list_path(self.data), thread_count(self.workers)
        with progress("synth", len(source)) as bar:
            observer = Account(work.meter, bar, work.scratch)
            manifest = pack(plan, work.scratch, workers=workers, listed=listed, observer=observer)
        _write_truth(synthetic, work.scratch)
        work.provenance = bound(work.provenance, manifest)


def _write_truth(synthetic: Synthetic, data: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    positions = [position_of(key) for key in Dataset.open(data).keys]
    truth, path = pa.table(synthetic.truth()).take(positions), data / TRUTH_NAME
    with new_file(temporary_name(path)) as file:
        pq.write_table(truth, file, compression="zstd")
        sync_and_rename(file, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """Build a set of synthetic images, --ipc a class, that needs no pretrained weights."""

    data: DataPath
    """Packed data set."""
    condensed: SetPath
    """Directory to make: the images as shards, and how they came about."""
    ipc: int
    """Images per class."""
    method: Annotated[str, choice_of(METHODS, default="kmeans")] = "kmeans"
    seed: int = 0
    """Seed of the method."""
    workers: int = 0
    """Decoding threads; 0 = one per core."""
    parameters: Annotated[Any, parameters_of(METHODS)] = field(
        default_factory=partial(default_parameters, METHODS)
    )

    def __post_init__(self) -> None:
        require_at_least("ipc", self.ipc, 1)
        for method in METHODS.values():
            own_parameters(method, self.parameters)

    def run(self) -> Result:
        """Build the images class by class, write them as PNG, pack and publish them."""
        dataset = Dataset.open(self.data)
        parameters = own_parameters(METHODS[self.method], self.parameters)
        recorded = {"ipc": self.ipc, **asdict(parameters)}
        config = {"method": self.method, "seed": self.seed, **recorded}
        origin = Provenance.read(self.data).as_input("data", self.data, self.condensed)
        provenance = Provenance(kind="set", stage="distill", config=config, inputs=(origin,))
        with create_artifact(self.condensed, provenance, inputs=[self.data]) as work:
            if not work.done:
                self._write_images(work, dataset, parameters)
                write_set(
                    work, dataset, None, method=self.method, parameters=recorded, seed=self.seed
                )
        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        lines = (
            f"{self.ipc * len(dataset.classes):,} {self.method} images {how}: {self.condensed}",
            f"next: coreset train {self.condensed} VAL RESULTS",
        )
        return Result(lines, {"set": str(self.condensed)})

    def _write_images(self, work: ArtifactWriter, dataset: Dataset, parameters: object) -> None:
        """Fill an artifact in the making with the shards of the images."""
        folder = work.scratch / ".images"
        with progress("distill", len(dataset)) as bar:

            def advance(n_images: int) -> None:
                work.meter.images += n_images
                bar.advance(n_images)

            task = Task(
                dataset=dataset, ipc=self.ipc, seed=self.seed, workers=self.workers, advance=advance
            )
            for label, images in METHODS[self.method].images(task, parameters):
                class_folder = folder / dataset.classes[label]
                class_folder.mkdir(parents=True)
                for number, image in enumerate(images):
                    Image.fromarray(image).save(class_folder / f"{number:05d}.png")
        _pack_images(folder, work.scratch, dataset)
        shutil.rmtree(folder)


def _pack_images(folder: Path, out: Path, dataset: Dataset) -> None:
    meter = Meter("distill", "")  # the images count once, as those that were clustered
    source = find_folder(folder, SourceOptions(only=dataset.classes))  # whatever they are called
    plan = Plan(
        source=source,
        labels=source.labels,
        samples_per_shard=2000,
        name=dataset.manifest.name,
        split="distilled",
        settings={"order": "source"},
    )
    with progress("pack", len(source)) as bar:
        pack(plan, out, workers=1, listed=list_path(out), observer=Account(meter, bar, None))
