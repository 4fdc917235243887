"""What a student in training has come to, epoch by epoch."""

from dataclasses import dataclass, field, replace

from coreset.engine.training.trainer import Accuracy


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch of a training."""

    epoch: int
    """Epochs done after it."""
    loss: float
    """Mean over the images."""
    lr: float
    """Learning rate of its last step."""
    top1: float | None = None
    """Percent of the validation images; None: not evaluated."""


@dataclass(frozen=True, slots=True)
class History:
    """What a student has come to so far; accuracies in percent of the validation images."""

    best: Accuracy = field(default_factory=lambda: Accuracy(0.0, 0.0))
    epoch_best: int = 0
    last: Accuracy = field(default_factory=lambda: Accuracy(0.0, 0.0))
    steps: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    curve: tuple[EpochRecord, ...] = ()

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.curve)

    def after(self, record: EpochRecord, accuracy: Accuracy | None, **counted: float) -> "History":
        """Add an epoch, and its evaluation if there was one; the first of equals stays the best."""
        done = replace(self, curve=(*self.curve, record), **counted)  # pyright: ignore[reportArgumentType] - steps is whole
        if accuracy is None:
            return done
        if self.epoch_best and accuracy.top1 <= self.best.top1:
            return replace(done, last=accuracy)
        return replace(done, last=accuracy, best=accuracy, epoch_best=record.epoch)
