from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.kernels.samplers import ClassTooSmallError, ccs_coreset, ccs_draw, random_coreset
from coreset.kernels.seeds import derived_seed

SEED = 5
ccs = partial(ccs_coreset, misratio=0.3, n_bins=10, seed=SEED)


def labelled_scores(sizes, seed):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return generator.normal(size=labels.size).astype(np.float32), labels


@given(
    sizes=st.lists(st.integers(5, 40), min_size=1, max_size=8),
    ipc=st.integers(1, 5),
    misratio=st.sampled_from([0.0, 0.3, 0.9]),
    n_bins=st.integers(1, 50),
    seed=st.integers(0, 2**32),
)
def test_exactly_ipc_of_every_class_are_chosen(sizes, ipc, misratio, n_bins, seed):
    scores, labels = labelled_scores(sizes, seed)
    n = len(sizes)
    stratified = ccs_coreset(scores, labels, n, ipc, misratio=misratio, n_bins=n_bins, seed=seed)
    for selection in (stratified, random_coreset(labels, n, ipc, seed)):
        assert selection.ids.dtype == np.int64
        assert (np.diff(selection.ids) > 0).all()
        assert np.bincount(labels[selection.ids], minlength=n).tolist() == [ipc] * n
        assert selection.n_cut.shape == (n,)


def test_a_class_is_drawn_as_if_it_stood_alone():
    scores, labels = labelled_scores([30, 40, 50], seed=0)
    chosen = ccs(scores, labels, 3, 7).ids
    for c in range(3):
        members = np.flatnonzero(labels == c)
        alone = ccs_draw(scores[members], 7, misratio=0.3, n_bins=10, seed=derived_seed(SEED, c))
        assert np.intersect1d(chosen, members).tolist() == members[alone.positions].tolist()


@given(st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_the_order_of_other_classes_does_not_change_a_class(random):
    scores, labels = labelled_scores([20, 25, 30], seed=1)
    # Move the samples of classes 1 and 2 about, scores and labels alike; class 0 stays in place.
    others = np.flatnonzero(labels != 0).tolist()
    moved = np.arange(labels.size)
    moved[others] = random.sample(others, len(others))
    before = ccs(scores, labels, 3, 6).ids
    after = ccs(scores[moved], labels[moved], 3, 6).ids
    assert before[labels[before] == 0].tolist() == after[labels[moved][after] == 0].tolist()
    by_chance = random_coreset(labels, 3, 6, seed=5).ids
    moved_by_chance = random_coreset(labels[moved], 3, 6, seed=5).ids
    assert (
        by_chance[labels[by_chance] == 0].tolist()
        == moved_by_chance[labels[moved][moved_by_chance] == 0].tolist()
    )


def test_the_seed_alone_decides_the_draw():
    scores, labels = labelled_scores([50] * 4, seed=2)

    def ids(seed):
        stratified = ccs_coreset(scores, labels, 4, 10, misratio=0.3, n_bins=10, seed=seed)
        return stratified.ids.tolist(), random_coreset(labels, 4, 10, seed).ids.tolist()

    assert ids(0) == ids(0)
    assert ids(0)[0] != ids(1)[0]
    assert ids(0)[1] != ids(1)[1]


def test_classes_of_equal_scores_are_not_drawn_alike():
    labels = np.repeat(np.arange(2), 40)
    ids = ccs_coreset(np.zeros(80), labels, 2, 10, misratio=0.0, n_bins=10, seed=0).ids
    assert ids[:10].tolist() != (ids[10:] - 40).tolist()


def test_classes_whose_cut_was_lowered_are_named():
    scores, labels = labelled_scores([100, 12, 100], seed=3)
    selection = ccs_coreset(scores, labels, 3, 10, misratio=0.5, n_bins=10, seed=0)
    assert selection.n_cut.tolist() == [50, 2, 50]
    assert selection.lowered == (1,)


def test_a_random_coreset_cuts_nothing():
    selection = random_coreset(np.zeros(9, dtype=np.int64), 1, 3, seed=0)
    assert (selection.n_cut.tolist(), selection.lowered) == ([0], ())


def test_a_random_coreset_draws_every_sample_equally_often():
    labels = np.arange(24) % 2
    counts = np.zeros(24)
    for seed in range(3000):
        counts[random_coreset(labels, 2, 3, seed).ids] += 1
    # 3 of 12, 3000 times: 750 expected, binomial sigma 23.7.
    assert (np.abs(counts - 750) < 5 * 23.7).all()


def test_only_the_scores_of_the_own_class_are_cut():
    labels = np.repeat(np.arange(2), 10)
    scores = np.concatenate((np.arange(10.0), np.arange(10.0) + 100))
    ids = ccs_coreset(scores, labels, 2, 5, misratio=0.5, n_bins=5, seed=0).ids
    assert ids.tolist() == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19]


@pytest.mark.parametrize(
    "select",
    [
        lambda labels: ccs(np.zeros(labels.size), labels, 3, 2),
        lambda labels: random_coreset(labels, 3, 2, seed=0),
    ],
)
def test_a_class_smaller_than_ipc_is_refused_by_number(select):
    with pytest.raises(ClassTooSmallError, match="got 2, but class 1 has 0 samples") as caught:
        select(np.array([0, 0, 0, 2, 2]))
    assert (caught.value.class_index, caught.value.size, caught.value.ipc) == (1, 0, 2)


def test_a_missing_score_is_refused_with_its_sample_id():
    scores, labels = labelled_scores([10, 10], seed=4)
    scores[13] = np.nan
    with pytest.raises(ValueError, match="got nan at position 13"):
        ccs(scores, labels, 2, 3)


def test_scores_of_another_data_set_are_refused():
    with pytest.raises(ValueError, match="got 4 scores and 5 labels"):
        ccs(np.zeros(4), np.zeros(5, dtype=np.int64), 1, 2)


@pytest.mark.parametrize(("n_classes", "ipc"), [(0, 1), (1, 0)])
def test_counts_below_one_are_refused(n_classes, ipc):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        random_coreset(np.zeros(5, dtype=np.int64), n_classes, ipc, seed=0)
