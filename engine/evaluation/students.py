"""Evaluation protocols, and the one loop that trains and evaluates a student under them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.ledger import Stopwatch
from coreset.engine.data.images import EpochSource
from coreset.engine.data.order import BatchOrder
from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.networks import (
    Norm,
    StudentName,
    build_network,
    memory_format_for,
    placed,
)
from coreset.engine.runtime.device import generator_for
from coreset.engine.training.trainer import (
    Accuracy,
    CompileMode,
    Examples,
    Trainer,
    compile_where_it_pays,
    evaluate,
    sgd,
    step_schedule,
)
from coreset.kernels.augment import (
    color_jitter,
    cutmix,
    horizontal_flip,
    lighting,
    normalised,
    random_resized_crop,
    unit_range,
)

EVALUATION_BATCH = 256
LR_FACTOR = 0.2
EPOCHS_BY_IPC = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500), (math.inf, 300))
"""``ipc_epoch`` of the published code: the first limit that the IPC does not exceed."""


class TrainingBatch(NamedTuple):
    """Input of one training step."""

    inputs: Tensor
    """Augmented and normalised images, (b, 3, size, size)."""
    loss: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol(ABC):
    """Settings of one training; its fields identify the students trained under it."""

    n_classes: int
    ipc: int
    epochs: int
    size: int = 224
    evaluations: int = 100
    """About this many evaluations, evenly over the epochs; best top-1 is the best of them."""
    stamp: str
    """Name and version, ``+short`` where the protocol is not the published one."""
    norm: ClassVar[Norm]

    @classmethod
    @abstractmethod
    def published(cls, n_classes: int, ipc: int) -> Self:
        """Return the protocol as published for this number of classes and IPC."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Images per step."""

    @abstractmethod
    def optimiser(self, network: nn.Module) -> torch.optim.SGD:
        """Make the optimiser of a network, at its first learning rate."""

    @abstractmethod
    def schedule(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the learning rate by step."""

    @abstractmethod
    def training_batch(
        self, images: Tensor, labels: Tensor, draws: torch.Generator
    ) -> TrainingBatch:
        """Augment one batch, uint8 (b, 3, s, s) and int64 (b,), and bind its targets."""

    def evaluation_inputs(self, images: Tensor) -> Tensor:
        """Prepare uint8 images (b, 3, s, s) for an evaluation."""
        return normalised(images, IMAGENET_MEAN, IMAGENET_STD)

    def shortened(self, **changes: int | None) -> Self:
        """Return the protocol with other epochs, size or evaluations, stamped if it differs."""
        changed = replace(self, **{name: value for name, value in changes.items() if value})
        return self if changed == self else replace(changed, stamp=f"{self.stamp}+short")

    def evaluates_after(self, epoch: int) -> bool:
        """Test whether to evaluate after so many epochs: every E // evaluations, and the last."""
        every = max(1, self.epochs // self.evaluations)
        return epoch % every == 0 or epoch == self.epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class HardLabels(Protocol):
    """Hard-label protocol, version 1, for one number of classes and images per class.

    Source: MinimaxDiffusion / ManifoldGD ``train.py``, ``argument.py``, ``data.py`` (the study's
    section 3.4). Deliberate differences, each of which leaves the recipe as it is: images are
    resized and cut to their central square once and held as uint8; augmentation runs in batch on
    the device; arithmetic is bfloat16 where the device is fast at it; every run is seeded.
    ImageNet-1K trains 300 epochs (the published rule would give 2000 or 1500; the study's number
    was lost).
    """

    stamp: str = "hard@1"
    norm: ClassVar[Norm] = "instance"

    @classmethod
    def published(cls, n_classes: int, ipc: int) -> Self:
        """Return the protocol as published; 100 classes have two thirds of the epochs."""
        epochs = next(epochs for limit, epochs in EPOCHS_BY_IPC if ipc <= limit)
        if n_classes == 100:
            epochs = epochs * 2 // 3 // 100 * 100  # in hundreds
        return cls(n_classes=n_classes, ipc=ipc, epochs=300 if n_classes > 100 else epochs)

    @property
    def large(self) -> bool:
        """Test whether the rules for more than 100 classes apply."""
        return self.n_classes > 100

    @property
    def batch(self) -> int:
        """Images per step."""
        return 128 if self.large else 64

    @property
    def lr(self) -> float:
        """Learning rate at the start."""
        return 0.1 if self.large else 0.01

    def optimiser(self, network: nn.Module) -> torch.optim.SGD:
        """Make SGD with momentum 0.9 that decays all weights."""
        return sgd(network, lr=self.lr, weight_decay=1e-4 if self.large else 5e-4)

    def schedule(self, steps_per_epoch: int) -> Callable[[int], float]:
        """Return the learning rate by step: it falls after two thirds and five sixths."""
        drops = (2 * self.epochs // 3, 5 * self.epochs // 6)
        return step_schedule(self.lr, (epoch * steps_per_epoch for epoch in drops), LR_FACTOR)

    def training_batch(
        self, images: Tensor, labels: Tensor, draws: torch.Generator
    ) -> TrainingBatch:
        """Augment as ``data.py`` does; a mixed image pays for both labels by their shares."""
        crops = random_resized_crop(unit_range(images), self.size, draws, scale=(0.5, 1.0))
        jittered = lighting(color_jitter(horizontal_flip(crops, draws), draws), draws)
        mixed = cutmix(normalised(jittered, IMAGENET_MEAN, IMAGENET_STD), draws)

        def loss(logits: Tensor) -> Tensor:
            own = cross_entropy(logits, labels)
            partner = cross_entropy(logits, labels[mixed.partner])
            return mixed.share * own + (1 - mixed.share) * partner

        return TrainingBatch(mixed.images, loss)


class StudentResult(NamedTuple):
    """One trained student; accuracies in percent of the validation images."""

    top1_best: float
    top1_last: float
    top5_last: float
    steps: int
    train_seconds: float
    evaluation_seconds: float
    note: str


def train_student(
    train: EpochSource,
    val: EpochSource,
    protocol: Protocol,
    student: StudentName,
    *,
    seed: int,
    device: torch.device,
    compile_mode: CompileMode = "auto",
    on_epoch: Callable[[int, float], None] = lambda _epoch, _top1: None,
) -> StudentResult:
    """Train one student from scratch and evaluate it; ``on_epoch`` gets epochs and best top-1."""
    network = build_network(student, protocol.n_classes, norm=protocol.norm, seed=seed)
    network = placed(network, device, memory_format_for(protocol.norm, device))
    schedule = protocol.schedule(-(-len(train) // protocol.batch))
    trainer = Trainer(network, protocol.optimiser(network), schedule, device)
    passes = protocol.epochs * len(train)
    note = compile_where_it_pays(
        network, compile_mode, device, image_passes=passes, size=protocol.size
    )
    best, last, evaluating = 0.0, Accuracy(0.0, 0.0), 0.0
    whole = Stopwatch()
    for epoch in range(protocol.epochs):
        train_epoch(trainer, train, protocol, seed=seed, epoch=epoch)
        if protocol.evaluates_after(epoch + 1):
            if device.type == "cuda":  # training steps still queued are not evaluation
                torch.cuda.synchronize(device)
            watch = Stopwatch()
            last = evaluate(network, _evaluation_batches(val, protocol, device), device)
            best, evaluating = max(best, last.top1), evaluating + watch.seconds
        on_epoch(epoch + 1, best)
    return StudentResult(
        top1_best=best,
        top1_last=last.top1,
        top5_last=last.top5,
        steps=trainer.steps,
        train_seconds=whole.seconds - evaluating,
        evaluation_seconds=evaluating,
        note=note,
    )


def train_epoch(
    trainer: Trainer, train: EpochSource, protocol: Protocol, *, seed: int, epoch: int
) -> None:
    """Train for one epoch; all draws follow from seed and epoch."""
    draws, layout = generator_for(seed, epoch), memory_format_for(protocol.norm, trainer.device)
    order = BatchOrder(batch=protocol.batch, epoch=epoch, seed=seed, shuffle=True)
    for batch in train.epoch(order):
        images = batch.images.to(trainer.device, non_blocking=True)
        labels = batch.labels.to(trainer.device, non_blocking=True)
        inputs, loss = protocol.training_batch(images, labels, draws)
        trainer.step(inputs.contiguous(memory_format=layout), loss)


def _evaluation_batches(val: EpochSource, protocol: Protocol, device: torch.device) -> Examples:
    layout = memory_format_for(protocol.norm, device)
    for batch in val.epoch(BatchOrder(batch=EVALUATION_BATCH)):
        inputs = protocol.evaluation_inputs(batch.images.to(device, non_blocking=True))
        labels = batch.labels.to(device, non_blocking=True)
        yield inputs.contiguous(memory_format=layout), labels, batch.ids
