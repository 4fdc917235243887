"""Inputs of ``coreset.bench.decode``: packed data sets, their source files, reference pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.bench.inputs import QUALITY, Tree, repeated_tree
from coreset.bench.peers.loaders import SHORT_SIDE, SIZE, Crop, Pixels, Task
from coreset.bench.processes import options, run_coreset
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Box, Crops, Geometry
from coreset.shards.format.dataset import Dataset

InputName: TypeAlias = Literal["imagenet", "packed256", "imagenette"]
_SHARDS_PER_THREAD = 4
"""So that loaders that share out whole shards among workers share them evenly."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """Images of a race."""

    name: InputName
    tree: Tree
    dataset: Dataset
    folder: Path
    """For what loaders write."""

    @property
    def note(self) -> str:
        """Description of the images."""
        size = self.dataset.ints("bytes").mean() / 1000
        return f"{self.tree.note}; {size:.1f} kB each as packed"

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """Files of the tree in the order of the sample ids."""
        sources = self.dataset.table(["source"])["source"].to_pylist()
        return tuple(self.tree.path / source for source in sources)

    @cached_property
    def contents(self) -> list[bytes]:
        """Bytes of every stored image, by id."""
        columns = [self.dataset.ints(name).tolist() for name in ("shard", "offset", "bytes")]
        shards = [path.read_bytes() for path in self.dataset.shard_paths()]
        return [shards[at][start : start + n] for at, start, n in zip(*columns, strict=True)]

    def task(self, crop: Crop, pixels: Pixels, threads: int, *, epochs: int = 1) -> Task:
        """Return the task of the loaders."""
        return Task(
            data=self.dataset.path,
            tree=self.tree.path,
            files=self.files,
            folder=self.folder,
            crop=crop,
            pixels=pixels,
            threads=threads,
            epochs=epochs,
        )

    def reference(self, ids: Sequence[int], crop: Crop) -> NDArray[np.float32]:
        """Decode stored images with Pillow by torchvision's rules, float32 (n, s, s, 3)."""
        geometry = Geometry(SIZE, SHORT_SIDE if crop == "centre" else None)
        boxes = self._first_crops(ids) if crop == "random" else [None] * len(ids)
        images = [
            decode_with_pillow(self.contents[one], geometry, crop=box)
            for one, box in zip(ids, boxes, strict=True)
        ]
        return np.stack(images).astype(np.float32)

    def _first_crops(self, ids: Sequence[int]) -> list[Box]:
        """Draw the random crops that ``coreset`` takes in epoch 0 of seed 0."""
        chosen = np.array(ids)
        sizes = (self.dataset.ints(name)[chosen] for name in ("width", "height"))
        return [tuple(box) for box in Crops().boxes(chosen, *sizes, seed=0, epoch=0).tolist()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Inputs that are made when they are first asked for."""

    data: Path
    """Folder with ``imagenet-sample`` and ``imagenette/train``."""
    work: Path
    images: int
    """Of original size."""
    small_images: int
    """Of ImageNette."""
    threads: int
    _made: dict[InputName, Input] = field(default_factory=dict[InputName, Input])

    def get(self, name: InputName) -> Input:
        """Return the input of that name."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: InputName) -> Input:
        if name == "packed256":
            tree = self.get("imagenet").tree
            stored = {"store": "resized", "short_side": SHORT_SIDE, "quality": QUALITY}
        else:
            source, n = {
                "imagenet": (self.data / "imagenet-sample", self.images),
                "imagenette": (self.data / "imagenette" / "train", self.small_images),
            }[name]
            # Copies: bytes that a loader reads again must not be in a cache of the processor.
            tree = repeated_tree(name, source, self.work / f"{name}-files", n, copies=True)
            stored: Mapping[str, Any] = {}
        folder = self.work / f"{name}-made"
        folder.mkdir()
        return Input(name=name, tree=tree, dataset=self._packed(name, tree, stored), folder=folder)

    def _packed(self, name: str, tree: Tree, stored: Mapping[str, Any]) -> Dataset:
        path = self.work / name
        per_shard = -(-len(tree.files()) // (_SHARDS_PER_THREAD * self.threads))
        settings = {"samples_per_shard": per_shard, "workers": self.threads, **stored}
        run_coreset("pack", tree.path, path, *options(settings))
        return Dataset.open(path)


def difference(pixels: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, float]:
    """Return the largest and the mean absolute difference of two batches, in levels."""
    distance = np.abs(pixels - expected)
    return {
        "pixels_max": round(float(distance.max()), 2),
        "pixels_mean": round(float(distance.mean()), 3),
    }
