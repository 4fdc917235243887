"""Accumulators: what a scoring gathers from the logits of every training step.

To add one, write a class with the methods of `Accumulator` and name it in `ACCUMULATORS`; describe
the scores that it returns in ``coreset.kernels.scores.SCORES``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.store import ROWS_PER_SCORE_CHUNK, RowWriter
from coreset.engine.runtime.progress import progress
from coreset.engine.scoring.proxy import Folds, Proxy
from coreset.engine.scoring.score_table import ISSUE_OOF, PREDICTED_OOF
from coreset.engine.scoring.setup import Setup
from coreset.kernels.logits import SampleStats, class_thresholds, label_issues, per_sample_stats
from coreset.kernels.tdds import WINDOW_EPOCHS, Tdds

MARGINS_NAME = "margins.zarr"
"""In a scores artifact, if it was asked for: float16 of shape (epochs, n)."""


class Accumulator(Protocol):
    """Per-sample state that a training builds up epoch by epoch and a checkpoint keeps."""

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, or for what is left of it after a resume."""

    def update(self, logits: Tensor, labels: Tensor, ids: Tensor, stats: SampleStats, /) -> None:
        """Take in one batch: logits (b, c) before the update of the weights, ids -1 for padding."""

    def end_epoch(self, epoch: int, /) -> None:
        """Fold the epoch in."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint keeps, on the CPU."""
        ...

    def load_state(self, state: Mapping[str, Tensor], epochs: int, /) -> None:
        """Continue from a `state` after ``epochs`` ended epochs."""

    def scores(self) -> Mapping[str, NDArray[Any]]:
        """Return columns of shape (n,) by name, once the training has ended."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingContext:
    """Facts of a training that accumulators are made from."""

    setup: Setup
    proxy: Proxy
    scratch: Path
    meter: Meter


class MarginRecord(Accumulator):
    """The probability margin of every sample in every epoch, NaN where it was not presented."""

    def __init__(self, context: TrainingContext) -> None:
        setup, path = context.setup, context.scratch / MARGINS_NAME
        n, epochs = len(setup.dataset), setup.recipe.epochs
        chunks = (1, min(ROWS_PER_SCORE_CHUNK, n))
        self._store = RowWriter(
            path, epochs, n, {}, name="margins", chunks=chunks, resume=path.exists()
        )
        self._margins = torch.full((n,), torch.nan, dtype=torch.float16, device=setup.device)

    def update(self, _logits: Tensor, _labels: Tensor, ids: Tensor, stats: SampleStats) -> None:
        """Keep the margins of a batch."""
        self._margins[ids] = stats.probability_margin.half()

    def end_epoch(self, epoch: int) -> None:
        """Write the epoch's row."""
        self._store.write(epoch, self._margins.cpu().numpy()[None])
        self._margins.fill_(torch.nan)

    def state(self) -> dict[str, Tensor]:
        """Return the margins of the epoch under way."""
        return {"margins": self._margins.to("cpu", copy=True)}

    def load_state(self, state: Mapping[str, Tensor], _epochs: int) -> None:
        """Continue the epoch under way."""
        self._margins.copy_(state["margins"])


class TddsScore:
    """`coreset.kernels.tdds.Tdds` as an `Accumulator`."""

    def __init__(self, context: TrainingContext) -> None:
        setup = context.setup
        tdds = self._tdds = Tdds(
            len(setup.dataset),
            setup.n_classes,
            setup.device,
            window=min(WINDOW_EPOCHS, setup.recipe.epochs),
            compiled=setup.compiles_scores,
        )
        self.begin_epoch, self.end_epoch = tdds.begin_epoch, tdds.end_epoch
        self.state, self.load_state, self.scores = tdds.state, tdds.load_state, tdds.scores

    def update(self, logits: Tensor, _labels: Tensor, ids: Tensor, _stats: SampleStats) -> None:
        """Take in one batch."""
        self._tdds.update(logits, ids)


