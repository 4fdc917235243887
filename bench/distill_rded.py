"""Parts of the benchmark of condensed sets: crops of RDED, and a class from files to mosaics."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.bench.harness import Contender, Options, Row, race
from coreset.bench.inputs import repeated_tree
from coreset.bench.peers.distill import Normaliser, float_crops, mixed, surest_crops
from coreset.bench.processes import run_coreset
from coreset.bench.students import beside
from coreset.engine.condensed.methods.base import Task
from coreset.engine.condensed.methods.rded import (
    RdedParameters,
    best_crops,
    crop_losses,
    rounded_mosaics,
)
from coreset.engine.data.geometry import Crops
from coreset.engine.data.reader import ShardReader
from coreset.engine.data.whole_images import cut_crops
from coreset.engine.models.backbones import OFFLINE_BACKBONE
from coreset.engine.models.teachers import Teacher, load_teachers
from coreset.engine.runtime.device import resolve_device
from coreset.engine.stages.options import Decoding
from coreset.kernels.seeds import derived_seed
from coreset.shards.format.classes import IMAGENETTE_WNIDS
from coreset.shards.format.dataset import Dataset

PEER, OURS, PASSES = "published structure", "ours", "its forward passes"
SOURCES = "imagenet-sample", "imagenette/train"
CROPS_GOAL, SAME_GOAL, WITHIN_LEVELS = 3.0, 0.99, 0.05
IPC, PARAMETERS = 1, RdedParameters()
SIDE = PARAMETERS.size // PARAMETERS.factor
PASS_IMAGES = 20


@dataclass(frozen=True, slots=True)
class Candidates:
    """Images of one class, as files and packed, and the boxes that RDED draws in them."""

    files: list[Path]
    dataset: Dataset

    def sizes(self) -> NDArray[np.int64]:
        """Return widths and heights, shape (n, 2)."""
        return np.stack([self.dataset.ints("width"), self.dataset.ints("height")], axis=1)

    def boxes(self) -> NDArray[np.int64]:
        """Draw boxes as a task of seed 0 does, shape (n, m, 4)."""
        ids, law = np.arange(len(self.dataset)), Crops(ratio=(1.0, 1.0))
        draw = partial(law.boxes, ids, *self.sizes().T, seed=derived_seed(0, 0))
        return np.stack([draw(epoch=crop) for crop in range(PARAMETERS.crops)], axis=1)

    def crops(self, threads: int) -> NDArray[np.uint16]:
        """Cut them as RDED does."""
        ids = np.arange(len(self.dataset))
        with ShardReader(self.dataset) as reader:
            return cut_crops(reader, ids, self.sizes(), self.boxes(), SIDE, workers=threads)

    def published_crops(self, normalise: Normaliser) -> Tensor:
        """Cut them as RDED's released code does, and normalise them: (n, m, 3, s, s)."""
        pairs = zip(self.files, self.boxes(), strict=True)
        return torch.stack([float_crops(*pair, SIDE, normalise) for pair in pairs])


