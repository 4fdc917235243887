"""``coreset distill``: build a synthetic set of images from a data set."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from PIL import Image

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.pack_inputs import Account
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.condensed.condensed_set import write_set
from coreset.engine.condensed.methods import METHODS, Task
from coreset.engine.runtime.fields import choice_of, own_parameters, parameters_of, require_at_least
from coreset.engine.runtime.progress import progress
from coreset.engine.stages.options import DataPath, Result, SetPath
from coreset.shards.format.dataset import Dataset
from coreset.shards.packing.pack import list_path, pack
from coreset.shards.packing.plan import Plan
from coreset.shards.sources.base import SourceOptions
from coreset.shards.sources.detect import find_folder


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
    parameters: Annotated[Any, parameters_of(METHODS)] = None

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
