"""The one loop that trains a student under a protocol, evaluates it, and continues it.

Everything that is drawn follows from seed and epoch, so a student that is continued after any epoch
becomes, with deterministic kernels, the same to the bit.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.ledger import Stopwatch
from coreset.engine.data.images import EpochSource
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.whole_images import WholeImages
from coreset.engine.evaluation.history import EpochRecord, History
from coreset.engine.evaluation.protocols.base import Protocol
from coreset.engine.evaluation.soft_labels import SoftLabels
from coreset.engine.models.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_network,
    memory_format_for,
    placed,
)
from coreset.engine.runtime.device import generator_for, has_fast_bfloat16, seeded_torch
from coreset.engine.runtime.signals import Stop, defer_signals
from coreset.engine.training.averaging import AveragedWeights
from coreset.engine.training.compilation import CompileMode, compilation, compile_where_it_pays
from coreset.engine.training.trainer import (
    Accuracy,
    DivergedError,
    Examples,
    Trainer,
    evaluate,
    save_tensors,
)
from coreset.kernels.augment import normalised
from coreset.kernels.seeds import Stream, derived_seed
from coreset.shards.errors import StoreError
from coreset.shards.format.files import build, json_bytes, parse, write_atomically

EVALUATION_BATCH = 256
CHECKPOINT_SECONDS = 300.0
AVERAGED_NAME, HISTORY_NAME = "averaged.safetensors", "history.json"


class Images(NamedTuple):
    """What a student is trained on, what it is evaluated on, and labels of teachers, if any."""

    train: EpochSource | WholeImages
    val: EpochSource | None
    """None: the protocol evaluates after no epoch."""
    labels: SoftLabels | None = None


class Student:
    """One student in training."""

    def __init__(
        self,
        images: Images,
        protocol: Protocol,
        name: str,
        *,
        seed: int,
        device: torch.device,
        compile_mode: CompileMode = "auto",
    ) -> None:
        """Initialise it from scratch."""
        self.images = images
        self.protocol = protocol
        self.seed = seed
        self.compile_mode: CompileMode = compile_mode
        network = build_network(name, protocol.n_classes, norm=protocol.norm, seed=seed)
        network = protocol.prepared(network)
        self.layout = memory_format_for(protocol.norm, device)
        network = placed(network, device, self.layout)
        passes = protocol.epochs * len(images.train)
        note = compile_where_it_pays(
            network, compile_mode, device, image_passes=passes, size=protocol.size
        )
        half = protocol.precision == "bfloat16"
        self.note = "; ".join(filter(None, (note, _slowness(device) if half else "")))
        schedule = protocol.schedule(-(-len(images.train) // protocol.batch))
        optimiser = protocol.optimiser(network)
        self.trainer = Trainer(network, optimiser, schedule, device, half=half)
        kept = protocol.averaging
        self.averaged = None if kept is None else AveragedWeights(network, kept)
        self.history = History()
        self.resumed_epochs = 0  # those that an interrupted run did

    def train(
        self,
        scratch: Path | None = None,
        on_epoch: Callable[[History], object] = lambda _: None,
    ) -> History:
        """Train to the end, from the newest checkpoint in ``scratch`` on, and return the history.

        Raises:
            DivergedError: A loss is not finite; checkpoints stay as they were before.
            InterruptedRunError: By a signal, after a checkpoint.

        """
        checkpoints = Checkpoints(scratch) if scratch else None
        if checkpoints and (newest := checkpoints.latest()):
            self._load(newest[1])
            self.resumed_epochs = self.history.epochs
            on_epoch(self.history)
        since = Stopwatch()
        with defer_signals() as stop, compilation(self.compile_mode):
            while self.history.epochs < self.protocol.epochs:
                self._epoch()
                on_epoch(self.history)
                if checkpoints and self._is_due(since, stop):
                    checkpoints.commit(self.history.epochs, self._save)
                    since = Stopwatch()
                if stop.by:
                    raise stop.error()
        return self.history

    def _is_due(self, since: Stopwatch, stop: Stop) -> bool:
        unfinished = self.history.epochs < self.protocol.epochs
        return bool(stop.by) or (unfinished and since.seconds >= CHECKPOINT_SECONDS)

    def _epoch(self) -> None:
        epoch, watch, evaluated, seconds = self.history.epochs, Stopwatch(), None, 0.0
        loss = self.train_epoch(epoch)
        if self.protocol.evaluates_after(epoch + 1):
            if self.trainer.device.type == "cuda":  # steps still queued are not evaluation
                torch.cuda.synchronize(self.trainer.device)
            evaluation = Stopwatch()
            evaluated = self.evaluate()
            seconds = evaluation.seconds
        top1 = None if evaluated is None else evaluated.top1
        self.history = self.history.after(
            EpochRecord(epoch + 1, loss, self.trainer.schedule(self.trainer.steps - 1), top1),
            evaluated,
            steps=self.trainer.steps,
            train_seconds=self.history.train_seconds + watch.seconds - seconds,
            evaluation_seconds=self.history.evaluation_seconds + seconds,
        )

    def train_epoch(self, epoch: int) -> float:
        """Train for one epoch and return its mean loss."""
        protocol, trainer, device = self.protocol, self.trainer, self.trainer.device
        draws = generator_for(self.seed, epoch)
        dropout_seed = derived_seed(derived_seed(self.seed, epoch), Stream.DROPOUT) % 2**63
        losses: list[Tensor] = []
        order = BatchOrder(
            batch=protocol.batch, epoch=epoch, seed=self.seed, shuffle=True, crops=protocol.crops
        )
        labels_of = self.images.labels
        labelling = labels_of.of_epoch(epoch, self.seed) if labels_of else nullcontext(_no_labels)
        with seeded_torch(dropout_seed, device), labelling as labeller:
            for batch in self.images.train.epoch(order):
                images = batch.images.to(device, non_blocking=True)
                labels = batch.labels.to(device, non_blocking=True)
                with trainer.whole_batches.of(images):
                    inputs, loss = protocol.training_batch(images, labels, draws, labeller)
                trainer.step(inputs.contiguous(memory_format=self.layout), loss)
                if self.averaged is not None:
                    self.averaged.update(trainer.network)
                losses.append(trainer.last_loss * len(labels))
            return _mean_loss(losses, epoch, len(self.images.train))

    def evaluate(self) -> Accuracy:
        """Evaluate the student, or its averaged weights, on the validation images."""
        network, device, val = self.trainer.network, self.trainer.device, self.images.val
        if val is None:
            raise AssertionError("a protocol without evaluations asks for none")
        with self.averaged.in_place(network) if self.averaged else nullcontext():
            return evaluate(network, self._examples(val), device, half=self.trainer.half)

    def _examples(self, val: EpochSource) -> Examples:
        device = self.trainer.device
        for batch in val.epoch(BatchOrder(batch=EVALUATION_BATCH)):
            images = batch.images.to(device, non_blocking=True)
            inputs = normalised(images, IMAGENET_MEAN, IMAGENET_STD)
            labels = batch.labels.to(device, non_blocking=True)
            yield inputs.contiguous(memory_format=self.layout), labels, batch.ids

    def _save(self, directory: Path) -> None:
        self.trainer.save(directory)
        if self.averaged is not None:
            save_tensors(self.averaged.weights, directory / AVERAGED_NAME)
        write_atomically(directory / HISTORY_NAME, json_bytes(asdict(self.history)))

    def _load(self, directory: Path) -> None:
        try:
            history = build(History, parse((directory / HISTORY_NAME).read_bytes()))
        except (OSError, ValueError) as error:
            remedy = f"remove {directory.parent}, run again"
            raise StoreError(f"{directory} cannot be read ({error}); {remedy}") from error
        self.trainer.load(directory, history.steps)
        if self.averaged is not None:
            self.averaged.load(load_file(directory / AVERAGED_NAME))
        self.history = history


def _no_labels(_images: Tensor) -> Tensor:
    raise AssertionError("a protocol of hard labels asks no teacher")


def _mean_loss(losses: list[Tensor], epoch: int, n: int) -> float:
    """Average losses of batches, each times its images; refuse one that is not finite."""
    sums = torch.stack(losses).cpu()
    if not (finite := sums.isfinite()).all():
        step = int(finite.long().argmin()) + 1
        raise DivergedError(
            f"the loss is {sums[step - 1].item()} in epoch {epoch + 1}, step {step} of "
            f"{len(losses)}: the training diverged; try --precision fp32, or another --size"
        )
    return float(sums.sum()) / n


def _slowness(device: torch.device) -> str:
    fast = has_fast_bfloat16(device)
    return "" if fast else f"this {device.type} emulates bfloat16: --precision fp32 may be faster"
