"""Cross-validation in one training, with a classifier per fold that does not see its fold.

The logits of all classifiers form one row, so that one pass over the data trains all of them.

Shape suffixes: b = batch, k = folds, c = classes, n = samples.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.kernels.seeds import random_keys


def stratified_folds(labels: Int[np.ndarray, " n"], n_folds: int, seed: int) -> NDArray[np.int64]:
    """Assign samples to folds in turn, class by class in the order of random keys.

    Args:
        labels: Class of each sample id, 0 and up.
        n_folds: Folds, at least 1.
        seed: The only source of randomness.

    Returns:
        Fold 0 .. n_folds-1 of each sample. Folds differ in size by at most one sample, over all and
        within each class.

    Raises:
        ValueError: ``n_folds`` below 1.
    """
    if n_folds < 1:
        raise ValueError(f"n_folds must be at least 1, got {n_folds}")
    folds = np.empty(labels.size, np.int64)
    folds[np.lexsort((random_keys(labels.size, seed), labels))] = np.arange(labels.size) % n_folds
    return folds


def loss_of_folds(
    logits_bkc: Float[Tensor, "b k c"], labels_b: Int[Tensor, " b"], folds_b: Int[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Sum the cross-entropy of every classifier on the samples of other folds.

    The sum is divided by ``(k - 1) / k``, the share of samples that a classifier sees. Divided by
    the batch size, it is in expectation the sum of the mean losses of the classifiers.

    Args:
        logits_bkc: Logits of at least two classifiers.
        labels_b: Class of each sample; -1 is padding.
        folds_b: Fold of each sample.
    """
    n_folds = logits_bkc.shape[1]
    labels_of_rows = labels_b.repeat_interleave(n_folds)
    losses_bk = cross_entropy(
        logits_bkc.flatten(0, 1), labels_of_rows, ignore_index=-1, reduction="none"
    ).unflatten(0, (-1, n_folds))
    is_trained_bk = folds_b[:, None] != torch.arange(n_folds, device=folds_b.device)
    return (losses_bk * is_trained_bk).sum() * (n_folds / (n_folds - 1))


def held_out_logits(
    logits_bkc: Float[Tensor, "b k c"], folds_b: Int[Tensor, " b"]
) -> Float[Tensor, "b c"]:
    """Select the logits of each sample's own fold, whose classifier has not trained on it."""
    return logits_bkc[torch.arange(len(folds_b), device=folds_b.device), folds_b]
