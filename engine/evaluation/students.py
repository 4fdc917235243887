"""Evaluation protocols, and the one loop that trains and evaluates a student under them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from coreset.engine.artifacts.ledger import Stopwatch
from coreset.engine.data.images import EpochSource
from coreset.engine.data.order import BatchOrder
from coreset.engine.models.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Norm,
    build_network,
    memory_format_for,
    placed,
)
from coreset.engine.models.student_names import TIMM
from coreset.engine.runtime.device import generator_for, precision_note, seeded_torch
from coreset.engine.training.trainer import (
    Accuracy,
    CompileMode,
    Examples,
    Trainer,
    compilation,
    compile_where_it_pays,
    evaluate,
)
from coreset.kernels.augment import normalised
from coreset.kernels.seeds import Stream, derived_seed

EVALUATION_BATCH = 256


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
    """Name and version; ``+timm``, ``+short`` where it is not the published one."""
    norm: ClassVar[Norm]
    """Norm of every student but timm's, which have their own."""

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
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Augment and normalise uint8 images (b, 3, s, s); return them and the loss of logits."""

    def evaluation_inputs(self, images: Tensor) -> Tensor:
        """Prepare uint8 images (b, 3, s, s) for an evaluation."""
        return normalised(images, IMAGENET_MEAN, IMAGENET_STD)

    def applied_to(self, student: str) -> Self:
        """Return the protocol of a student, stamped if the student's norm layers are its own."""
        stamp = f"{self.stamp}+timm" if student.startswith(TIMM) else self.stamp
        return replace(self, stamp=stamp)

    def shortened(self, **changes: int | None) -> Self:
        """Return the protocol with other epochs, size or evaluations, stamped if it differs."""
        changed = replace(self, **{name: value for name, value in changes.items() if value})
        return self if changed == self else replace(changed, stamp=f"{self.stamp}+short")

    def evaluates_after(self, epoch: int) -> bool:
        """Test whether to evaluate after so many epochs: every E // evaluations, and the last."""
        every = max(1, self.epochs // self.evaluations)
        return epoch % every == 0 or epoch == self.epochs


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
    student: str,
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
        with compilation(compile_mode):
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
        note="; ".join(filter(None, (note, precision_note(device)))),
    )


def train_epoch(
    trainer: Trainer, train: EpochSource, protocol: Protocol, *, seed: int, epoch: int
) -> None:
    """Train for one epoch; all draws follow from seed and epoch."""
    draws, device = generator_for(seed, epoch), trainer.device
    layout = memory_format_for(protocol.norm, device)
    dropout_seed = derived_seed(derived_seed(seed, epoch), Stream.DROPOUT) % 2**63
    order = BatchOrder(batch=protocol.batch, epoch=epoch, seed=seed, shuffle=True)
    with seeded_torch(dropout_seed, device):
        for batch in train.epoch(order):
            images = batch.images.to(device, non_blocking=True)
            labels = batch.labels.to(device, non_blocking=True)
            with trainer.whole_batches.of(images):
                inputs, loss = protocol.training_batch(images, labels, draws)
            trainer.step(inputs.contiguous(memory_format=layout), loss)


def _evaluation_batches(val: EpochSource, protocol: Protocol, device: torch.device) -> Examples:
    layout = memory_format_for(protocol.norm, device)
    for batch in val.epoch(BatchOrder(batch=EVALUATION_BATCH)):
        inputs = protocol.evaluation_inputs(batch.images.to(device, non_blocking=True))
        labels = batch.labels.to(device, non_blocking=True)
        yield inputs.contiguous(memory_format=layout), labels, batch.ids
