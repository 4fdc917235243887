"""The hard-label protocol: a frozen configuration, and the training of one student under it.

Source: MinimaxDiffusion / ManifoldGD ``train.py``, ``argument.py``, ``data.py`` (the study's
section 3.4). Deliberate differences, each of which leaves the recipe as it is: images are resized
and cut to their central square once and held as uint8; augmentation runs in batch on the device;
arithmetic is bfloat16 where the device is fast at it; every run is seeded. ImageNet-1K trains 300
epochs (the published rule would give 2000 or 1500; the study's number was lost).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.ledger import Stopwatch, stopwatch
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import EpochSource
from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.networks import StudentName, build_network, memory_format_for, placed
from coreset.engine.runtime.seeding import generator_for
from coreset.engine.training.trainer import (
    Accuracy,
    CompileMode,
    Trainer,
    compile_where_it_pays,
    evaluate,
    sgd,
    step_schedule,
)
from coreset.kernels.augment import (
    CutMix,
    color_jitter,
    cutmix,
    horizontal_flip,
    lighting,
    normalised,
    random_resized_crop,
    unit_range,
)

LR_FACTOR = 0.2
_EPOCHS_BY_IPC = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))


@dataclass(frozen=True, slots=True, kw_only=True)
class HardLabels:
    """Hard-label protocol, version 1, for one number of classes and images per class."""

    n_classes: int
    ipc: int
    epochs: int
    size: int = 224
    evaluations: int = 100
    """About this many evaluations, evenly over the epochs; best top-1 is the best of them."""
    stamp: str = "hard@1"

    @staticmethod
    def published(n_classes: int, ipc: int) -> "HardLabels":
        """The protocol as published for this number of classes and IPC."""
        return HardLabels(
            n_classes=n_classes, ipc=ipc, epochs=published_epochs(n_classes=n_classes, ipc=ipc)
        )

    def shortened(
        self, *, epochs: int | None, size: int | None, evaluations: int | None
    ) -> "HardLabels":
        """The protocol with other epochs, size or evaluations; stamped, as it is not comparable."""
        changed = replace(
            self,
            epochs=epochs or self.epochs,
            size=size or self.size,
            evaluations=evaluations or self.evaluations,
        )
        return self if changed == self else replace(changed, stamp=f"{self.stamp}+short")

    @property
    def large(self) -> bool:
        """Whether the rules for more than 100 classes apply."""
        return self.n_classes > 100

    @property
    def lr(self) -> float:
        """Learning rate at the start."""
        return 0.1 if self.large else 0.01

    @property
    def weight_decay(self) -> float:
        """On all parameters."""
        return 1e-4 if self.large else 5e-4

    @property
    def batch(self) -> int:
        """Images per step."""
        return 128 if self.large else 64

    @property
    def drops(self) -> tuple[int, int]:
        """Epochs at which the learning rate falls by ``LR_FACTOR``."""
        return 2 * self.epochs // 3, 5 * self.epochs // 6

    def evaluates_after(self, epoch: int) -> bool:
        """Whether to evaluate after ``epoch`` finished epochs: every E // evaluations, and last."""
        every = max(1, self.epochs // self.evaluations)
        return epoch % every == 0 or epoch == self.epochs


def published_epochs(*, n_classes: int, ipc: int) -> int:
    """``ipc_epoch`` of the published code; two thirds, in whole hundreds, for 100 classes."""
    if n_classes > 100:
        return 300
    epochs = next((number for limit, number in _EPOCHS_BY_IPC if ipc <= limit), 300)
    return epochs * 2 // 3 // 100 * 100 if n_classes == 100 else epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentResult:
    """One trained student; accuracies in percent of the validation images."""

    best: float
    """Largest top-1 over the evaluations (what the study compares)."""
    last: Accuracy
    """After the last epoch."""
    steps: int
    train_seconds: float
    evaluation_seconds: float
    note: str


def training_input(
    images: Tensor, labels: Tensor, size: int, draws: torch.Generator
) -> tuple[CutMix, Tensor]:
    """Augment one batch as ``data.py`` does: crop, flip, jitter, lighting, normalise, CutMix.

    Args:
        images: uint8 (b, 3, s, s) on the device.
        labels: int64 (b,).
        size: Side of the crops.
        draws: Source of all randomness.

    Returns:
        The mixed images, and the labels of the partners, int64 (b,).
    """
    crops = random_resized_crop(unit_range(images), size, draws, scale=(0.5, 1.0))
    jittered = lighting(color_jitter(horizontal_flip(crops, draws), draws), draws)
    mixed = cutmix(normalised(jittered, IMAGENET_MEAN, IMAGENET_STD), draws)
    return mixed, labels[mixed.partner]


def train_student(
    train: EpochSource,
    val: EpochSource,
    protocol: HardLabels,
    student: StudentName,
    *,
    seed: int,
    device: torch.device,
    compile_mode: CompileMode = "auto",
    on_epoch: Callable[[int, float], None] = lambda _epoch, _top1: None,
) -> StudentResult:
    """Train one student from scratch on the condensed set ``train`` and evaluate it on ``val``.

    ``on_epoch`` is told every finished epoch and the best top-1 so far.
    """
    layout = memory_format_for("instance", device)
    network = build_network(student, protocol.n_classes, norm="instance", seed=seed)
    network = placed(network, device, layout)
    trainer = _trainer(network, protocol, len(train), device)
    passes = protocol.epochs * len(train)
    note = compile_where_it_pays(
        network, compile_mode, device, image_passes=passes, size=protocol.size
    )
    best, last, evaluating = 0.0, Accuracy(0.0, 0.0), 0.0
    whole = stopwatch()
    for epoch in range(protocol.epochs):
        _train_epoch(trainer, train, protocol, layout, seed=seed, epoch=epoch)
        if protocol.evaluates_after(epoch + 1):
            if device.type == "cuda":  # training steps still queued are not evaluation
                torch.cuda.synchronize(device)
            watch: Stopwatch = stopwatch()
            last = evaluate(network, _evaluation_examples(val, layout, device), device)
            best, evaluating = max(best, last.top1), evaluating + watch.seconds
        on_epoch(epoch + 1, best)
    return StudentResult(
        best=best,
        last=last,
        steps=trainer.steps,
        train_seconds=whole.seconds - evaluating,
        evaluation_seconds=evaluating,
        note=note,
    )


def _trainer(
    network: nn.Module, protocol: HardLabels, n_images: int, device: torch.device
) -> Trainer:
    steps_per_epoch = -(-n_images // protocol.batch)
    optimiser = sgd(network, lr=protocol.lr, weight_decay=protocol.weight_decay)
    drops = (epoch * steps_per_epoch for epoch in protocol.drops)
    schedule = step_schedule(protocol.lr, drops, LR_FACTOR)
    return Trainer(network, optimiser, schedule, device)


def _train_epoch(
    trainer: Trainer,
    train: EpochSource,
    protocol: HardLabels,
    layout: torch.memory_format,
    *,
    seed: int,
    epoch: int,
) -> None:
    draws = generator_for(seed, epoch)
    for part in train.epoch(BatchOrder(batch=protocol.batch, epoch=epoch, seed=seed, shuffle=True)):
        images = part.images.to(trainer.device, non_blocking=True)
        labels = part.labels.to(trainer.device, non_blocking=True)
        mixed, partner_labels = training_input(images, labels, protocol.size, draws)

        def loss_of(
            logits: Tensor,
            labels: Tensor = labels,
            partners: Tensor = partner_labels,
            share: float = mixed.share,
        ) -> Tensor:
            own = cross_entropy(logits, labels)
            return share * own + (1 - share) * cross_entropy(logits, partners)

        trainer.step(mixed.images.contiguous(memory_format=layout), loss_of)


def _evaluation_examples(
    val: EpochSource, layout: torch.memory_format, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for part in val.epoch(BatchOrder(batch=256)):
        images = part.images.to(device, non_blocking=True)
        inputs = normalised(images, IMAGENET_MEAN, IMAGENET_STD)
        labels = part.labels.to(device, non_blocking=True)
        yield inputs.contiguous(memory_format=layout), labels, part.ids
