"""Training as ``coreset score`` does it, beside the usual loop, and by threads that sleep."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.bench.harness import Contender, Options, Role, Row, race
from coreset.bench.inputs import repeated_tree
from coreset.bench.processes import WITH_PARENT, remote, run_coreset
from coreset.engine.data.geometry import stored_side
from coreset.engine.models.features import FeatureSpec
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.runtime.device import resolve_device
from coreset.engine.scoring.proxy import Proxy, convolutional_proxy, training_images
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.trainer import Trainer, sgd
from coreset.kernels.dynamics import Dynamics
from coreset.shards.format.dataset import Dataset

USUAL, OURS, FROM_MEMORY = "usual loop", "ours, decoding included", "ours, decoded before"
RESIDENT = "one resident batch"
SPEED_GOAL = 2.5
SPEED_SIZE, BUSY_SIZE = 128, 96
Example: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Network inputs, labels, ids."""
_FULL = RECIPES["full"]
_RANDOM_LR = 0.01
"""A rate that random labels survive; it changes no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Options):
    """Sizes of the trainings."""

    images: int = 1000
    """Images of ImageNette of a turn of ``usual-loop`` and ``busy``."""


@dataclass(slots=True)
class Training:
    """ResNet-18 by the full recipe, with all scores accumulated."""

    proxy: Proxy
    trainer: Trainer
    dynamics: Dynamics
    epochs: int = 0

    def epoch(self) -> None:
        """Train on every image once."""
        self.dynamics.begin_epoch(self.epochs)
        self.train(self.proxy.examples(self.epochs, 0))
        self.dynamics.end_epoch(self.epochs)
        self.epochs += 1

    def train(self, examples: Iterable[Example]) -> None:
        """Update and accumulate, as ``coreset.engine.scoring.run`` does per batch."""
        for inputs, labels, ids in examples:
            logits = self.trainer.step(inputs, partial(cross_entropy, target=labels))
            self.dynamics.update(logits, labels, ids)


def training_on(dataset: Dataset, size: int, lr: float = _RANDOM_LR) -> Training:
    """Decode a packed data set and make a network, which takes milliseconds, to train on it."""
    device, recipe = resolve_device("cpu"), replace(_FULL, size=size)
    proxy = convolutional_proxy(
        training_images(dataset, recipe, device, FeatureSpec(backbone="")),
        len(dataset.classes),
        recipe,
        seed=0,
        device=device,
    )
    optimiser = sgd(proxy.network, lr=lr, weight_decay=_FULL.weight_decay)
    trainer = Trainer(proxy.network, optimiser, lambda _: lr, device)
    return Training(proxy, trainer, Dynamics(len(dataset), device))


def usual_loop(setting: Setting) -> Iterator[Row]:
    """Time an epoch beside one of the usual loop, on the same JPEG files."""
    with ExitStack() as stack:
        work = _packed(setting, stack)
        dataset = Dataset.open(work / "data")
        usual = remote(stack, usual_epochs, work / "images", work, SPEED_SIZE, setting.threads)
        decoded = training_on(dataset, SPEED_SIZE, _FULL.lr)
        resident = training_on(dataset, SPEED_SIZE)
        resident.dynamics.begin_epoch(0)
        examples = [next(iter(resident.proxy.examples(0, 0)))] * -(-len(dataset) // _FULL.batch)
        runs: dict[str, tuple[Role, Callable[[], object]]] = {
            USUAL: ("peer", usual),
            OURS: ("ours", lambda: training_on(dataset, SPEED_SIZE, _FULL.lr).epoch()),
            FROM_MEMORY: ("ours", decoded.epoch),
            RESIDENT: ("limit", lambda: resident.train(examples)),
        }
        contenders = [
            Contender(name=name, run=lambda _, run=run: run(), role=role)
            for name, (role, run) in runs.items()
        ]
        rows = race(contenders, repeats=setting.repeats, work=work, images=setting.images)
    about = {"size": SPEED_SIZE, "batch": _FULL.batch, "threads": setting.threads}
    yield from ({"what": "speed", **about, **row, "goal": SPEED_GOAL} for row in rows)


def usual_epochs(folder: Path, scratch: Path, size: int, threads: int) -> Callable[[], object]:
    """Return the usual loop: ``ImageFolder``, ``DataLoader``, float32, the package ``aum``.

    It takes its crops from the square that our proxy takes them from, and trains by the same
    recipe, so that only the way of doing it differs. In a process of its own nobody has tuned its
    memory allocator, and nobody else uses its threads.

    Args:
        folder: One folder of images per class.
        scratch: Where ``aum`` would write.
        size: Side of the crops in pixels.
        threads: Of torch, and workers of the loader.
    """
    from aum import AUMCalculator, DatasetWithIndex
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.models import resnet18

    torch.set_num_threads(threads)
    images = ImageFolder(str(folder), transform=transform_of(size))
    loader: DataLoader[Any] = DataLoader(
        DatasetWithIndex(images),
        _FULL.batch,
        shuffle=True,
        num_workers=threads,
        persistent_workers=threads > 0,
    )
    network = resnet18(num_classes=len(images.classes))
    optimiser = torch.optim.SGD(
        network.parameters(), _FULL.lr, momentum=0.9, weight_decay=_FULL.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, _FULL.epochs * ceil(len(images) / _FULL.batch), eta_min=_FULL.min_lr
    )
    calculator: Any = AUMCalculator(str(scratch), compressed=True)

    def epoch() -> dict[int, int]:
        """Train on every image once; return how often each was seen so far."""
        for batch, labels, ids in loader:
            logits = network(batch)
            optimiser.zero_grad()
            cross_entropy(logits, labels).backward()
            optimiser.step()
            schedule.step()
            calculator.update(logits.detach(), labels, ids.tolist())
        return dict(calculator.counts)

    return epoch


def transform_of(size: int) -> Any:  # noqa: ANN401 - torchvision's transforms are untyped
    """Return torchvision's square of our proxy (8/7 of the crop), random crop and flip."""
    from torchvision import transforms as t

    side = stored_side(size)
    return t.Compose(
        [
            t.Resize(side),
            t.CenterCrop(side),
            t.RandomResizedCrop(size, scale=(_FULL.crop_scale, 1.0)),
            t.RandomHorizontalFlip(),
            t.ToTensor(),
            t.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def busy(setting: Setting) -> Iterator[Row]:
    """Compare threads that spin and sleep, alone and beside a busy process.

    OpenMP reads its policy once in a process, so every contender is a process of its own. The
    weights must be the same bit by bit.
    """
    with ExitStack() as stack:
        work = _packed(setting, stack)
        digests: list[str] = []
        contenders: list[Contender] = []
        for company in ("alone", "beside a busy process"):
            for threads, policy in (("threads spin", None), ("threads sleep", "PASSIVE")):
                epoch = remote(
                    stack, digested_epochs, work / "data", environment={"OMP_WAIT_POLICY": policy}
                )
                run = partial(_digest, digests, epoch, crowded=company != "alone")
                name = f"{company}, {threads}"
                check = partial(_same_weights, digests, len(contenders))
                contenders.append(Contender(name=name, run=run, role="limit", check=check))
        rows = race(contenders, repeats=setting.repeats, work=work, images=setting.images)
    yield from ({"size": BUSY_SIZE, "threads": setting.threads, **row} for row in rows)


def _packed(setting: Setting, stack: ExitStack) -> Path:
    """Pack a part of ImageNette; return the folder of images and data set."""
    work = Path(stack.enter_context(TemporaryDirectory(dir=setting.work.resolve())))
    source = setting.data.resolve() / "imagenette" / "train"
    repeated_tree(source, work / "images", setting.images)
    run_coreset("pack", work / "images", work / "data")
    return work


def digested_epochs(data: Path) -> Callable[[], str]:
    """Return a training, an epoch a call, that gives the digest of its weights."""
    scoring = training_on(Dataset.open(data), BUSY_SIZE)

    def epoch() -> str:
        scoring.epoch()
        weights = (each.detach().numpy().tobytes() for each in scoring.proxy.network.parameters())
        return hashlib.sha256(b"".join(weights)).hexdigest()

    return epoch


def _digest(digests: list[str], epoch: Callable[[], str], _out: Path, *, crowded: bool) -> None:
    command = [*WITH_PARENT, sys.executable, "-c", "while True: pass"]
    rival = subprocess.Popen(command) if crowded else None
    try:
        digests.append(epoch())
    finally:
        if rival is not None:
            rival.kill()
            rival.wait()


def _same_weights(digests: list[str], place: int, _out: Path) -> str:
    """Compare the weights with those of the first contender of the round."""
    return "" if digests[-1] == digests[-1 - place] else "other weights than the first contender's"