def crops_rows(options: Options, images: int) -> Iterator[Row]:
    """Race processor time of decoding and cropping, with one thread of torch."""
    torch.set_num_threads(1)
    normalise = Normaliser((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for source in SOURCES:
        with TemporaryDirectory(dir=options.work) as scratch:
            few = candidates(options.data / source, Path(scratch), images)
            theirs = _Way(lambda few=few: few.published_crops(normalise))
            ours = _Way(lambda few=few: torch.from_numpy(few.crops(options.threads)))

            def check(ours: _Way = ours, theirs: _Way = theirs) -> str:
                levels = normalise.levels(theirs.made).permute(0, 1, 3, 4, 2)
                apart = float((levels - ours.made / 256).abs().max())
                return "" if apart <= WITHIN_LEVELS else f"crops differ by {apart:.2f} levels"

            entries = [theirs.contender(PEER), ours.contender(OURS, check)]
            rows = race(
                entries, repeats=options.repeats, work=options.work, clock=time.process_time
            )
            for row in beside(rows, {OURS: (PEER, CROPS_GOAL)}, {"source": source}):
                if "median_seconds" in row:
                    n = images * PARAMETERS.crops
                    row["milliseconds"] = round(1e3 * row["median_seconds"] / n, 3)
                yield row
    torch.set_num_threads(options.threads)


def class_rows(options: Options, images: int) -> Iterator[Row]:
    """Race a class from its files to its mosaics; the forward passes alone are a limit."""
    (teacher,) = load_teachers([OFFLINE_BACKBONE], IMAGENETTE_WNIDS, resolve_device("cpu"))
    with TemporaryDirectory(dir=options.work) as scratch:
        few = candidates(options.data / "imagenette" / "train", Path(scratch), images)
        theirs, ours = _Way(partial(_published, few, teacher)), _Way(partial(_own, few, teacher))
        passes, crops = partial(_passes, teacher), few.crops(options.threads)

        def same() -> float:
            apart = (ours.made - theirs.made).abs().amax(dim=(1, 2, 3))
            return float((apart <= WITHIN_LEVELS).float().mean())

        def check() -> str:
            return "" if same() >= SAME_GOAL else f"{same():.1%} of the chosen crops are the peer's"

        entries = [
            theirs.contender(PEER),
            ours.contender(OURS, check),
            Contender(name=PASSES, role="limit", run=lambda _: passes(crops)),
        ]
        rows = race(entries, repeats=options.repeats, work=options.work, images=images)
        for row in beside(rows, {OURS: (PEER, 1.0)}, {"teacher": teacher.name}):
            row["share"] = row.get("speed_over", {}).get(PASSES)
            yield row | ({"same": round(same(), 4)} if row["contender"] == OURS else {})


def _own(few: Candidates, teacher: Teacher) -> Tensor:
    """Build mosaics, and return the chosen crops: levels (n, 3, s, s)."""
    task = Task(
        dataset=few.dataset, ipc=IPC, seed=0, open_stream=Decoding(device="cpu").stream,
        workers=0, advance=lambda _n: None, teachers=(teacher,),
    )  # fmt: skip
    crops, losses = best_crops(task, teacher, np.arange(len(few.dataset)), 0, PARAMETERS)
    rounded_mosaics(crops, losses, IPC, PARAMETERS)
    return torch.from_numpy(crops / 256).permute(0, 3, 1, 2)


def _published(few: Candidates, teacher: Teacher) -> Tensor:
    """Do the same by the published structure, with as many crops a pass as there are images."""
    normalise = Normaliser(teacher.mean, teacher.std)

    def logits(images: Tensor) -> Tensor:
        return teacher.network(images)[:, teacher.orders[0]]

    crops, size = few.published_crops(normalise), PARAMETERS.size
    best, losses = surest_crops(logits, crops, 0, size, batch=len(few.files))
    mixed(best, losses, PARAMETERS.factor, size, IPC)
    return normalise.levels(best)


def _passes(teacher: Teacher, crops: NDArray[np.uint16]) -> None:
    for start in range(0, len(crops), PASS_IMAGES):
        crop_losses(teacher, crops[start : start + PASS_IMAGES], 0, PARAMETERS.size)


def candidates(source: Path, scratch: Path, n: int) -> Candidates:
    """Pack n images of a tree as one class."""
    files: list[Path] = []
    for number, (file, _) in enumerate(repeated_tree(source, scratch / "images", n).files()):
        target = scratch / "one" / "class" / f"{number:05d}{file.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        files.append(file.rename(target))
    run_coreset("pack", scratch / "one", scratch / "packed", "--one-class", "--order", "source")
    return Candidates(files, Dataset.open(scratch / "packed"))


class _Way:
    """A way to make a tensor, which is kept."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make, self.made = make, torch.empty(0)

    def run(self, _out: Path) -> None:
        self.made = self._make()

    def contender(self, name: str, check: Callable[[], str] = str) -> Contender:
        role = "ours" if name == OURS else "peer"
        return Contender(name=name, role=role, run=self.run, check=lambda _: check())
