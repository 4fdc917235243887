"""Confident learning: which labels are taken for wrong, from out-of-sample probabilities.

Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR
2021, section 3.1. The threshold of a class is the mean probability that the samples labelled with
it get for it. A sample whose probabilities reach a threshold is counted for the class that it most
likely belongs to; if that is not the class of its label, the label is an issue. Same result as
``cleanlab.filter.find_label_issues(filter_by="confident_learning")``, one batch at a time: what is
kept between batches is a number per class.

Shape suffixes: b = batch, c = classes, n = samples.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

TOLERANCE = 1e-6
"""Of every comparison of probabilities; cleanlab's."""


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
        samples, which nothing is taken for.
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
    """Mark labels of a batch that confident learning takes for wrong.

    Like cleanlab and unlike the paper, a sample that reaches several thresholds is counted for its
    largest probability of all, and a label that is within `TOLERANCE` of the largest is no issue.

    Args:
        probabilities_bc: Out-of-sample probabilities.
        labels_b: Class of each label.
        thresholds_c: Of `class_thresholds`.
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
