"""Usual training loop: ``ImageFolder``, ``DataLoader``, float32, the package ``aum``.

It takes its crops from the square that our proxy takes them from, and trains by the same recipe, so
that only the way of doing it differs. It runs in a process of its own (``opened``), whose memory
allocator nobody has tuned and whose threads nobody else uses.
"""

from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from coreset.bench.processes import pool_of
from coreset.engine.data.geometry import stored_side
from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.scoring.recipes import RECIPES

_open: "list[UsualLoop]" = []
"""The loop of this process, if it is one of a pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """Images and schedule of the loop."""

    folder: Path
    """One folder of images per class."""
    scratch: Path
    """Where ``aum`` would write."""
    size: int
    epochs: int
    """For the schedule of the rate; `UsualLoop.epoch` runs one."""
    batch: int
    lr: float
    seed: int
    workers: int


@dataclass(slots=True)
class UsualLoop:
    """ResNet-18 in training, its data loader and its AUM."""

    task: Usual
    loader: DataLoader[Any] = field(init=False)
    network: torch.nn.Module = field(init=False)
    optimiser: torch.optim.SGD = field(init=False)
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR = field(init=False)
    calculator: Any = field(init=False)
    paths: list[str] = field(init=False)

    def __post_init__(self) -> None:
        from aum import AUMCalculator, DatasetWithIndex
        from torchvision.datasets import ImageFolder
        from torchvision.models import resnet18

        task, recipe = self.task, RECIPES["full"]
        torch.manual_seed(task.seed)  # noqa: TID251 - as everybody does
        folder = ImageFolder(str(task.folder), transform=transform_of(task.size))
        self.paths = [path for path, _ in folder.samples]
        self.loader = DataLoader(
            DatasetWithIndex(folder),
            task.batch,
            shuffle=True,
            num_workers=task.workers,
            persistent_workers=task.workers > 0,
        )
        self.network = resnet18(num_classes=len(folder.classes))
        self.optimiser = torch.optim.SGD(
            self.network.parameters(), task.lr, momentum=0.9, weight_decay=recipe.weight_decay
        )
        steps = task.epochs * ceil(len(folder) / task.batch)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimiser, steps, eta_min=recipe.min_lr
        )
        self.calculator = AUMCalculator(str(task.scratch), compressed=True)

    def epoch(self) -> int:
        """Train on every image once; return how many there were."""
        self.network.train()
        seen = 0
        for images, labels, ids in self.loader:
            logits: Tensor = self.network(images)
            loss = cross_entropy(logits, labels)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            self.calculator.update(logits.detach(), labels, ids.tolist())
            seen += len(ids)
        return seen

    def aum(self) -> dict[str, float]:
        """Return the AUM (of logits) by class folder and file, without the file's ending."""
        sums, counts = self.calculator.sums, self.calculator.counts
        keys = [Path(path).relative_to(self.task.folder).with_suffix("") for path in self.paths]
        return {str(key): sums[i] / counts[i] for i, key in enumerate(keys)}


def transform_of(size: int) -> Any:  # noqa: ANN401 - torchvision's transforms are untyped
    """Return torchvision's square of our proxy (8/7 of the crop), random crop and flip."""
    from torchvision import transforms as t

    side = stored_side(size)
    scale = (RECIPES["full"].crop_scale, 1.0)
    return t.Compose(
        [
            t.Resize(side),
            t.CenterCrop(side),
            t.RandomResizedCrop(size, scale=scale),
            t.RandomHorizontalFlip(),
            t.ToTensor(),
            t.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


@dataclass(frozen=True, slots=True)
class Remote:
    """A loop in a process of its own."""

    pool: ProcessPoolExecutor

    def epoch(self) -> int:
        """Run ``UsualLoop.epoch`` there."""
        return self.pool.submit(_epoch).result()

    def aum(self) -> dict[str, float]:
        """Run ``UsualLoop.aum`` there."""
        return self.pool.submit(_aum).result()


@contextmanager
def opened(task: Usual, threads: int) -> Generator[Remote]:
    """Yield the loop in a fresh process with so many threads."""
    with pool_of(None) as (pool, _):
        pool.submit(_begin, task, threads).result()
        yield Remote(pool)


def _begin(task: Usual, threads: int) -> None:
    torch.set_num_threads(threads)
    _open.append(UsualLoop(task))


def _epoch() -> int:
    return _open[0].epoch()


def _aum() -> dict[str, float]:
    return _open[0].aum()
