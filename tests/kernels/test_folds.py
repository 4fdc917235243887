import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from coreset.kernels.folds import held_out_logits, loss_of_folds, stratified_folds
from coreset.kernels.seeds import random_keys

LABELS = st.lists(st.integers(0, 4), max_size=60).map(lambda labels: np.array(labels, np.int64))


@given(LABELS, st.integers(1, 7), st.integers(0, 9))
def test_samples_are_dealt_class_by_class_in_the_order_of_their_keys(labels, n_folds, seed):
    keys, dealt, expected = random_keys(labels.size, seed), 0, np.full(labels.size, -1)
    for label in range(5):
        for sample in sorted(np.flatnonzero(labels == label), key=lambda one: int(keys[one])):
            expected[sample] = dealt % n_folds
            dealt += 1
    np.testing.assert_array_equal(stratified_folds(labels, n_folds, seed), expected)


@given(LABELS, st.integers(1, 7))
def test_folds_hold_equally_many_samples_of_every_class(labels, n_folds):
    folds = stratified_folds(labels, n_folds, 3)
    for members in (folds, *(folds[labels == label] for label in range(5))):
        sizes = np.bincount(members, minlength=n_folds)
        assert sizes.max() - sizes.min() <= 1


def test_another_seed_deals_anew():
    labels = np.arange(40) % 4
    first, second = (stratified_folds(labels, 5, seed) for seed in (0, 1))
    assert (first != second).any()
    np.testing.assert_array_equal(first, stratified_folds(labels, 5, 0))


def test_fewer_than_one_fold_is_refused():
    with pytest.raises(ValueError, match="n_folds must be at least 1, got 0"):
        stratified_folds(np.zeros(3, np.int64), 0, 0)


def batch_of(n=12, n_folds=3, n_classes=4):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((n, n_folds, n_classes), generator=generator, requires_grad=True)
    return logits, torch.arange(n) % n_classes, torch.arange(n) % n_folds


def test_the_loss_is_the_mean_of_every_classifier_over_the_samples_of_other_folds():
    logits, labels, folds = batch_of()
    means = [cross_entropy(logits[folds != fold, fold], labels[folds != fold]) for fold in range(3)]
    torch.testing.assert_close(loss_of_folds(logits, labels, folds) / len(labels), sum(means))


def test_a_classifier_learns_nothing_from_its_own_fold_and_nobody_from_padding():
    logits, labels, folds = batch_of()
    labels[5] = -1
    loss_of_folds(logits, labels, folds).backward()
    assert logits.grad is not None
    learned = logits.grad.abs().sum(dim=2) > 0
    expected = folds[:, None] != torch.arange(3)
    expected[5] = False
    assert torch.equal(learned, expected)


def test_each_sample_asks_the_classifier_of_its_own_fold():
    logits, _, folds = batch_of()
    found = held_out_logits(logits, folds)
    for row, fold in enumerate(folds.tolist()):
        assert torch.equal(found[row], logits[row, fold])
