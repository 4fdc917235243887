"""``coreset distill``: build a synthetic set of images from a data set."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.pack_inputs import Account
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.writer import ArtifactWriter, create_artifact
from coreset.engine.condensed.condensed_set import SetInfo
from coreset.engine.runtime.progress import progress
from coreset.engine.runtime.result import Result
from coreset.engine.stages.options import DataPath, SetPath, require_at_least, shaping_fields
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.packing.pack import pack
from coreset.shards.packing.plan import Plan
from coreset.shards.packing.quarantine import list_path
from coreset.shards.sources.folder import find_folder
from coreset.shards.sources.options import SourceOptions

IMAGES_NAME = ".images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """Build a set of synthetic images, --ipc a class, that needs no pretrained weights.

    kmeans: the pixels of a class are clustered into --ipc groups, and the centroid of each becomes
    an image: the plainest distilled set, a floor for every other.
    """

    data: DataPath
    """Packed data set."""
    condensed: SetPath
    """Directory to make: the images as shards, and how they came about."""
    ipc: int
    """Images per class."""
    method: Literal["kmeans"] = "kmeans"
    """How the images are made."""
    size: int = 64
    """Side of the images in pixels."""
    seed: int = 0
    """Seed of the first centroids."""
    workers: int = 0
    """Decoding threads; 0 = one per core."""

    def __post_init__(self) -> None:
        require_at_least("ipc", self.ipc, 1)
        require_at_least("size", self.size, 1)

    def run(self) -> Result:
        """Decode class by class, cluster, write the centroids as PNG, pack and publish them."""
        dataset = Dataset.open(self.data)
        self._require_large_classes(dataset)
        provenance = Provenance(
            kind="set",
            stage="distill",
            config=shaping_fields(self, without=("workers",)),
            inputs=(Provenance.read(self.data).as_input("data", self.data, self.condensed),),
        )
        with create_artifact(self.condensed, provenance, inputs=[self.data]) as work:
            if not work.done:
                self._fill(work, dataset)
        how = "are there already" if work.done else f"made in {work.meter.wall_seconds:.1f} s"
        return Result(
            (
                f"{self.ipc * len(dataset.classes):,} {self.method} images {how}: {self.condensed}",
                f"next: coreset train {self.condensed} VAL RESULTS",
            ),
            {"set": str(self.condensed)},
        )

    def _require_large_classes(self, dataset: Dataset) -> None:
        sizes = np.bincount(dataset.labels, minlength=len(dataset.classes))
        smallest = int(sizes.argmin())
        if sizes[smallest] < self.ipc:
            raise UsageError(
                f"ipc must be at most the size of every class, got {self.ipc}, but class "
                f"{dataset.classes[smallest]} has {sizes[smallest]} images; lower --ipc"
            )

    def _fill(self, work: ArtifactWriter, dataset: Dataset) -> None:
        folder = work.scratch / IMAGES_NAME
        with progress("distill", len(dataset)) as bar:
            for label, pixels in self._pixels_by_class(dataset):
                name = dataset.classes[label]
                _write_images(folder / name, self._centroids(pixels, label, name))
                work.meter.images += len(pixels)
                bar.advance(len(pixels))
        _pack_images(folder, work.scratch, dataset)
        shutil.rmtree(folder)
        self._info(dataset).write(work.scratch)
        binds = {"identity": dataset.manifest.identity, "content": dataset.manifest.content}
        work.provenance = replace(work.provenance, binds=binds)

    def _pixels_by_class(self, dataset: Dataset) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Decode one class after the other: uint8 of shape (n, size, size, 3)."""
        from coreset.engine.data.geometry import Geometry
        from coreset.engine.data.images import load_into_memory
        from coreset.engine.data.stream import ImageStream

        labels = dataset.labels
        for label in range(len(dataset.classes)):
            ids = np.flatnonzero(labels == label)
            geometry = Geometry(self.size, self.size)
            with ImageStream(dataset, geometry, workers=self.workers, ids=ids) as source:
                images_nchw = load_into_memory(source).images
            yield label, images_nchw.permute(0, 2, 3, 1).contiguous().numpy()

    def _centroids(self, pixels: NDArray[np.uint8], label: int, name: str) -> NDArray[np.uint8]:
        from sklearn.cluster import KMeans

        from coreset.kernels.seeds import derived_seed

        seed = derived_seed(self.seed, label) % 2**32
        rows = pixels.reshape(len(pixels), -1)
        n_different = len(np.unique(rows, axis=0))
        if n_different < self.ipc:
            raise UsageError(
                f"ipc must be at most the number of different images, got {self.ipc}, but class "
                f"{name} has {n_different} at size {self.size}; lower --ipc or raise --size"
            )
        clusters = KMeans(self.ipc, random_state=seed).fit(rows.astype(np.float32))
        centres = clusters.cluster_centers_
        return np.rint(centres).clip(0, 255).astype(np.uint8).reshape(-1, *pixels.shape[1:])

    def _info(self, dataset: Dataset) -> SetInfo:
        n_classes = len(dataset.classes)
        return SetInfo(
            kind="distilled",
            method=self.method,
            parameters={"ipc": self.ipc, "size": self.size},
            seed=self.seed,
            source_name=dataset.manifest.name,
            source_identity=dataset.manifest.identity,
            source_content=dataset.manifest.content,
            n_classes=n_classes,
            ipc=self.ipc,
            per_class=(self.ipc,) * n_classes,
        )


def _write_images(folder: Path, images: NDArray[np.uint8]) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:05d}.png")


def _pack_images(folder: Path, out: Path, dataset: Dataset) -> None:
    meter = Meter("distill", "")  # the images count once, as those that were clustered
    found = find_folder(folder, SourceOptions(only=dataset.classes))  # whatever they are called
    plan = Plan(
        source=found,
        labels=found.labels,
        samples_per_shard=2000,
        name=dataset.manifest.name,
        split="distilled",
        settings={"order": "source"},
    )
    with progress("pack", len(found)) as bar:
        pack(plan, out, workers=1, listed=list_path(out), observer=Account(meter, bar, None))
