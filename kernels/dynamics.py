"""Training-dynamics scores, accumulated on the device while a proxy network trains.

A presentation is a sample shown once an epoch, in train mode, before the step of its batch. The
state is 72 bytes a sample with a window of ten epochs (92 MB for ImageNet) instead of the history
of logits (154 GB). Nothing waits for the device between epochs.

Shape suffixes: b = batch, c = classes, n = samples, k = columns, j = window.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from coreset.kernels.logits import SampleStats, per_sample_stats

SUMS = (
    "visits", "early_visits", "probability_margin", "probability_margin_squared", "logit_margin",
    "right", "loss", "entropy", "el2n_early", "el2n_single",
)  # fmt: skip
"""Columns of the sums, all float32 (counts are exact up to 2^24)."""
WINDOW_EPOCHS, EL2N_EPOCHS = 10, 10
_SEEN, _RIGHT = 1, 2
_STEPS, _HALF = 65535, 32768


class _Counted(NamedTuple):
    """Tensors that a batch changes: a row per sample, and a last row for padding."""

    place: Int[Tensor, " 3"]
    """Is the epoch early, is it that of ``el2n_single``, and its column in ``recent``."""
    sums: Float[Tensor, "n_plus_1 k"]
    seen: Int[Tensor, " n_plus_1"]
    """In this epoch: 0, or `_SEEN`, plus `_RIGHT` if the prediction was the label."""
    recent: Int[Tensor, "n_plus_1 j"]
    """Probability of the label in the last epochs, int16 in 65535 steps: at most 8e-6 off."""


def accumulate(
    logits_bc: Float[Tensor, "b c"],
    labels_b: Int[Tensor, " b"],
    ids_b: Int[Tensor, " b"],
    counted: _Counted,
) -> SampleStats:
    """Count one batch in place as `Dynamics.update`; one graph, no host synchronisation."""
    place, sums, seen, recent = counted
    rows_b = torch.where(ids_b < 0, sums.shape[0] - 1, ids_b)
    # A padded row may carry label -1, which would be out of bounds for gather.
    stats = per_sample_stats(logits_bc, labels_b.clamp(min=0))
    early, single = place[0].float(), place[1].float()
    ones_b = torch.ones_like(stats.right)
    margin_b = stats.probability_margin
    columns = (
        ones_b, ones_b * early, margin_b, margin_b.square(), stats.logit_margin,
        stats.right, stats.loss, stats.entropy, stats.el2n * early, stats.el2n * single,
    )  # fmt: skip
    # Only the row of padding is added to twice, so no score depends on the order of additions.
    sums.index_add_(0, rows_b, torch.stack(columns, dim=1))
    seen[rows_b] = (_SEEN + _RIGHT * stats.right).to(seen.dtype)
    label_16_b = (stats.label_probability * _STEPS).round() - _HALF
    recent[rows_b, place[2].expand_as(rows_b)] = label_16_b.to(recent.dtype)
    return stats


class SampleRows:
    """State of a row per sample, and of a last row for padding, saved and loaded by name."""

    rows: Mapping[str, Tensor]
    epochs: int = 0
    """Ended epochs."""

    def state(self) -> dict[str, Tensor]:
        """Copy the state to the CPU without the row of padding."""
        return {name: tensor[:-1].to("cpu", copy=True) for name, tensor in self.rows.items()}

    def load_state(self, state: Mapping[str, Tensor], epochs: int) -> None:
        """Continue from a `state` of the main process after ``epochs`` ended epochs.

        The epoch under way is begun again with ``begin_epoch``. Names that are not the object's are
        ignored; a missing one, and another shape or type, are a ValueError.
        """
        for name, tensor in self.rows.items():
            saved, shape = state.get(name), (len(tensor) - 1, *tensor.shape[1:])
            if saved is None or (saved.dtype, tuple(saved.shape)) != (tensor.dtype, shape):
                kind = "nothing" if saved is None else f"{saved.dtype} {tuple(saved.shape)}"
                raise ValueError(f"{name} must be {tensor.dtype} {shape}, got {kind}")
            tensor[:-1].copy_(saved)
        self.epochs = epochs


class Dynamics(SampleRows):
    """Streaming accumulators of `coreset.kernels.scores.SCORES`, one row per sample id.

    ``begin_epoch``, ``update`` for every batch, ``end_epoch``, and so on; ``scores`` after any
    ``end_epoch``; ``state`` and ``load_state`` anywhere. Equal histories give equal bytes.
    Processes that share an epoch keep a state each; `end_epoch` adds the states up.
    """

    def __init__(
        self,
        n_samples: int,
        device: torch.device | str,
        *,
        el2n_epochs: int = EL2N_EPOCHS,
        window: int = WINDOW_EPOCHS,
        compiled: bool = False,
        all_reduce: Callable[[Tensor], None] = lambda _: None,
        is_main: bool = True,
    ) -> None:
        """Start with nothing seen of the ids 0 .. n_samples - 1.

        Args:
            n_samples: Number of samples.
            device: Device of the logits.
            el2n_epochs: EL2N counts the presentations of epochs 0 .. el2n_epochs - 1 (10 in CCS).
            window: Epochs over which Dyn-Unc and DUAL take deviations (10 in both papers).
            compiled: Compile `accumulate` to one graph; pays on a GPU and for many classes.
            all_reduce: Replaces a tensor by its sum over all processes that share an epoch.
            is_main: This process keeps the sums; the others start each epoch from nothing.
        """
        self.el2n_epochs, self.window = el2n_epochs, window
        self._sum_over_processes, self._is_main = all_reduce, is_main
        self._accumulate = torch.compile(accumulate, fullgraph=True) if compiled else accumulate
        rows = n_samples + 1
        self._counted = _Counted(
            place=torch.zeros(3, dtype=torch.int64, device=device),
            sums=torch.zeros((rows, len(SUMS)), device=device),
            seen=torch.zeros(rows, dtype=torch.uint8, device=device),
            recent=torch.zeros((rows, window), dtype=torch.int16, device=device),
        )
        _, self._sums, self._seen, self._recent = self._counted
        self._forgetting = torch.zeros(rows, dtype=torch.int16, device=device)
        self._was_right = torch.zeros(rows, dtype=torch.uint8, device=device)
        self._spread = torch.zeros((rows, 2), device=device)
        names = ("sums", "seen", "recent", "forgetting", "was_right", "spread")
        self.rows = {name: getattr(self, f"_{name}") for name in names}

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch of the next batches; the first is 0."""
        self._forget_unless_main()
        early, single = epoch < self.el2n_epochs, epoch == self.el2n_epochs - 1
        place = torch.tensor([early, single, epoch % self.window], dtype=torch.int64)
        self._counted.place.copy_(place, non_blocking=True)

    def update(
        self,
        logits_bc: Float[Tensor, "b c"],
        labels_b: Int[Tensor, " b"],
        ids_b: Int[Tensor, " b"],
    ) -> SampleStats:
        """Count one batch, in which an id stands at most once, and return its statistics.

        Rows with a negative id are padding: their logits and labels may be anything.
        """
        return self._accumulate(logits_bc, labels_b, ids_b, self._counted)

    def end_epoch(self, epoch: int) -> None:
        """`collect`, and fold the epoch into the history of samples."""
        self.collect(epoch)
        self.epochs = epoch + 1
        self._fold()
        self._seen.zero_()

    def collect(self, epoch: int) -> None:
        """Add up all processes, so that the `state` of the main one is whole, also in an epoch."""
        for rows in (self._sums, self._seen, self._recent):
            rows[-1].zero_()  # padding
        column = self._recent[:, epoch % self.window]
        mine = torch.where(self._seen > 0, column, 0)
        # As bytes: NCCL adds no 16-bit integers, and a sample was shown by one process only.
        for tensor in (self._sums, self._seen, mine.view(torch.uint8)):
            self._sum_over_processes(tensor)
        column.copy_(mine)
        self._forget_unless_main()

    def _forget_unless_main(self) -> None:
        if not self._is_main:
            self._seen.zero_()
            self._sums.zero_()

    def _fold(self) -> None:
        seen, right, was = self._seen > 0, self._seen > _SEEN, self._was_right > 0
        self._forgetting += was & seen & ~right
        self._was_right.copy_(torch.where(seen, right, was))
        if self.epochs < self.window:
            return
        recent_nj = (self._recent.float() + _HALF) / _STEPS
        spread_n = recent_nj.std(dim=1, correction=min(1, self.window - 1))
        doubt_n = 1 - recent_nj.mean(dim=1)
        self._spread += torch.stack((spread_n, doubt_n * spread_n), dim=1)

    def visits(self) -> NDArray[np.int64]:
        """Count the presentations of each sample, int64 of shape (n,); on the main process."""
        return self._sums[:-1, SUMS.index("visits")].cpu().numpy().astype(np.int64)

    def total_loss(self) -> float:
        """Sum the loss of all presentations in nats; on the main process."""
        return float(self._sums[:-1, SUMS.index("loss")].double().sum())

    def scores(self) -> dict[str, NDArray[np.float32]]:
        """Compute ``visits`` and all scores of `coreset.kernels.scores` that training gives.

        float32 of shape (n,) in id order, on the main process after `end_epoch`. Means are over
        presentations. NaN: every score of a sample that was never presented; ``el2n`` of one that
        was not presented in an early epoch; ``el2n_single``, ``dyn_unc`` and ``dual`` of one that
        missed an epoch, and of all samples before ``el2n_epochs`` or ``window`` epochs have ended.
        """
        sums = dict(zip(SUMS, self._sums[:-1].cpu().numpy().T.copy(), strict=True))
        forgetting = self._forgetting[:-1].float().cpu().numpy()
        spread = self._spread[:-1].cpu().numpy()
        visits, right = sums["visits"], sums["right"]
        seen, early = _or_nan(visits), _or_nan(sums["early_visits"])
        absent, complete = 0 * seen, visits == self.epochs
        windows = _or_nan(complete * np.float32(max(0, self.epochs - self.window + 1)))
        single = _or_nan((complete & (self.epochs >= self.el2n_epochs)).astype(np.float32))
        mean = {name: column / seen for name, column in sums.items()}
        variance = mean["probability_margin_squared"] - mean["probability_margin"] ** 2
        scores = {
            "aum": mean["probability_margin"],
            "aum_logit": mean["logit_margin"],
            "margin_variance": np.maximum(variance, absent),
            "el2n": sums["el2n_early"] / early,
            "el2n_single": sums["el2n_single"] / single,
            "forgetting": forgetting + absent,
            "forgetting_toneva": np.where(right > 0, forgetting, np.float32(self.epochs)) + absent,
            "correctness": right + absent,
            "loss_mean": mean["loss"],
            "entropy_mean": mean["entropy"],
            "dyn_unc": spread[:, 0] / windows,
            "dual": spread[:, 1] / windows,
            "visits": visits,
        }
        return {name: values.astype(np.float32, copy=False) for name, values in scores.items()}


def _or_nan(counts: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(counts > 0, counts, np.float32(np.nan))