class OutOfFold(Accumulator):
    """Scores of samples by classifiers that have not trained on them.

    They are of the epoch with the lowest loss of held-out labels: later, wrong ones are memorised.
    """

    def __init__(self, context: TrainingContext, folds: Folds) -> None:
        self._context, self._folds = context, folds
        self._n_classes = context.setup.n_classes
        weights = folds.classifiers.state_dict()
        self._best = {name: tensor.clone() for name, tensor in weights.items()}
        self._lowest = torch.tensor(torch.inf, dtype=torch.float64)

    @torch.inference_mode()
    def end_epoch(self, _epoch: int) -> None:
        """Keep the classifiers if the loss of held-out labels is the lowest so far."""
        loss = torch.zeros(1, dtype=torch.float64, device=self._folds.of_samples.device)
        for logits, labels, _ in self._held_out():
            loss += cross_entropy(logits, labels, reduction="sum")
        self._context.setup.ranks.all_reduce(loss)
        if loss.cpu()[0] < self._lowest:
            self._lowest = loss.cpu()[0]
            for name, tensor in self._folds.classifiers.state_dict().items():
                self._best[name].copy_(tensor)

    def state(self) -> dict[str, Tensor]:
        """Return the classifiers that were kept, and their loss."""
        return {name: tensor.cpu() for name, tensor in self._best.items()} | {"loss": self._lowest}

    def load_state(self, state: Mapping[str, Tensor], _epochs: int) -> None:
        """Continue from a commit."""
        self._lowest = state["loss"]
        for name, tensor in self._best.items():
            tensor.copy_(state[name])

    @torch.inference_mode()
    def scores(self) -> dict[str, NDArray[Any]]:
        """Ask for every sample the classifier that was kept of its fold; it stays in the network.

        In float32 on any device: probabilities near 0 tell the suspects apart.
        """
        self._folds.classifiers.load_state_dict(self._best)
        given, ranks = self._context.setup.labels, self._context.setup.ranks
        n, device = len(given), self._folds.of_samples.device
        columns, issues = torch.zeros((n, 3), device=device), torch.zeros(n, device=device)
        with progress("score, out of fold", 2 * n) as bar:
            for logits, labels, ids in self._held_out():
                stats = per_sample_stats(logits, labels)
                predicted = logits.argmax(1).float()
                columns[ids] = torch.stack(
                    (stats.label_probability, stats.probability_margin, predicted), dim=1
                )
                bar.advance(min(len(ids) * ranks.world, n - bar.done))
            ranks.all_reduce(columns)
            confidence, margin, predicted = columns.cpu().numpy().T.copy()
            thresholds = class_thresholds(confidence, given, self._n_classes)  # of all samples
            thresholds_c = torch.from_numpy(thresholds).to(device)
            for logits, labels, ids in self._held_out():
                issues[ids] = label_issues(logits.softmax(1), labels, thresholds_c).float()
                bar.advance(min(len(ids) * ranks.world, 2 * n - bar.done))
            ranks.all_reduce(issues)
        return {
            "confidence_oof": confidence,
            "margin_oof": margin,
            PREDICTED_OOF: predicted.astype(np.int32),
            ISSUE_OOF: issues.cpu().numpy() > 0,
        }

    def _held_out(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield out-of-fold logits, labels and ids of this process's share of the samples."""
        for inputs, labels, ids in self._context.proxy.originals():
            by_classifier = self._folds.classifiers(inputs).unflatten(1, (-1, self._n_classes))
            rows = torch.arange(len(ids), device=ids.device)
            # The classifier of a sample's own fold has not trained on it.
            yield by_classifier[rows, self._folds.of_samples[ids]], labels, ids
            self._context.meter.images += len(ids)


ACCUMULATORS: dict[str, Callable[[TrainingContext], Accumulator | None]] = {
    "tdds": lambda context: TddsScore(context) if context.setup.options.tdds else None,
    "margins": lambda context: (
        MarginRecord(context) if context.setup.options.record_margins else None
    ),
    "folds": lambda context: context.proxy.folds and OutOfFold(context, context.proxy.folds),
}
"""Makers by the name of the accumulator's file in a checkpoint; None: not asked for."""
