"""What one presentation of a sample says: numbers from the logits that a training step has anyway.

Two passes over the logits: one for the largest other logit, one for sums of exponentials. Softmax
is never stored, and ``1 - p`` of the label is a sum of small numbers, not a difference of large
ones, so a sample that is classified with certainty keeps seven digits in every score.

Shape suffixes: b = batch, c = classes, k = columns.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

PRESENTED = (
    "probability_margin",
    "logit_margin",
    "right",
    "el2n",
    "loss",
    "entropy",
    "label_probability",
)
"""Columns of what `presentations` returns, in order."""


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
) -> Float[Tensor, "b k"]:
    """The columns of `PRESENTED` for each sample.

    - ``probability_margin``, ``logit_margin``: see `margins`.
    - ``right``: 1 where argmax is the label, else 0; a tie counts for the lowest class index, as in
      the reference codes.
    - ``el2n``: Euclidean distance of the softmax to the one-hot label (Paul et al. 2021, definition
      2.2 for one network).
    - ``loss``: cross-entropy in nats; ``entropy``: of the softmax, in nats.
    - ``label_probability``: softmax of the label.

    float32, whatever the precision of the logits. Takes at least two classes. No host
    synchronisation, one graph.
    """
    logits_bc, label_b1 = logits_bc.detach().float(), labels_b[:, None]
    classes_c = torch.arange(logits_bc.shape[1], device=logits_bc.device)
    label_logit_b1 = logits_bc.gather(1, label_b1)
    others_bc = logits_bc.masked_fill(classes_c == label_b1, -torch.inf)
    largest_other_b1 = others_bc.amax(dim=1, keepdim=True)
    ties_before_b = ((others_bc == label_logit_b1) & (classes_c < label_b1)).any(dim=1)

    largest_b1 = torch.maximum(label_logit_b1, largest_other_b1)
    others_exp_bc = (others_bc - largest_b1).exp()
    rest_b = others_exp_bc.sum(dim=1)
    squares_b = others_exp_bc.square().sum(dim=1)
    weighted_b = (others_exp_bc * (logits_bc - largest_b1)).sum(dim=1)

    label_b, other_b = label_logit_b1[:, 0], largest_other_b1[:, 0]
    below_b = label_b - largest_b1[:, 0]
    label_exp_b = below_b.exp()
    total_b = rest_b + label_exp_b
    log_total_b = torch.where(below_b == 0, rest_b.log1p(), total_b.log())
    largest_share_b = (other_b - largest_b1[:, 0]).exp()
    return torch.stack(
        (
            (label_exp_b - largest_share_b) / total_b,
            label_b - other_b,
            ((label_b >= other_b) & ~ties_before_b).float(),
            (squares_b + rest_b.square()).sqrt() / total_b,
            log_total_b - below_b,
            log_total_b - (weighted_b + label_exp_b * below_b) / total_b,
            label_exp_b / total_b,
        ),
        dim=1,
    )
