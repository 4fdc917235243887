"""Scores of features without training, beside double loops from their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.kernels import feature_scores, neighbours
from coreset.kernels.feature_scores import class_mean_margins, knn_disagreement

seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Blocks of 7 rows of width 4, so that a few rows are several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK_BYTES", 7 * 4 * 4)
        patch.setattr(feature_scores, "_BLOCK_ROWS", 7)
        yield


def sample(n, n_classes, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(0.3, 1, (n, 4)).astype(np.float16)
    return features, rng.integers(0, n_classes, n)


def margin_slowly(features, labels, n_classes, at):
    """Margin of one row, and its class if that is told by the largest cosine."""
    unit = [row / np.linalg.norm(row) for row in features.astype(np.float64)]
    cosines = {}
    for label in range(n_classes):
        members = [unit[i] for i in range(len(unit)) if labels[i] == label and i != at]
        if members:
            mean = np.mean(members, axis=0)
            cosines[label] = unit[at] @ mean / np.linalg.norm(mean)
    own = cosines.pop(labels[at], np.nan)
    nearest = max(cosines, key=cosines.__getitem__)
    margin = own - cosines[nearest]
    return margin, labels[at] if margin >= 0 else nearest


@given(st.integers(2, 30), st.integers(2, 6), seeds)
def test_margins_are_those_of_a_double_loop(n, n_classes, seed):
    features, labels = sample(n, n_classes, seed)
    labels[:2] = 0, 1
    margins, predicted = class_mean_margins(features, labels, n_classes)
    slow = [margin_slowly(features, labels, n_classes, at) for at in range(n)]
    np.testing.assert_allclose(margins, [margin for margin, _ in slow], atol=2e-6)
    is_clear = np.abs(margins) > 1e-5
    assert predicted[is_clear].tolist() == [
        label for (_, label), clear in zip(slow, is_clear, strict=True) if clear
    ]
    assert (margins.dtype, predicted.dtype) == (np.float32, np.int32)


def test_the_only_row_of_a_class_has_no_margin_and_the_nearest_other_class():
    features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    margins, predicted = class_mean_margins(features, np.array([0, 2, 3, 3]), 5)
    assert np.isnan(margins).tolist() == [True, True, False, False]
    assert predicted.tolist() == [2, 0, 3, 3]  # classes 1 and 4 have no row


def test_a_mean_without_direction_gives_no_margin():
    opposite = np.array([[1, 0], [-1, 0], [0, 1], [0.6, 0.8], [0.6, 0.8]], np.float32)
    margins, _ = class_mean_margins(opposite, np.array([0, 0, 0, 1, 1]), 2)
    assert np.isnan(margins).tolist() == [False, False, True, False, False]
    assert margins[3] == pytest.approx(0.2)


def disagreement_slowly(features, labels, k, at):
    unit = [row / np.linalg.norm(row) for row in features.astype(np.float64)]
    others = sorted((i for i in range(len(unit)) if i != at), key=lambda i: -unit[i] @ unit[at])
    return sum(labels[i] != labels[at] for i in others[:k]) / k


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(1, 12), seeds)
def test_disagreement_is_that_of_a_double_loop(n, k, seed):
    features, labels = sample(n, 3, seed)
    features = features.astype(np.float32) + np.random.default_rng(seed).normal(0, 1e-2, (n, 4))
    k = min(k, n - 1)
    shares = np.concatenate(list(knn_disagreement(features, labels, k)))
    slow = [disagreement_slowly(features, labels, k, at) for at in range(n)]
    np.testing.assert_allclose(shares, slow, atol=1e-6)


def test_no_row_is_its_own_neighbour_among_copies():
    shares = knn_disagreement(np.ones((20, 4), np.float16), np.arange(20), 10)
    assert np.concatenate(list(shares)).tolist() == [1.0] * 20


def test_neighbours_come_nearest_first_whatever_their_length():
    angles, lengths = np.radians([0, 10, 25, 50, 90, 91, 93, 96, 100]), np.arange(1.0, 10)[:, None]
    features = np.stack((np.cos(angles), np.sin(angles), 0 * angles, 0 * angles), 1) * lengths
    found = np.concatenate(list(neighbours.nearest_others(features, 3)))
    assert found[0].tolist() == [1, 2, 3]
    assert found[4].tolist() == [5, 6, 7]
    assert found[8].tolist() == [7, 6, 5]


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_planted_flips_are_found(spread, monkeypatch):
    from sklearn.metrics import roc_auc_score

    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 1 << 14)
    rng = np.random.default_rng(3)
    truth = np.arange(600) % 6
    features = rng.normal(0, 1, (6, 16))[truth] + rng.normal(0, spread, (600, 16))
    flipped = rng.random(600) < 0.25
    labels = np.where(flipped, (truth + rng.integers(1, 6, 600)) % 6, truth)
    margins, predicted = class_mean_margins(features, labels, 6)
    shares = np.concatenate(list(knn_disagreement(features, labels, 10)))
    assert roc_auc_score(flipped, -margins) > 0.98
    assert roc_auc_score(flipped, shares) > 0.95
    assert (predicted == truth).mean() > 0.95


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_a_row_without_direction_is_refused(value):
    features, labels = sample(30, 3, 0)
    features[17] = value
    for score in (
        lambda: class_mean_margins(features, labels, 3),
        lambda: list(knn_disagreement(features, labels, 10)),
    ):
        with pytest.raises(ValueError, match=r"finite and not all zero.* position 17 \(1 in all\)"):
            score()
