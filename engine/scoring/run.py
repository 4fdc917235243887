"""Training of a proxy whose logits are scored on the way: epochs, checks, checkpoints."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.ledger import Meter, Stopwatch, stopwatch
from coreset.engine.runtime.device import half_precision
from coreset.engine.runtime.distributed import ALONE, Distributed
from coreset.engine.runtime.progress import Progress, progress
from coreset.engine.runtime.signals import Stop, defer_signals
from coreset.engine.scoring.accumulators import Accumulator, EpochState, ScoredBatch
from coreset.engine.scoring.checkpoint import (
    PREDICTED,
    Position,
    accumulator_state,
    commit,
    last_commit,
)
from coreset.engine.scoring.proxy import Proxy
from coreset.engine.training.trainer import Trainer
from coreset.kernels.dynamics import Dynamics
from coreset.kernels.logits import NonFiniteGuard, loss_of_folds, per_sample_stats
from coreset.shards.errors import DataError

COMMIT_EVERY_SECONDS = 30.0
"""Between checkpoints at ends of epochs, at least."""
COMMIT_WITHIN_SECONDS = 300.0
"""Between checkpoints within an epoch, at least."""
BATCHES_PER_VOTE = 32
"""Several processes agree this often whether to stop: a vote waits for all of them."""
HOPELESS = 20
"""Times the loss of guessing, from which a training counts as diverged."""
MOST_NAMED = 5


class DivergedError(DataError):
    """A training that diverged: the same configuration would diverge again."""


@dataclass(slots=True, kw_only=True)
class ScoringRun:
    """Training of a proxy that scores every sample and can be continued after any batch."""

    proxy: Proxy
    trainer: Trainer
    dynamics: Dynamics
    """Gives the statistics of each batch to all accumulators, and visits and loss to the checks."""
    accumulators: Mapping[str, Accumulator] = field(default_factory=dict[str, Accumulator])
    """All others, by the name of their file in a checkpoint."""
    epochs: int
    batch: int
    """Images per step and process."""
    n_classes: int
    scratch: Path
    meter: Meter
    ranks: Distributed = ALONE
    position: Position = field(default_factory=Position)
    _guard: NonFiniteGuard = field(init=False)
    _losses: float = 0.0
    _since_commit: Stopwatch = field(default_factory=stopwatch)

    def __post_init__(self) -> None:
        self._guard = NonFiniteGuard(self.batch, self.trainer.device)

    def scores(self) -> dict[str, NDArray[Any]]:
        """Return all columns of the run at its end, shape (n,); those of the main process count."""
        columns: dict[str, NDArray[Any]] = {}
        for accumulator in self._all.values():
            columns |= accumulator.scores()
        return columns

    @property
    def _all(self) -> dict[str, EpochState]:
        return {"dynamics": self.dynamics, **self.accumulators}

    @property
    def n(self) -> int:
        """Samples."""
        return self.dynamics.n_samples

    def resume(self) -> None:
        """Load the last checkpoint, if there is any."""
        newest = last_commit(self.scratch)
        if newest is None:
            return
        self.position, directory = newest
        self.trainer.load(directory, self.position.steps)
        for name, accumulator in self._all.items():
            accumulator.load_state(accumulator_state(directory, name), self.position.epoch)
        self.proxy.undecodable.update(self.position.undecodable)

    def run(self) -> None:
        """Train from the current position to the end; the last state is committed.

        Raises:
            InterruptedRunError: A signal asked to stop; everything so far is committed.
            DataError: The training diverged, or samples were not seen once per epoch.
        """
        with defer_signals() as stop, progress("score", self.epochs * self.n) as bar:
            bar.resume(min(self.epochs * self.n, self.position.epoch * self.n + self._done))
            while self.position.epoch < self.epochs:
                self._epoch(stop, bar)
                stopping = self.ranks.any(stop.asked)
                # The last epoch is committed too: an evaluation follows.
                last = self.position.epoch == self.epochs
                if last or stopping or self._since_commit.seconds >= COMMIT_EVERY_SECONDS:
                    self._commit()
                if stopping:
                    raise stop.error()

    @property
    def _done(self) -> int:
        """Trained images of the epoch under way, of all processes."""
        return min(self.n, self.position.batch * self.batch * self.ranks.world)

    def _epoch(self, stop: Stop, bar: Progress) -> None:
        epoch = self.position.epoch
        for accumulator in self._all.values():
            accumulator.begin_epoch(epoch)
        self._losses = self.dynamics.total_loss() if self.position.batch == 0 else math.nan
        shown = f"{epoch + 1} of {self.epochs}"
        for inputs, labels, ids in self.proxy.examples(epoch, self.position.batch):
            before = self._done
            self._step(inputs, labels, ids)
            self.position.batch += 1
            self.meter.images += len(ids)
            bar.advance(self._done - before, epoch=shown)
            if self._has_to_commit(stop):
                self._commit_midway(stop)
        self._end_epoch()

    def _step(self, inputs: Tensor, labels: Tensor, ids: Tensor) -> None:
        logits = self.trainer.step(inputs, self._loss_of(labels, ids))[:, : self.n_classes]
        stats = self.dynamics.update(logits, labels, ids)
        batch = ScoredBatch(logits, labels, ids, stats)
        for accumulator in self.accumulators.values():
            accumulator.update(batch)
        self._guard.check(stats.loss, ids, self.position.batch)

    def _loss_of(self, labels: Tensor, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the loss: mean cross-entropy over the batches of all processes.

        Gradients are averaged over processes, whose last batches may differ in size, down to one
        row of padding (label -1), which counts for nothing. Classifiers of folds share no weights,
        so their losses are added up: each trains as if alone.
        """
        together = self.batch * self.ranks.world
        rows = min(together, self.n - self.position.batch * together) / self.ranks.world

        def mean_loss(logits: Tensor) -> Tensor:
            if self.ranks.world == 1:
                return cross_entropy(logits, labels)
            return cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / rows

        folds = self.proxy.folds
        if folds is None:
            return mean_loss

        def with_folds(logits: Tensor) -> Tensor:
            by_classifier = logits.unflatten(1, (-1, self.n_classes))
            of_folds = loss_of_folds(by_classifier[:, 1:], labels, folds.of_samples[ids])
            return mean_loss(by_classifier[:, 0]) + of_folds / rows

        return with_folds

    def _has_to_commit(self, stop: Stop) -> bool:
        all_done = self._done == self.n  # the end of the epoch commits
        if all_done or (self.ranks.world > 1 and self.position.batch % BATCHES_PER_VOTE):
            return False
        overdue = self._since_commit.seconds >= COMMIT_WITHIN_SECONDS
        return self.ranks.any(stop.asked or (self.ranks.is_main and overdue))

    def _commit_midway(self, stop: Stop) -> None:
        self.ranks.run_on_all(self._check_losses)
        self.dynamics.collect(self.position.epoch)
        self.share_undecodable()
        self._commit()
        if self.ranks.any(stop.asked):
            raise stop.error()

    def _end_epoch(self) -> None:
        epoch = self.position.epoch
        self.ranks.run_on_all(self._check_losses)
        for accumulator in self._all.values():
            accumulator.end_epoch(epoch)
        self.position.epoch, self.position.batch = epoch + 1, 0
        self.share_undecodable()
        self.ranks.run_on_all(self._check_epoch)

    def _check_losses(self) -> int:
        """Refuse a loss that is not finite; every rank checks its own."""
        first = self._guard.first()
        if first is not None:
            batch, samples = first
            some = ", ".join(map(str, samples[:MOST_NAMED]))
            more = f" and {len(samples) - MOST_NAMED} more" if len(samples) > MOST_NAMED else ""
            raise DivergedError(
                f"the loss of samples {some}{more} is not finite in epoch "
                f"{self.position.epoch + 1}, batch {batch + 1}: the training diverged; "
                "use a smaller --lr"
            )
        return 0

    def _check_epoch(self) -> int:
        """Refuse an epoch that missed a sample or learned nothing; the main process knows."""
        if not self.ranks.is_main:
            return 0
        missed = self.dynamics.visits() != self.position.epoch
        missed[list(self.proxy.undecodable)] = False
        if missed.any():
            raise DataError(
                f"{int(missed.sum())} images were not seen once per epoch, sample "
                f"{int(missed.argmax())} the first; run `coreset verify` first"
            )
        loss = (self.dynamics.total_loss() - self._losses) / self.n
        chance = math.log(self.n_classes)
        # Guessing costs log(classes). A first epoch may be a few times worse, and mend.
        if self.position.epoch > 1 and loss > HOPELESS * chance:
            raise DivergedError(
                f"the mean loss of epoch {self.position.epoch} is {loss:.3g}, guessing costs "
                f"{chance:.3g}: the training diverged; use a smaller --lr"
            )
        return 0

    def share_undecodable(self) -> None:
        """Tell every process which samples any of them could not decode."""
        lost = self.proxy.undecodable
        for text in self.ranks.all_gather_text(dumps(lost)):
            lost.update({int(sample): reason for sample, reason in loads(text).items()})
        self.position.undecodable = dict(lost)

    def _commit(self) -> None:
        self.position.steps = self.trainer.steps
        if self.ranks.is_main:
            states = {name: accumulator.state() for name, accumulator in self._all.items()}
            commit(self.scratch, self.position, self.trainer, states)
            self.meter.checkpoint(self.scratch)
        self._since_commit = stopwatch()


