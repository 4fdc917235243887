"""Out-of-fold scores: what classifiers say of samples that they have not trained on.

A classifier per fold trains beside the linear proxy, on the same features. In the end a linear
classifier of many features knows wrong labels by heart and says little of others, so those of the
epoch are kept after which the held-out labels had the lowest cross-entropy (early stopping).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.runtime.distributed import Distributed
from coreset.engine.runtime.progress import progress
from coreset.engine.scoring.checkpoint import ISSUE_OOF, PREDICTED_OOF
from coreset.engine.scoring.proxy import Proxy
from coreset.kernels.folds import held_out_logits
from coreset.kernels.label_issues import class_thresholds, label_issues
from coreset.kernels.margins import SampleStats, per_sample_stats


class OutOfFold:
    """Classifiers of a proxy's folds as part of a scoring, on any number of processes."""

    name = "folds"

    def __init__(
        self,
        proxy: Proxy,
        labels: NDArray[np.int64],
        n_classes: int,
        *,
        ranks: Distributed,
        meter: Meter,
    ) -> None:
        """Begin; ``proxy`` has folds, ``labels`` are those of all samples, shape (n,)."""
        if proxy.folds is None:
            raise ValueError("the proxy has no folds; make it with some")
        self._folds, self._originals = proxy.folds, proxy.originals
        self._given, self._n_classes = labels, n_classes
        self._ranks, self._meter = ranks, meter
        weights = self._folds.classifiers.state_dict()
        self._best = {name: one.clone() for name, one in weights.items()}
        self._lowest = torch.tensor(torch.inf, dtype=torch.float64)

    def begin_epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def update(self, logits: Tensor, presented: SampleStats, ids: Tensor) -> None:
        """Nothing to do: the training step trains all classifiers."""

    @torch.inference_mode()
    def end_epoch(self, epoch: int) -> None:  # noqa: ARG002 - one of several
        """Keep the classifiers if the loss of held-out labels is the lowest so far."""
        loss = torch.zeros(1, dtype=torch.float64, device=self._folds.of_samples.device)
        for logits, labels, _ in self._held_out():
            loss += cross_entropy(logits, labels, reduction="sum")
        self._ranks.all_reduce(loss)
        if loss.cpu()[0] < self._lowest:
            self._lowest = loss.cpu()[0]
            for name, one in self._folds.classifiers.state_dict().items():
                self._best[name].copy_(one)

    def state(self) -> dict[str, Tensor]:
        """The classifiers that were kept, and their loss."""
        return {name: one.cpu() for name, one in self._best.items()} | {"loss": self._lowest}

    def load_state(self, state: Mapping[str, Tensor], epochs: int) -> None:  # noqa: ARG002 - one of several
        """Continue from a commit."""
        self._lowest = state["loss"]
        for name, one in self._best.items():
            one.copy_(state[name])

    @torch.inference_mode()
    def scores(self) -> dict[str, NDArray[Any]]:
        """Ask for every sample the classifier that was kept of its fold, and leave that in place.

        In float32 on any device: probabilities near 0 tell the suspects apart. A second pass finds
        the label issues, whose thresholds need all samples; no probabilities are kept.

        Returns:
            ``confidence_oof`` and ``margin_oof`` of `kernels.scores.SCORES`, float32 of shape (n,);
            ``predicted_oof``, the likeliest class, int32; ``label_issue_oof``, bool.
        """
        self._folds.classifiers.load_state_dict(self._best)
        n, device = len(self._given), self._folds.of_samples.device
        found, issues = torch.zeros((n, 3), device=device), torch.zeros(n, device=device)
        with progress("score, out of fold", 2 * n) as bar:
            for logits, labels, ids in self._held_out():
                presented = per_sample_stats(logits, labels)
                columns = (presented.label_probability, presented.probability_margin)
                found[ids] = torch.stack((*columns, logits.argmax(1).float()), dim=1)
                bar.advance(min(len(ids) * self._ranks.world, n - bar.done))
            self._ranks.all_reduce(found)
            confidence, margin, predicted = found.cpu().numpy().T.copy()
            thresholds = class_thresholds(confidence, self._given, self._n_classes)
            thresholds_c = torch.from_numpy(thresholds).to(device)
            for logits, labels, ids in self._held_out():
                issues[ids] = label_issues(logits.softmax(1), labels, thresholds_c).float()
                bar.advance(min(len(ids) * self._ranks.world, 2 * n - bar.done))
            self._ranks.all_reduce(issues)
        return {
            "confidence_oof": confidence,
            "margin_oof": margin,
            PREDICTED_OOF: predicted.astype(np.int32),
            ISSUE_OOF: issues.cpu().numpy() > 0,
        }

    def _held_out(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield out-of-fold logits, labels and ids of this process's share of the samples."""
        for inputs, labels, ids in self._originals():
            by_classifier = self._folds.classifiers(inputs).unflatten(1, (-1, self._n_classes))
            yield held_out_logits(by_classifier, self._folds.of_samples[ids]), labels, ids
            self._meter.images += len(ids)
