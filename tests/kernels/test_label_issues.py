import numpy as np
import pytest
import torch
from cleanlab.filter import find_label_issues
from hypothesis import given
from hypothesis import strategies as st

from coreset.kernels.label_issues import class_thresholds, label_issues


def noisy(seed, n=200, n_classes=5, absent=None):
    """Labels, some of them wrong, and probabilities that lean to the true ones."""
    draws = np.random.default_rng(seed)
    true = draws.integers(0, n_classes, n)
    labels = np.where(draws.random(n) < 0.3, draws.integers(0, n_classes, n), true)
    if absent is not None:
        labels = np.where(labels == absent, (absent + 1) % n_classes, labels)
    probabilities = draws.dirichlet(np.full(n_classes, 0.3), n)
    probabilities[np.arange(n), true] += draws.random(n)
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def found(labels, probabilities, rows=slice(None)):
    confidence = probabilities[np.arange(labels.size), labels]
    thresholds = class_thresholds(confidence, labels, probabilities.shape[1])
    parts = (probabilities[rows], labels[rows], thresholds)
    return label_issues(*map(torch.from_numpy, parts)).numpy()


@given(st.integers(0, 10_000), st.sampled_from([None, 0, 3]))
def test_issues_are_those_of_cleanlab(seed, absent):
    labels, probabilities = noisy(seed, absent=absent)
    theirs = find_label_issues(labels, probabilities, filter_by="confident_learning")
    np.testing.assert_array_equal(found(labels, probabilities), theirs)
    assert 0 < theirs.sum() < labels.size


def test_batches_give_what_the_whole_gives():
    labels, probabilities = noisy(7)
    parts = [found(labels, probabilities, slice(first, first + 32)) for first in range(0, 200, 32)]
    np.testing.assert_array_equal(np.concatenate(parts), found(labels, probabilities))


def test_a_sample_that_no_class_is_confident_of_is_no_issue():
    labels, probabilities = np.array([0, 1, 0]), np.array([[0.9, 0.1], [0.1, 0.9], [0.49, 0.51]])
    assert class_thresholds(probabilities[[0, 1, 2], labels], labels, 2) == pytest.approx(
        [0.695, 0.9]
    )
    assert found(labels, probabilities).tolist() == [False, False, False]


def test_a_class_without_samples_has_no_threshold_to_reach():
    assert class_thresholds(np.array([0.5, 0.0]), np.array([0, 2]), 3).tolist() == [
        0.5,
        np.inf,
        2e-6,
    ]
