"""Parts of the benchmark of condensed sets: RDED, its crops and a class from files to images."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreset.bench.harness import Contender, Options, Role, Row, race
from coreset.bench.inputs import repeated_tree
from coreset.bench.peers.distill import Normaliser, float_crops, mixed, surest_crops
from coreset.bench.processes import run_coreset
from coreset.bench.students import beside
from coreset.engine.condensed.methods.base import Task
from coreset.engine.condensed.methods.rded import (
    RdedParameters,
    best_crops,
    crop_losses,
    mosaics,
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

PEER, FEW_AT_ONCE, OURS, TEACHER = (
    "published structure", "published, 5 crops a pass", "ours", "its forward passes"
)  # fmt: skip
SOURCES = ("imagenet-sample", "imagenette/train")
CROPS_GOAL, SAME_GOAL, IPC, WITHIN = 3.0, 0.99, 10, 0.05
Ints = NDArray[np.int64]
Choice = tuple[Tensor, Tensor]
"""Levels of the chosen crops, shape (n, 3, s, s), and their images."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Images of a class, as files and packed, and the boxes that are drawn in them."""

    dataset: Dataset
    files: list[Path]
    ids: Ints
    parameters: RdedParameters = field(default_factory=RdedParameters)

    @property
    def side(self) -> int:
        """Side of a tile."""
        return self.parameters.image_size // self.parameters.factor

    def sizes(self) -> Ints:
        """Return widths and heights, shape (n, 2)."""
        return np.stack([self.dataset.ints(name)[self.ids] for name in ("width", "height")], axis=1)

    def boxes(self) -> Ints:
        """Draw as RDED's task of seed 0 does for its first class, shape (n, m, 4)."""
        law, seed = Crops(ratio=(1.0, 1.0)), derived_seed(0, 0)
        draw = partial(law.boxes, self.ids, *self.sizes().T, seed=seed)
        return np.stack([draw(epoch=crop) for crop in range(self.parameters.crops)], axis=1)


def crops_rows(options: Options, images: int) -> Iterator[Row]:
    """Race processor time of decoding and cropping, with one thread of torch."""
    torch.set_num_threads(1)
    for source in SOURCES:
        with TemporaryDirectory(dir=options.work) as scratch:
            few = _candidates(options.data / source, Path(scratch), images)
            yield from _crops(options, few, {"source": source})
    torch.set_num_threads(options.threads)


