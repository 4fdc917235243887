"""Training-dynamics scores, accumulated on the device while a proxy network trains.

One presentation (a sample shown once, in train mode, before that batch's step) gives four numbers
from the logits the step has anyway; the state is one row of float32 per sample, not the history of
logits. Nothing here waits for the device.

Shape suffixes: b = batch, c = classes, n = samples, k = columns.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

COLUMNS = (
    "visits",
    "probability_margin_sum",
    "logit_margin_sum",
    "correct_count",
    "early_visits",
    "el2n_sum",
    "forgetting_count",
    "last_correct",
)
"""Columns of the state, in order; all float32 (counts are exact up to 2^24)."""


def margins(values_bc: Float[Tensor, "b c"], labels_b: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Value of the label minus the largest other value, per sample.

    The margin of Pleiss et al. 2020 ("Identifying mislabeled data using the area under the margin
    ranking", equation 1) when given logits, and of CCS (Zheng et al. 2023) when given
    probabilities. Negative for a misclassified sample. The label is masked with -inf, where CCS
    writes 0 over it, which is wrong for logits that are all negative.

    Takes at least two classes (with one, every margin is inf). No host synchronisation, one graph.
    """
    label_value_b1 = values_bc.gather(1, labels_b[:, None])
    others_bc = values_bc.scatter(1, labels_b[:, None], -torch.inf)
    return label_value_b1[:, 0] - others_bc.amax(dim=1)


def presentations(
    logits_bc: Float[Tensor, "b c"], labels_b: Int[Tensor, " b"]
) -> Float[Tensor, "b 4"]:
    """Probability margin, logit margin, right or not (1 or 0) and EL2N of each sample.

    float32 from a float32 softmax, whatever the precision of the logits. "Right" is argmax, so a
    tie counts for the lowest class index, as in the reference codes. EL2N is the Euclidean distance
    of the softmax to the one-hot label (Paul et al. 2021, definition 2.2 for one network).
    """
    logits_bc = logits_bc.detach().float()
    probabilities_bc = logits_bc.softmax(dim=1)
    right_b = (logits_bc.argmax(dim=1) == labels_b).float()
    label_b1 = labels_b[:, None]
    errors_bc = probabilities_bc.scatter(1, label_b1, probabilities_bc.gather(1, label_b1) - 1)
    return torch.stack(
        (
            margins(probabilities_bc, labels_b),
            margins(logits_bc, labels_b),
            right_b,
            torch.linalg.vector_norm(errors_bc, dim=1),
        ),
        dim=1,
    )


class Dynamics:
    """Streaming accumulators of `kernels.scores.SCORES`, one row per sample id.

    The state is `rows`, a float32 tensor of shape (n + 1, k) with the columns of `COLUMNS`: save
    it with a checkpoint and give it back to `load_rows`. The last row is scratch, where padding
    goes; it is zero between updates, so equal histories give equal bytes.
    """

    def __init__(self, n_samples: int, device: torch.device | str, el2n_epochs: int = 10) -> None:
        """Start with nothing seen.

        Args:
            n_samples: Ids run from 0 to n_samples - 1.
            device: Where the logits will be.
            el2n_epochs: EL2N counts the presentations of epochs 0 .. el2n_epochs - 1 (10 in CCS).

        Raises:
            ValueError: n_samples or el2n_epochs below 1.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        if el2n_epochs < 1:
            raise ValueError(f"el2n_epochs must be at least 1, got {el2n_epochs}")
        self.n_samples = n_samples
        self.el2n_epochs = el2n_epochs
        self.rows = torch.zeros((n_samples + 1, len(COLUMNS)), dtype=torch.float32, device=device)

    def update(
        self,
        logits_bc: Float[Tensor, "b c"],
        labels_b: Int[Tensor, " b"],
        ids_b: Int[Tensor, " b"],
        epoch: int,
    ) -> None:
        """Count one batch. ``epoch`` starts at 0; an id stands at most once in a batch.

        Rows with a negative id are padding: their logits and labels may be anything.
        """
        # A padded row may carry label -1, which would be out of bounds for gather.
        self.record(presentations(logits_bc, labels_b.clamp(min=0)), ids_b, epoch)

    def record(
        self, presentations_b4: Float[Tensor, "b 4"], ids_b: Int[Tensor, " b"], epoch: int
    ) -> None:
        """Count what `presentations` returned, here or on another rank.

        Forgetting compares a sample with its own last presentation, which another rank may have
        made: gather presentations and ids of all ranks (24 bytes a sample) and record them on each.
        """
        rows_b = torch.where(ids_b < 0, self.n_samples, ids_b)
        right_b = presentations_b4[:, 2]
        was_right_b = self.rows[rows_b, COLUMNS.index("last_correct")]
        early = float(epoch < self.el2n_epochs)
        ones_b = torch.ones_like(right_b)
        increments_bk = torch.stack(
            (
                ones_b,
                *presentations_b4[:, :3].unbind(dim=1),
                ones_b * early,
                presentations_b4[:, 3] * early,
                was_right_b * (1 - right_b),
                right_b - was_right_b,
            ),
            dim=1,
        )
        # Only the scratch row is added to twice, so the order of atomic additions reaches no score.
        self.rows.index_add_(0, rows_b, increments_bk)
        self.rows[-1].zero_()

    def load_rows(self, rows: Float[Tensor, "n_plus_1 k"]) -> None:
        """Continue from the `rows` of an earlier run (copied, to this state's device).

        Raises:
            ValueError: The shape or the type is not this state's.
        """
        if rows.shape != self.rows.shape or rows.dtype != self.rows.dtype:
            raise ValueError(
                f"rows must be float32 of shape {tuple(self.rows.shape)}, "
                f"got {rows.dtype} of shape {tuple(rows.shape)}; they belong to another data set"
            )
        self.rows.copy_(rows)

    def scores(self) -> dict[str, NDArray[np.float32]]:
        """All scores and ``visits``, float32 of shape (n,) in id order (this waits for the device).

        ``el2n`` is a mean over the early presentations, where CCS sums them: the same ranks and
        the same bins. ``forgetting`` of a sample that was never right is 0 as in CCS (Toneva et
        al. put it at the maximum; ``correctness`` == 0 tells these apart). A sample that was never
        presented is NaN in every score and 0 in ``visits``; one that was not presented in an early
        epoch is NaN in ``el2n``.
        """
        columns = dict(zip(COLUMNS, self.rows[:-1].cpu().numpy().T.copy(), strict=True))
        seen = np.where(columns["visits"] > 0, columns["visits"], np.float32(np.nan))
        seen_early = np.where(
            columns["early_visits"] > 0, columns["early_visits"], np.float32(np.nan)
        )
        absent = np.where(columns["visits"] > 0, np.float32(0), np.float32(np.nan))
        return {
            "aum": columns["probability_margin_sum"] / seen,
            "aum_logit": columns["logit_margin_sum"] / seen,
            "el2n": columns["el2n_sum"] / seen_early,
            "forgetting": columns["forgetting_count"] + absent,
            "correctness": columns["correct_count"] + absent,
            "visits": columns["visits"],
        }
