import math

import numpy as np
import pytest
import torch
from cleanlab.filter import find_label_issues
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from coreset.kernels.logits import (
    NonFiniteGuard,
    SampleStats,
    class_thresholds,
    label_issues,
    loss_of_folds,
    per_sample_stats,
    stratified_folds,
)
from coreset.kernels.seeds import random_keys

LOGITS = st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=9)
LABELS = st.lists(st.integers(0, 4), max_size=60).map(lambda labels: np.array(labels, np.int64))
IDS = torch.tensor([7, 3, -1, 5])


def by_definition(logits, label):
    """Every number of a presentation in double precision, from a softmax that is written out."""
    largest = max(logits)
    exponentials = [math.exp(z - largest) for z in logits]
    p = [e / math.fsum(exponentials) for e in exponentials]
    others = [value for c, value in enumerate(p) if c != label]
    rest = math.fsum(e for c, e in enumerate(exponentials) if c != label) / math.fsum(exponentials)
    return {
        "probability_margin": p[label] - max(others),
        "logit_margin": logits[label] - max(z for c, z in enumerate(logits) if c != label),
        "right": float(logits.index(largest) == label),
        "el2n": math.sqrt(math.fsum(q * q for q in others) + rest * rest),
        "loss": largest - logits[label] + math.log(math.fsum(exponentials)),
        "entropy": -math.fsum(q * math.log(q) for q in p if q > 0),
        "label_probability": p[label],
    }


@settings(max_examples=200)
@given(LOGITS, st.data())
def test_a_presentation_is_what_its_definitions_say(logits, data):
    label = data.draw(st.integers(0, len(logits) - 1))
    stats = per_sample_stats(torch.tensor([logits]), torch.tensor([label]))
    expected = by_definition(logits, label)
    assert set(expected) == set(SampleStats._fields)
    for name, value in stats._asdict().items():
        assert value.item() == pytest.approx(expected[name], rel=1e-4, abs=2e-5), name


def test_a_sample_of_which_the_network_is_certain_keeps_its_digits():
    stats = per_sample_stats(torch.tensor([[30.0, 0.0, 1.0]]), torch.tensor([0]))
    expected = by_definition([30.0, 0.0, 1.0], 0)
    rest = math.exp(-30) + math.exp(-29)
    assert stats.loss.item() == pytest.approx(rest, rel=1e-5)
    assert stats.el2n.item() == pytest.approx(expected["el2n"], rel=1e-5)
    # Half precision, in which CCS keeps its logarithms, has steps of 5e-4 here: all would tie.
    close = per_sample_stats(torch.tensor([[0.0, 2e-5], [0.0, 4e-5]]), torch.tensor([1, 1]))
    assert close.probability_margin.tolist() == pytest.approx([1e-5, 2e-5], rel=1e-2)
    assert close.right.tolist() == [1, 1]


def test_a_tie_counts_for_the_lowest_class_as_argmax_does():
    assert per_sample_stats(torch.full((3, 3), 2.0), torch.arange(3)).right.tolist() == [1, 0, 0]


def test_the_margin_is_that_of_aum_and_cleanlab(tmp_path):
    from aum import AUMCalculator
    from cleanlab.rank import get_label_quality_scores

    logits, labels = torch.randn((20, 5), generator=torch.Generator()), torch.arange(20) % 5
    stats = per_sample_stats(logits, labels)
    of_aum = AUMCalculator(str(tmp_path)).update(logits, labels, list(range(20)))
    assert stats.logit_margin.tolist() == pytest.approx([of_aum[i].margin for i in range(20)])
    of_cleanlab = get_label_quality_scores(
        labels.numpy(), logits.softmax(1).numpy(), method="normalized_margin"
    )  # in [0, 1]
    np.testing.assert_allclose(stats.probability_margin, 2 * of_cleanlab - 1, atol=1e-6)


def test_the_first_bad_batch_is_recorded_with_its_bad_samples_alone():
    guard = NonFiniteGuard(4, "cpu")
    guard.check(torch.tensor([0.0, 1e30, torch.nan, -2.0]), IDS, 0)  # row 2 is padding
    assert guard.first() is None
    guard.check(torch.tensor([torch.nan, 1.0, torch.inf, -torch.inf]), IDS, 6)
    guard.check(torch.full((4,), torch.nan), IDS, 7)
    assert guard.first() == (6, [7, 5])
    short = NonFiniteGuard(4, "cpu")
    short.check(torch.tensor([1.0, torch.nan]), torch.tensor([9, 8]), 2)
    assert short.first() == (2, [8])


@given(LABELS, st.integers(1, 7), st.integers(0, 9))
def test_samples_are_dealt_class_by_class_in_the_order_of_their_keys(labels, n_folds, seed):
    keys, dealt, expected = random_keys(labels.size, seed), 0, np.full(labels.size, -1)
    for label in range(5):
        for sample in sorted(np.flatnonzero(labels == label), key=lambda i: int(keys[i])):
            expected[sample] = dealt % n_folds
            dealt += 1
    folds = stratified_folds(labels, n_folds, seed)
    np.testing.assert_array_equal(folds, expected)
    for members in (folds, *(folds[labels == label] for label in range(5))):
        assert np.ptp(np.bincount(members, minlength=n_folds)) <= 1


def batch_of(n=12, n_folds=3, n_classes=4):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((n, n_folds, n_classes), generator=generator, requires_grad=True)
    return logits, torch.arange(n) % n_classes, torch.arange(n) % n_folds


def test_the_loss_is_the_mean_of_every_classifier_over_the_samples_of_other_folds():
    logits, labels, folds = batch_of()
    means = [cross_entropy(logits[folds != fold, fold], labels[folds != fold]) for fold in range(3)]
    torch.testing.assert_close(loss_of_folds(logits, labels, folds) / len(labels), sum(means))


def test_a_classifier_learns_nothing_from_its_own_fold_or_padding():
    logits, labels, folds = batch_of()
    labels[5] = -1
    loss_of_folds(logits, labels, folds).backward()
    assert logits.grad is not None
    expected = folds[:, None] != torch.arange(3)
    expected[5] = False
    assert torch.equal(logits.grad.abs().sum(dim=2) > 0, expected)


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


def issues_of(labels, probabilities):
    confidence = probabilities[np.arange(labels.size), labels]
    thresholds = class_thresholds(confidence, labels, probabilities.shape[1])
    return label_issues(*map(torch.from_numpy, (probabilities, labels, thresholds))).numpy()


@given(st.integers(0, 10_000), st.sampled_from([None, 0, 3]))
def test_issues_are_those_of_cleanlab(seed, absent):
    labels, probabilities = noisy(seed, absent=absent)
    theirs = find_label_issues(labels, probabilities, filter_by="confident_learning")
    np.testing.assert_array_equal(issues_of(labels, probabilities), theirs)
    assert 0 < theirs.sum() < labels.size


def test_no_class_is_assigned_below_its_threshold_or_without_samples():
    labels, probabilities = np.array([0, 1, 0]), np.array([[0.9, 0.1], [0.1, 0.9], [0.49, 0.51]])
    assert not issues_of(labels, probabilities).any()  # the thresholds are 0.695 and 0.9
    thresholds = class_thresholds(np.array([0.5, 0.0]), np.array([0, 2]), 3)
    assert thresholds.tolist() == [0.5, np.inf, 2e-6]
