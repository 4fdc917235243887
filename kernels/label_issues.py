"""Confident learning: find wrong labels from out-of-sample probabilities.

Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR
2021, section 3.1. The threshold of a class is the mean probability of that class over the samples
labelled with it. A sample with a probability above a threshold is assigned to its most likely
class; if that is not its label, the label is an issue. The result is that of
``cleanlab.filter.find_label_issues(filter_by="confident_learning")``, but batch by batch, with one
number per class between batches.

Shape suffixes: b = batch, c = classes, n = samples.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

TOLERANCE = 1e-6
"""Tolerance of every comparison of probabilities, as in cleanlab."""


def class_thresholds(
    confidence: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], n_classes: int
) -> NDArray[np.float64]:
    """Average the probability of the label over the samples of each class.

    Args:
        confidence: Out-of-sample probability of each sample's own label, 0 to 1.
        labels: Class 0 .. n_classes-1 of each sample.
        n_classes: Classes, samples or not.

    Returns:
        float64 of shape (n_classes,), at least twice the tolerance; infinite for a class without
        samples, to which no sample is assigned.
    """
    counts = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, weights=confidence, minlength=n_classes)
    means = np.divide(sums, counts, out=np.full(n_classes, np.inf), where=counts > 0)
    return np.maximum(means, 2 * TOLERANCE)


def label_issues(
    probabilities_bc: Float[Tensor, "b c"],
    labels_b: Int[Tensor, " b"],
    thresholds_c: Float[Tensor, " c"],
) -> Bool[Tensor, " b"]:
    """Mark the wrong labels of a batch.

    As in cleanlab and unlike the paper, a sample above several thresholds is assigned to the class
    of its largest probability, and a label within `TOLERANCE` of the largest is no issue.

    Args:
        probabilities_bc: Out-of-sample probabilities.
        labels_b: Class of each sample.
        thresholds_c: Result of `class_thresholds`.
    """
    reached_bc = probabilities_bc >= thresholds_c - TOLERANCE
    n_reached_b, predicted_b = reached_bc.sum(dim=1), probabilities_bc.argmax(dim=1)
    likeliest_b = torch.where(n_reached_b > 1, predicted_b, reached_bc.int().argmax(dim=1))
    own_b1 = labels_b[:, None]
    favoured_bc = probabilities_bc.scatter_add(
        1, own_b1, torch.full_like(own_b1, TOLERANCE, dtype=probabilities_bc.dtype)
    )
    agrees_b = favoured_bc.argmax(dim=1) == labels_b
    return (n_reached_b > 0) & (likeliest_b != labels_b) & ~agrees_b
