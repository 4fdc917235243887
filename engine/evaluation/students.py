"""Training of one student under an evaluation protocol."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from coreset.engine.artifacts.ledger import Stopwatch, stopwatch
from coreset.engine.data.images import EpochSource
from coreset.engine.data.order import BatchOrder
from coreset.engine.evaluation.protocols.base import Protocol
from coreset.engine.models.networks import StudentName, build_network, memory_format_for, placed
from coreset.engine.runtime.seeding import generator_for
from coreset.engine.training.trainer import (
    Accuracy,
    CompileMode,
    Examples,
    Trainer,
    compile_where_it_pays,
    evaluate,
)

EVALUATION_BATCH = 256


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
    """Line for people on how the network was compiled, or nothing."""


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
    """Train one student from scratch on the condensed set ``train`` and evaluate it on ``val``.

    ``on_epoch`` is called with the number of finished epochs and the best top-1 so far.
    """
    layout = memory_format_for(protocol.norm, device)
    network = build_network(student, protocol.n_classes, norm=protocol.norm, seed=seed)
    network = placed(network, device, layout)
    schedule = protocol.schedule(-(-len(train) // protocol.batch))
    trainer = Trainer(network, protocol.optimiser(network), schedule, device)
    passes = protocol.epochs * len(train)
    note = compile_where_it_pays(
        network, compile_mode, device, image_passes=passes, size=protocol.size
    )
    best, last, evaluating = 0.0, Accuracy(0.0, 0.0), 0.0
    whole = stopwatch()
    for epoch in range(protocol.epochs):
        train_epoch(trainer, train, protocol, layout, seed=seed, epoch=epoch)
        if protocol.evaluates_after(epoch + 1):
            if device.type == "cuda":  # training steps still queued are not evaluation
                torch.cuda.synchronize(device)
            watch: Stopwatch = stopwatch()
            last = evaluate(network, _evaluation_batches(val, protocol, layout, device), device)
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


def train_epoch(
    trainer: Trainer,
    train: EpochSource,
    protocol: Protocol,
    layout: torch.memory_format,
    *,
    seed: int,
    epoch: int,
) -> None:
    """Train for one epoch; all draws follow from seed and epoch."""
    draws = generator_for(seed, epoch)
    order = BatchOrder(batch=protocol.batch, epoch=epoch, seed=seed, shuffle=True)
    for batch in train.epoch(order):
        images = batch.images.to(trainer.device, non_blocking=True)
        labels = batch.labels.to(trainer.device, non_blocking=True)
        inputs, loss = protocol.training_batch(images, labels, draws)
        trainer.step(inputs.contiguous(memory_format=layout), loss)


def _evaluation_batches(
    val: EpochSource, protocol: Protocol, layout: torch.memory_format, device: torch.device
) -> Examples:
    for batch in val.epoch(BatchOrder(batch=EVALUATION_BATCH)):
        inputs = protocol.evaluation_inputs(batch.images.to(device, non_blocking=True))
        labels = batch.labels.to(device, non_blocking=True)
        yield inputs.contiguous(memory_format=layout), labels, batch.ids