@torch.inference_mode()
def final_scores(
    proxy: Proxy, trainer: Trainer, n: int, *, n_classes: int, ranks: Distributed, meter: Meter
) -> dict[str, NDArray[np.float32] | NDArray[np.int32]]:
    """Evaluate the proxy on all images without augmentation.

    CCS takes loss and entropy so (``generate_importance_score.py``), with 1e-10 added to the
    probabilities inside the logarithm and, for CIFAR, without the normalisation that it trained
    with; here the images are what training saw, less the augmentation, and nothing is added.

    Args:
        proxy: What was trained.
        trainer: Its network and device.
        n: Samples of the data set.
        n_classes: Its classes.
        ranks: The processes that share the images; all get all results.
        meter: Counts the images.

    Returns:
        ``loss_final`` and ``entropy_final`` in nats, float32 of shape (n,), NaN for samples that
        could not be decoded, and ``predicted``, the class of the largest logit, int32, -1 for them.
    """
    # Zero where another process sees the sample.
    columns = torch.zeros((n, 4), device=trainer.device)
    trainer.network.eval()
    with progress("score, final", n) as bar:
        for inputs, labels, ids in proxy.originals():
            with half_precision(trainer.device):
                logits = trainer.network(inputs)[:, :n_classes].float()
            stats, predicted = per_sample_stats(logits, labels), logits.argmax(1).float()
            seen = torch.ones_like(stats.loss)
            columns[ids] = torch.stack((seen, stats.loss, stats.entropy, predicted), dim=1)
            meter.images += len(ids)
            bar.advance(min(len(ids) * ranks.world, n - bar.done))
    ranks.all_reduce(columns)
    seen, loss, entropy, predicted = columns.cpu().numpy().T
    absent = np.where(seen > 0, np.float32(0), np.float32(np.nan))
    return {
        "loss_final": loss + absent,
        "entropy_final": entropy + absent,
        PREDICTED: np.where(seen > 0, predicted, -1).astype(np.int32),
    }
