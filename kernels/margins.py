"""Statistics of each sample from the logits of a training step: margins, loss, entropy, EL2N.

They take two passes over the logits: one for the largest, one for sums of exponentials and the
largest of the rest. Softmax is never stored. ``1 - p`` of the label is a sum over the other
classes, not a difference, so a sample that is classified with certainty keeps seven digits. Classes
are distinguished by value, because a mask of positions costs a compiled graph more than all
exponentials.

Shape suffixes: b = batch, c = classes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class SampleStats(NamedTuple):
    """Statistics of one presentation per sample; all float32 of shape (b,)."""

    probability_margin: Float[Tensor, " b"]
    """Softmax of the label minus the largest other."""
    logit_margin: Float[Tensor, " b"]
    """Logit of the label minus the largest other."""
    right: Float[Tensor, " b"]
    """1 where argmax is the label, else 0; a tie counts for the lowest class index."""
    el2n: Float[Tensor, " b"]
    """Euclidean distance of the softmax to the one-hot label (Paul et al. 2021, definition 2.2)."""
    loss: Float[Tensor, " b"]
    """Cross-entropy in nats."""
    entropy: Float[Tensor, " b"]
    """Entropy of the softmax in nats."""
    label_probability: Float[Tensor, " b"]
    """Softmax of the label."""


def margins(values_bc: Float[Tensor, "b c"], labels_b: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return the value of the label minus the largest other value, per sample.

    The margin of Pleiss et al. 2020 ("Identifying mislabeled data using the area under the margin
    ranking", equation 1) when given logits, and of CCS (Zheng et al. 2023) when given
    probabilities. Negative for a misclassified sample. The label is masked with -inf; CCS writes
    0 over it, which is wrong for logits that are all negative.

    Takes at least two classes (with one, every margin is inf). No host synchronisation, one graph.
    """
    label_value_b1 = values_bc.gather(1, labels_b[:, None])
    others_bc = values_bc.scatter(1, labels_b[:, None], -torch.inf)
    return label_value_b1[:, 0] - others_bc.amax(dim=1)


def per_sample_stats(logits_bc: Float[Tensor, "b c"], labels_b: Int[Tensor, " b"]) -> SampleStats:
    """Compute all statistics of a batch; takes at least two classes.

    No host synchronisation, one graph.
    """
    logits_bc = logits_bc.detach().float()
    n_classes = logits_bc.shape[1]
    label_b = logits_bc.gather(1, labels_b[:, None])[:, 0]
    top_b1 = logits_bc.amax(dim=1, keepdim=True)

    # The exponential of a class at the top is 1; the sums are over the classes below it.
    is_below_bc = logits_bc < top_b1
    shifted_bc = logits_bc - top_b1
    exp_bc = torch.where(is_below_bc, shifted_bc.exp(), 0.0)
    next_b = torch.where(is_below_bc, logits_bc, -torch.inf).amax(dim=1)
    n_top_b = torch.where(is_below_bc, 0.0, 1.0).sum(dim=1)
    classes_c = torch.arange(n_classes, device=logits_bc.device, dtype=torch.int32)
    first_top_b = torch.where(is_below_bc, n_classes, classes_c).amin(dim=1)
    sum_b, squares_b = exp_bc.sum(dim=1), exp_bc.square().sum(dim=1)
    weighted_b = (exp_bc * shifted_bc).sum(dim=1)

    top_b = top_b1[:, 0]
    is_top_b, below_b = label_b == top_b, label_b - top_b
    label_exp_b = below_b.exp()
    # Without the label: exactly 0 where it alone is at the top, else at least 1.
    rest_b = sum_b + (n_top_b - label_exp_b)
    rest_squares_b = squares_b + (n_top_b - label_exp_b.square())
    other_b = torch.where(is_top_b & (n_top_b == 1), next_b, top_b)
    total_b, log_total_b = sum_b + n_top_b, (sum_b + (n_top_b - 1)).log1p()
    return SampleStats(
        probability_margin=(label_exp_b - (other_b - top_b).exp()) / total_b,
        logit_margin=label_b - other_b,
        right=(first_top_b == labels_b).float(),
        el2n=(rest_squares_b + rest_b.square()).sqrt() / total_b,
        loss=log_total_b - below_b,
        entropy=log_total_b - weighted_b / total_b,
        label_probability=label_exp_b / total_b,
    )


class NonFiniteGuard:
    """Record the first batch with a NaN or infinity without synchronising with the device.

    One bad update makes every later number bad, so only the first batch matters.
    """

    def __init__(self, batch: int, device: torch.device | str) -> None:
        """Start with nothing recorded; ``batch`` is the most rows of a batch."""
        self._number = torch.full((), -1, dtype=torch.int64, device=device)
        self._ids = torch.full((batch,), -1, dtype=torch.int64, device=device)

    def check(self, values_b: Float[Tensor, " b"], ids_b: Int[Tensor, " b"], number: int) -> None:
        """Check one value per sample of batch ``number``; rows with a negative id are padding."""
        bad_b = ~torch.isfinite(values_b) & (ids_b >= 0)
        is_first = bad_b.any() & (self._number < 0)
        self._number.copy_(torch.where(is_first, number, self._number))
        recorded = self._ids[: len(ids_b)]
        recorded.copy_(torch.where(is_first, torch.where(bad_b, ids_b, -1), recorded))

    def first(self) -> tuple[int, list[int]] | None:
        """Return the number of the first bad batch and its bad samples; waits for the device."""
        number = int(self._number)
        return None if number < 0 else (number, [i for i in self._ids.tolist() if i >= 0])