def _crops(options: Options, few: Candidates, about: Row) -> Iterator[Row]:
    boxes, sizes, made = few.boxes(), few.sizes(), dict[str, Tensor]()
    normalise = Normaliser((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def published() -> Tensor:
        pairs = zip(few.files, boxes, strict=True)
        return torch.stack([float_crops(*pair, few.side, normalise) for pair in pairs])

    def ours() -> Tensor:
        with ShardReader(few.dataset) as reader:
            crops = cut_crops(reader, few.ids, sizes, boxes, few.side, workers=options.threads)
        return torch.from_numpy(crops)

    def check(_out: Path) -> str:
        levels = normalise.levels(made[PEER]).permute(0, 1, 3, 4, 2)
        apart = float((levels - made[OURS] / 256).abs().max())
        return "" if apart <= WITHIN else f"crops differ by {apart:.2f} levels"

    entries = [
        _keeping(PEER, published, made),
        _keeping(OURS, ours, made, role="ours", check=check),
    ]
    n = boxes.shape[0] * boxes.shape[1]
    rows = race(entries, repeats=options.repeats, work=options.work, clock=time.process_time)
    for row in beside(rows, {OURS: (PEER, CROPS_GOAL)}, about):
        if "median_seconds" in row:
            row["milliseconds"] = round(1e3 * row["median_seconds"] / n, 3)
        yield row


def synthesis_rows(options: Options, images: int) -> Iterator[Row]:
    """Race a class from its files to its mosaics; the forward passes alone are a limit."""
    device = resolve_device("cpu")
    (teacher,) = load_teachers([OFFLINE_BACKBONE], IMAGENETTE_WNIDS, device)
    with TemporaryDirectory(dir=options.work) as scratch:
        source = options.data / "imagenette" / "train"
        few = _candidates(source, Path(scratch), images)
        yield from _synthesis(options, few, teacher)


def _synthesis(options: Options, few: Candidates, teacher: Teacher) -> Iterator[Row]:
    made, own, boxes = dict[str, Choice](), few.parameters, few.boxes()
    task = Task(
        dataset=few.dataset, ipc=IPC, seed=0, open_stream=Decoding(device="cpu").stream,
        advance=lambda _n: None, teachers=(teacher,),
    )  # fmt: skip
    with ShardReader(few.dataset) as reader:
        ready = cut_crops(reader, few.ids, few.sizes(), boxes, few.side, workers=options.threads)

    def ours() -> Choice:
        crops, losses = best_crops(task, teacher, few.ids, 0, own)
        ranked = np.argsort(losses, kind="stable")[: IPC * own.factor**2]
        tiles = ((crops[ranked] + 128) >> 8).astype(np.uint8)
        images = mosaics(tiles, own.factor, own.image_size)
        return torch.from_numpy(crops / 256).permute(0, 3, 1, 2), torch.from_numpy(images)

    def check(name: str, _out: Path) -> str:
        equal = same(made[name][0], made[PEER][0])
        return "" if equal >= SAME_GOAL else f"{equal:.1%} of the chosen crops are the peer's"

    published = partial(_published, few, teacher)
    entries = [
        _keeping(PEER, partial(published, batch=len(few.files)), made),
        _keeping(FEW_AT_ONCE, partial(published, batch=own.crops), made,
                 check=partial(check, FEW_AT_ONCE)),
        _keeping(OURS, ours, made, role="ours", check=partial(check, OURS)),
        Contender(name=TEACHER, role="limit", run=lambda _: _passes(teacher, ready, own)),
    ]  # fmt: skip
    rows = race(entries, repeats=options.repeats, work=options.work, images=len(few.files))
    for row in beside(rows, {OURS: (PEER, 1.0)}, {"teacher": teacher.name}):
        if row["contender"] in made:
            row["same"] = round(same(made[row["contender"]][0], made[PEER][0]), 4)
            row["share"] = row.get("speed_over", {}).get(TEACHER)
        yield row


def _published(few: Candidates, teacher: Teacher, *, batch: int) -> Choice:
    own, normalise = few.parameters, Normaliser(teacher.mean, teacher.std)
    pairs = zip(few.files, few.boxes(), strict=True)
    crops = torch.stack([float_crops(*pair, few.side, normalise) for pair in pairs])

    def logits(images: Tensor) -> Tensor:
        return teacher.network(images)[:, teacher.orders[0]]

    best, losses = surest_crops(logits, crops, 0, own.image_size, batch)
    images = mixed(best, losses, own.factor, own.image_size, IPC)
    return normalise.levels(best), normalise.levels(images)


def _passes(teacher: Teacher, crops: NDArray[np.uint8], own: RdedParameters) -> None:
    for start in range(0, len(crops), 20):
        crop_losses(teacher, crops[start : start + 20], 0, own.image_size)


def same(ours: Tensor, theirs: Tensor) -> float:
    """Return the share of crops that are equal but for a level."""
    return float(((ours - theirs).abs().amax(dim=(1, 2, 3)) <= WITHIN).float().mean())


def _candidates(source: Path, scratch: Path, n: int) -> Candidates:
    """Pack n images of a tree as one class."""
    tree = repeated_tree(source, scratch / "images", n)
    files = [file for file, _ in tree.files()]
    for number, file in enumerate(files):
        target = scratch / "one" / "class" / f"{number:05d}{file.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        files[number] = file.rename(target)
    run_coreset("pack", scratch / "one", scratch / "packed", "--one-class", "--order", "source")
    return Candidates(Dataset.open(scratch / "packed"), files, np.arange(n))


def _keeping(
    name: str,
    make: Callable[[], Any],
    made: dict[str, Any],
    *,
    role: Role = "peer",
    check: Callable[[Path], str] = lambda _out: "",
) -> Contender:
    """Return a contender that keeps what it made last."""
    return Contender(name=name, run=lambda _: made.update({name: make()}), role=role, check=check)
