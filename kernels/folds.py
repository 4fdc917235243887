"""Cross-validation in one training: a classifier per fold, side by side, blind to its own fold.

Their logits stand side by side in a row, so that one pass over the data trains all of them; the
classifier of a sample's own fold has never trained on that sample.

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
    """Deal samples into folds, class by class in the order of random keys.

    A sample's place in that order depends on the seed, its id and the samples of its class alone.

    Args:
        labels: Class of each sample id, 0 and up.
        n_folds: Folds, at least 1.
        seed: The only source of randomness.

    Returns:
        Fold 0 .. n_folds-1 of each sample. Folds differ by at most one sample in size, and by at
        most one of every class.

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
    """Cross-entropy of every classifier on the samples of other folds, summed.

    Divided by the share ``(k - 1) / k`` of samples that a classifier sees, so that over the rows of
    a batch it is the sum over classifiers of what each expects of a mean.

    Args:
        logits_bkc: Of every classifier, two at least.
        labels_b: -1 for padding, which counts for nothing.
        folds_b: Fold of each sample.
    """
    n_folds = logits_bkc.shape[1]
    labels_of_rows = labels_b.repeat_interleave(n_folds)
    losses_bk = cross_entropy(
        logits_bkc.flatten(0, 1), labels_of_rows, ignore_index=-1, reduction="none"
    ).unflatten(0, (-1, n_folds))
    others_bk = folds_b[:, None] != torch.arange(n_folds, device=folds_b.device)
    return (losses_bk * others_bk).sum() * (n_folds / (n_folds - 1))


def held_out_logits(
    logits_bkc: Float[Tensor, "b k c"], folds_b: Int[Tensor, " b"]
) -> Float[Tensor, "b c"]:
    """Logits of each sample by the classifier of its own fold, which has not trained on it."""
    return logits_bkc[torch.arange(len(folds_b), device=folds_b.device), folds_b]
