"""Training of a proxy whose logits are scored on the way: epochs, checks, checkpoints."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.ledger import Stopwatch
from coreset.engine.runtime.device import give_back_memory
from coreset.engine.runtime.progress import Progress, progress
from coreset.engine.runtime.signals import Stop, defer_signals
from coreset.engine.scoring.accumulators import ACCUMULATORS, Accumulator, TrainingContext
from coreset.engine.training.trainer import DivergedError, Trainer
from coreset.kernels.dynamics import WINDOW_EPOCHS, Dynamics
from coreset.kernels.logits import NonFiniteGuard, loss_of_folds
from coreset.shards.errors import DataError
from coreset.shards.format.files import json_bytes, write_atomically

COMMIT_EVERY_SECONDS = 30.0  # at ends of epochs, at least
COMMIT_WITHIN_SECONDS = 300.0  # within an epoch, at least
BATCHES_PER_VOTE = 32  # of several processes on whether to stop: a vote waits for all of them
HOPELESS = 20  # times the loss of guessing, from which a training counts as diverged
MOST_NAMED = 5
STATE_NAME = "state.json"


class ScoringRun:
    """Training of a proxy that scores every sample and can be continued after any batch."""

    def __init__(self, context: TrainingContext, trainer: Trainer) -> None:
        """Continue from the last checkpoint in the scratch directory, or start."""
        self.setup, self.proxy, self.meter = context.setup, context.proxy, context.meter
        self.scratch, self.ranks = context.scratch, context.setup.ranks
        self.n, self.n_classes = len(self.setup.dataset), self.setup.n_classes
        recipe = self.setup.recipe
        self.epochs, self.batch = recipe.epochs, recipe.batch
        self.ended_epochs, self.done_batches = 0, 0
        self.trainer = trainer
        self._dynamics = Dynamics(
            self.n,
            self.setup.device,
            el2n_epochs=min(self.setup.options.el2n_epochs, recipe.epochs),
            window=min(WINDOW_EPOCHS, recipe.epochs),
            compiled=self.setup.compiles_scores,
            all_reduce=self.ranks.all_reduce,
            is_main=self.ranks.is_main,
        )
        made = {name: make(context) for name, make in ACCUMULATORS.items()}
        self._others = {name: other for name, other in made.items() if other is not None}
        self._all: dict[str, Dynamics | Accumulator] = {"dynamics": self._dynamics, **self._others}
        self._guard = NonFiniteGuard(self.batch, self.setup.device)
        self._losses = 0.0
        self._since_commit = Stopwatch()
        self._resume()

    def _resume(self) -> None:
        newest = Checkpoints(self.scratch).latest()
        if newest is None:
            return
        directory = newest[1]
        state = json.loads((directory / STATE_NAME).read_bytes())
        self.ended_epochs, self.done_batches = state["epoch"], state["batch"]
        self.trainer.load(directory, state["steps"])
        for name, accumulator in self._all.items():
            saved = load_file(directory / f"{name}.safetensors")
            accumulator.load_state(saved, self.ended_epochs)
        self.proxy.undecodable.update({int(n): why for n, why in state["undecodable"].items()})

    def train(self) -> dict[str, NDArray[Any]]:
        """Train to the end and commit; return all columns, of which the main process's count.

        Raises:
            InterruptedRunError: A signal asked to stop; everything so far is committed.
            DataError: The training diverged, or samples were not seen once per epoch.
        """
        with defer_signals() as stop, progress("score", self.epochs * self.n) as bar:
            bar.resume(min(self.epochs * self.n, self.ended_epochs * self.n + self._done_images))
            while self.ended_epochs < self.epochs:
                self._epoch(stop, bar)
                stopping = any(self.ranks.gather(stop.by))
                # The last epoch is committed too: an evaluation follows.
                last = self.ended_epochs == self.epochs
                if last or stopping or self._since_commit.seconds >= COMMIT_EVERY_SECONDS:
                    self._commit()
                if stopping:
                    raise stop.error()
        columns: dict[str, NDArray[Any]] = {}
        for accumulator in self._all.values():
            columns |= accumulator.scores()
        return columns

    @property
    def _done_images(self) -> int:
        """Trained images of the epoch under way, of all processes."""
        return min(self.n, self.done_batches * self.batch * self.ranks.world)

    def _epoch(self, stop: Stop, bar: Progress) -> None:
        epoch = self.ended_epochs
        for accumulator in self._all.values():
            accumulator.begin_epoch(epoch)
        self._losses = self._dynamics.total_loss() if self.done_batches == 0 else math.nan
        for inputs, labels, ids in self.proxy.examples(epoch, self.done_batches):
            before = self._done_images
            self._step(inputs, labels, ids)
            self.done_batches += 1
            self.meter.images += len(ids)
            bar.advance(self._done_images - before, epoch=f"{epoch + 1} of {self.epochs}")
            if self._has_to_commit(stop):
                self._commit_midway(stop)
        self.ranks.run_on_all(self._check_losses)
        for accumulator in self._all.values():
            accumulator.end_epoch(epoch)
        self.ended_epochs, self.done_batches = epoch + 1, 0
        self.share_undecodable()
        self.ranks.run_on_main(self._check_epoch)

    def _step(self, inputs: Tensor, labels: Tensor, ids: Tensor) -> None:
        logits = self.trainer.step(inputs, self._loss_of(labels, ids))[:, : self.n_classes]
        stats = self._dynamics.update(logits, labels, ids)
        for accumulator in self._others.values():
            accumulator.update(logits, labels, ids, stats)
        self._guard.check(stats.loss, ids, self.done_batches)

    def _loss_of(self, labels: Tensor, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the loss: mean cross-entropy over the batches of all processes.

        Gradients are averaged over processes, whose last batches may differ in size, down to a row
        of padding (label -1). Classifiers of folds share no weights, so their losses are added up.
        """
        together = self.batch * self.ranks.world
        rows = min(together, self.n - self.done_batches * together) / self.ranks.world

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
        all_done = self._done_images == self.n  # the end of the epoch commits
        if all_done or (self.ranks.world > 1 and self.done_batches % BATCHES_PER_VOTE):
            return False
        overdue = self._since_commit.seconds >= COMMIT_WITHIN_SECONDS
        return any(self.ranks.gather(stop.by or (self.ranks.is_main and overdue)))

    def _commit_midway(self, stop: Stop) -> None:
        self.ranks.run_on_all(self._check_losses)
        self._dynamics.collect(self.ended_epochs)
        self.share_undecodable()
        self._commit()
        if any(self.ranks.gather(stop.by)):
            raise stop.error()

    def _check_losses(self) -> None:
        """Refuse a loss that is not finite; every rank checks its own."""
        if (first := self._guard.first()) is not None:
            batch, samples = first
            some = ", ".join(map(str, samples[:MOST_NAMED]))
            more = f" and {len(samples) - MOST_NAMED} more" if len(samples) > MOST_NAMED else ""
            where = f"epoch {self.ended_epochs + 1}, batch {batch + 1}"
            raise DivergedError(
                f"the loss of samples {some}{more} is not finite in {where}: the training "
                "diverged; use a smaller --lr"
            )

    def _check_epoch(self) -> None:
        """Refuse an epoch that missed a sample or learned nothing; the main process knows."""
        missed = self._dynamics.visits() != self.ended_epochs
        missed[list(self.proxy.undecodable)] = False
        if missed.any():
            raise DataError(
                f"{int(missed.sum())} images were not seen once per epoch, sample "
                f"{int(missed.argmax())} the first; run `coreset verify` first"
            )
        loss = (self._dynamics.total_loss() - self._losses) / self.n
        chance = math.log(self.n_classes)
        # Guessing costs log(classes). A first epoch may be a few times worse, and mend.
        if self.ended_epochs > 1 and loss > HOPELESS * chance:
            raise DivergedError(
                f"the mean loss of epoch {self.ended_epochs} is {loss:.3g}, guessing costs "
                f"{chance:.3g}: the training diverged; use a smaller --lr"
            )

    def share_undecodable(self) -> None:
        """Tell every process which samples any of them could not decode."""
        for reasons in self.ranks.gather(self.proxy.undecodable):
            self.proxy.undecodable.update(reasons)

    @property
    def undecodable(self) -> dict[str, str]:
        """Samples that could not be decoded, as JSON names them."""
        return {str(sample): reason for sample, reason in self.proxy.undecodable.items()}

    def _commit(self) -> None:
        if self.ranks.is_main:
            give_back_memory()  # of the batches; safetensors copies everything first
            Checkpoints(self.scratch).commit(self.trainer.steps, self._write_state)
            give_back_memory()
            self.meter.checkpoint(self.scratch)
        self._since_commit = Stopwatch()

    def _write_state(self, directory: Path) -> None:
        self.trainer.save(directory)
        for name, accumulator in self._all.items():
            save_file(accumulator.state(), directory / f"{name}.safetensors")
        state: dict[str, Any] = {"epoch": self.ended_epochs, "batch": self.done_batches}
        state |= {"steps": self.trainer.steps, "undecodable": self.undecodable}
        write_atomically(directory / STATE_NAME, json_bytes(state))
