"""What one presentation of a sample says: numbers from the logits that a training step has anyway.

Two passes over the logits: one for the largest, one for sums of exponentials and the largest of the
rest. Softmax is never stored, and ``1 - p`` of the label is a sum of the others, not a difference
of large numbers, so a sample that is classified with certainty keeps seven digits in every score.
Classes are told apart by value, not by position: a mask of positions costs a compiled graph more
than all exponentials.

Shape suffixes: b = batch, c = classes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class SampleStats(NamedTuple):
    """A batch of samples shown once; all float32 of shape (b,), whatever the logits are."""

    probability_margin: Float[Tensor, " b"]
    """Softmax of the label minus the largest other; see `margins`."""
    logit_margin: Float[Tensor, " b"]
    """Logit of the label minus the largest other."""
    right: Float[Tensor, " b"]
    """1 where argmax is the label, else 0; a tie counts for the lowest class index, as in the
    reference codes."""
    el2n: Float[Tensor, " b"]
    """Euclidean distance of the softmax to the one-hot label (Paul et al. 2021, definition 2.2 for
    one network)."""
    loss: Float[Tensor, " b"]
    """Cross-entropy in nats."""
    entropy: Float[Tensor, " b"]
    """Of the softmax, in nats."""
    label_probability: Float[Tensor, " b"]
    """Softmax of the label."""


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


def per_sample_stats(logits_bc: Float[Tensor, "b c"], labels_b: Int[Tensor, " b"]) -> SampleStats:
    """Everything that is scored of a batch; takes at least two classes.

    No host synchronisation, one graph.
    """
    logits_bc = logits_bc.detach().float()
    n_classes = logits_bc.shape[1]
    label_b = logits_bc.gather(1, labels_b[:, None])[:, 0]
    top_b1 = logits_bc.amax(dim=1, keepdim=True)

    # Of a class at the top the exponential is 1; the sums are over those below it.
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
    # Less the label: exactly 1 - 1 where it alone is at the top; else at least 1 remains.
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
