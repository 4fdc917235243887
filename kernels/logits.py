"""Statistics of batches of logits: margins, loss, label issues, and losses of several folds.

Shape suffixes: b = batch, k = folds, c = classes, n = samples.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.kernels.seeds import random_keys

_TOLERANCE = 1e-6  # of every comparison of probabilities, as in cleanlab


class SampleStats(NamedTuple):
    """Statistics of one presentation per sample; all float32 of shape (b,).

    A margin is the value of the label minus the largest other.
    """

    probability_margin: Float[Tensor, " b"]
    logit_margin: Float[Tensor, " b"]
    right: Float[Tensor, " b"]
    """1 where argmax is the label, else 0; a tie counts for the lowest class index."""
    el2n: Float[Tensor, " b"]
    """Euclidean distance of the softmax to the one-hot label (Paul et al. 2021, definition 2.2)."""
    loss: Float[Tensor, " b"]
    """Cross-entropy in nats."""
    entropy: Float[Tensor, " b"]
    """Entropy of the softmax, in nats."""
    label_probability: Float[Tensor, " b"]


def per_sample_stats(logits_bc: Float[Tensor, "b c"], labels_b: Int[Tensor, " b"]) -> SampleStats:
    """Compute all statistics of a batch of at least two classes.

    One graph, no host synchronisation, two passes over the logits; the softmax is never stored.
    """
    logits_bc = logits_bc.detach().float()
    n_classes = logits_bc.shape[1]
    label_b = logits_bc.gather(1, labels_b[:, None])[:, 0]
    top_b1 = logits_bc.amax(dim=1, keepdim=True)

    # The exponential of a class at the top is 1; the sums are over the classes below it. They are
    # told by value: a mask of positions costs a compiled graph more than all exponentials.
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
    # 1 - p of the label is the sum of the others, no difference: a certain sample keeps its digits.
    # The count less the exponential is exactly 0 where the label alone is at the top.
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
    """Record the first batch with a NaN or infinity without synchronising with the device."""

    def __init__(self, batch: int, device: torch.device | str) -> None:
        """Start with nothing recorded, for batches of at most ``batch`` rows."""
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


def stratified_folds(labels: Int[np.ndarray, " n"], n_folds: int, seed: int) -> NDArray[np.int64]:
    """Assign samples to folds 0 .. n_folds-1 in turn, class by class in the order of random keys.

    Folds differ in size by at most one sample, over all and within each class.
    """
    folds = np.empty(labels.size, np.int64)
    folds[np.lexsort((random_keys(labels.size, seed), labels))] = np.arange(labels.size) % n_folds
    return folds


def loss_of_folds(
    logits_bkc: Float[Tensor, "b k c"], labels_b: Int[Tensor, " b"], folds_b: Int[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Sum the cross-entropy of the classifier of each fold on the samples of other folds.

    The sum is divided by ``(k - 1) / k``, the share of samples that a classifier sees. Divided by
    the batch size, it is in expectation the sum of the mean losses of the classifiers. Labels of -1
    are padding.
    """
    n_folds = logits_bkc.shape[1]
    labels_of_rows = labels_b.repeat_interleave(n_folds)
    losses_bk = cross_entropy(
        logits_bkc.flatten(0, 1), labels_of_rows, ignore_index=-1, reduction="none"
    ).unflatten(0, (-1, n_folds))
    is_trained_bk = folds_b[:, None] != torch.arange(n_folds, device=folds_b.device)
    return (losses_bk * is_trained_bk).sum() * (n_folds / (n_folds - 1))


def class_thresholds(
    confidence: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], n_classes: int
) -> NDArray[np.float64]:
    """Average the out-of-sample probability of the label over the samples of each class.

    At least twice the tolerance, and infinite for a class without samples.
    """
    counts = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, weights=confidence, minlength=n_classes)
    means = np.divide(sums, counts, out=np.full(n_classes, np.inf), where=counts > 0)
    return np.maximum(means, 2 * _TOLERANCE)


def label_issues(
    probabilities_bc: Float[Tensor, "b c"],
    labels_b: Int[Tensor, " b"],
    thresholds_c: Float[Tensor, " c"],
) -> Bool[Tensor, " b"]:
    """Mark wrong labels by out-of-sample probabilities and `class_thresholds`: confident learning.

    Northcutt, Jiang and Chuang, JAIR 2021, section 3.1: a sample whose probability of a class
    reaches the threshold is assigned to that class; if it is not the label, the label is an issue.
    As in cleanlab (``filter_by="confident_learning"``) and unlike the paper, a sample above several
    thresholds is assigned to its likeliest class, and a label as likely as that is no issue.
    """
    reached_bc = probabilities_bc >= thresholds_c - _TOLERANCE
    n_reached_b, predicted_b = reached_bc.sum(dim=1), probabilities_bc.argmax(dim=1)
    likeliest_b = torch.where(n_reached_b > 1, predicted_b, reached_bc.int().argmax(dim=1))
    own_b1 = labels_b[:, None]
    favoured_bc = probabilities_bc.scatter_add(
        1, own_b1, torch.full_like(own_b1, _TOLERANCE, dtype=probabilities_bc.dtype)
    )
    agrees_b = favoured_bc.argmax(dim=1) == labels_b
    return (n_reached_b > 0) & (likeliest_b != labels_b) & ~agrees_b
