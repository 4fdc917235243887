"""TDDS, accumulated while a network trains: how unevenly the softmax changes between epochs.

Zhang, Du, Li, Xie and Zhou, "Spanning training progress: temporal dual-depth scoring (TDDS) for
enhanced dataset pruning", CVPR 2024; the authors' code is zhangxin-xd/Dataset-Pruning-TDDS,
``importance_evaluation.py``, ``generate``. With p_t the softmax in epoch t = 0 .. T-1::

    d_t = sum over classes of |p_t (log(p_t + 1e-8) - log(p_{t-1} + 1e-8))|      t = 1 .. T-1
    s_k = Euclidean norm of d_{k+1} .. d_{k+J-1}, less their mean                 k = 0 .. T-J
    score = sum over k of 0.9 * 0.1^(T-J-k) * s_k

Shape suffixes: b = batch, c = classes, n = samples, j = changes in a window, one less than epochs.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from coreset.kernels.dynamics import SampleRows

DECAY, FLOOR = 0.9, 1e-8
WINDOW_EPOCHS = 10
_STEPS, _HALF = 65535, 32768
LOG_STEP = -math.log(FLOOR) / _STEPS
"""Resolution of the stored logarithms in nats: a change is off by at most half of it."""


class _Moved(NamedTuple):
    """State that a batch changes: a row per sample, and a last row for padding."""

    column: Int[Tensor, ""]
    """Column of the epoch in ``changes``; a tensor, so that one graph serves all epochs."""
    visits: Int[Tensor, " n_plus_1"]
    logs: Int[Tensor, "n_plus_1 c"]
    """log(p + 1e-8) of the last presentation, int16 in steps of `LOG_STEP`: at most 1.4e-4 nats
    off, where a float16 of p would be 1.4 nats off at p = 3e-8."""
    changes: Float[Tensor, "n_plus_1 j"]
    """d of the last epochs, in nats."""


def _count(logits_bc: Float[Tensor, "b c"], ids_b: Int[Tensor, " b"], moved: _Moved) -> None:
    """Count one batch in place; one graph, no host synchronisation."""
    column, visits, logs, changes = moved
    rows_b = torch.where(ids_b < 0, visits.shape[0] - 1, ids_b)
    p_bc = logits_bc.detach().float().softmax(dim=1)
    logs_bc = (p_bc + FLOOR).log()
    before_bc = (logs[rows_b].float() + _HALF) * -LOG_STEP
    change_b = (p_bc * (logs_bc - before_bc)).abs().sum(dim=1)
    changes[rows_b, column.expand_as(rows_b)] = change_b
    logs[rows_b] = ((logs_bc / -LOG_STEP).round() - _HALF).to(logs.dtype)
    visits.index_add_(0, rows_b, torch.ones_like(rows_b, dtype=visits.dtype))


def state_bytes(n_samples: int, n_classes: int, window: int = WINDOW_EPOCHS) -> int:
    """Return the bytes that `Tdds` keeps on its device: 2.6 GB for ImageNet."""
    floats_and_counts = 4 * (window - 1) + 4 + 4
    return (n_samples + 1) * (2 * n_classes + floats_and_counts)


class Tdds(SampleRows):
    """Streaming TDDS of one process that sees every sample once an epoch, used like `Dynamics`.

    Several processes cannot share an epoch: the last softmax of a sample would lie in another one.
    """

    def __init__(
        self,
        n_samples: int,
        n_classes: int,
        device: torch.device | str,
        *,
        window: int = WINDOW_EPOCHS,
        compiled: bool = False,
    ) -> None:
        """Start with nothing seen; ``window`` is J in epochs, at least 3.

        With 2 every score would be 0, because one change equals its mean.
        """
        self.window = window
        self._count = torch.compile(_count, fullgraph=True) if compiled else _count
        rows = n_samples + 1
        self._moved = _Moved(
            column=torch.zeros((), dtype=torch.int64, device=device),
            visits=torch.zeros(rows, dtype=torch.int32, device=device),
            logs=torch.zeros((rows, n_classes), dtype=torch.int16, device=device),
            changes=torch.zeros((rows, window - 1), device=device),
        )
        self._average = torch.zeros(rows, device=device)
        names = ("tdds_visits", "tdds_logs", "tdds_changes", "tdds_average")
        self.rows = dict(zip(names, (*self._moved[1:], self._average), strict=True))

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch of the next batches; the first is 0."""
        # The first epoch has no change; its column is overwritten before a window is complete.
        self._moved.column.fill_(epoch % (self.window - 1))

    def update(self, logits_bc: Float[Tensor, "b c"], ids_b: Int[Tensor, " b"]) -> None:
        """Count one batch as `Dynamics.update` does."""
        self._count(logits_bc, ids_b, self._moved)

    def end_epoch(self, epoch: int) -> None:
        """Add the window that ends with this epoch, if it is complete, to the moving average."""
        self.epochs = epoch + 1
        if self.epochs < self.window:
            return
        changes_nj = self._moved.changes
        uneven_nj = changes_nj - changes_nj.mean(dim=1, keepdim=True)
        spread_n = torch.linalg.vector_norm(uneven_nj, dim=1)
        self._average.mul_(1 - DECAY).add_(spread_n, alpha=DECAY)

    def scores(self) -> dict[str, NDArray[np.float32]]:
        """Return ``tdds`` after T = all ended epochs, float32 of shape (n,) in id order.

        NaN: a sample that missed an epoch, and all samples before ``window`` epochs have ended.
        """
        complete = (self._moved.visits == self.epochs) & (self.epochs >= self.window)
        tdds = torch.where(complete, self._average, torch.nan)
        return {"tdds": tdds[:-1].cpu().numpy()}
