from functools import partial
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coreset.kernels.samplers import (
    ClassTooSmallError,
    bin_of,
    ccs_coreset,
    ccs_draw,
    n_hardest,
    random_coreset,
    stratum_counts,
)
from coreset.kernels.seeds import (
    GOLDEN_GAMMA,
    Stream,
    derived_seed,
    permutation,
    random_keys,
    splitmix64,
)

SEED = 5
ccs = partial(ccs_coreset, misratio=0.3, n_bins=10, seed=SEED)


def counts_one_at_a_time(sizes, budget):
    """Slow reference: hand out one sample at a time to the poorest stratum that has one left.

    The samples left over when not every stratum can get one more go to the largest strata: the
    even parts are rounded down, so what is left stays for those that come last.
    """
    counts = [0] * len(sizes)
    ranks = sorted(range(len(sizes)), key=lambda i: sizes[i])
    while budget:
        hungry = [i for i in ranks if counts[i] < sizes[i]]
        for i in hungry[-min(budget, len(hungry)) :]:
            counts[i] += 1
            budget -= 1
    return counts


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.data())
def test_counts_match_the_one_at_a_time_reference(sizes, data):
    budget = data.draw(st.integers(0, sum(sizes)))
    counts = stratum_counts(np.array(sizes), budget)
    assert counts.sum() == budget
    assert counts.tolist() == counts_one_at_a_time(sizes, budget)


@pytest.mark.parametrize("unit", [5e-324, 1e-30, 1.0, 1e300])
def test_bins_do_not_depend_on_the_magnitude_of_the_range(unit):
    scores = np.array([-2.0, -1.9, -1.0, 0.0, 1.0, 1.5, 2.0]) * unit
    assert bin_of(scores, 4).tolist() == [0, 0, 1, 2, 3, 3, 3]


@given(st.integers(1, 2_000_000), st.integers(0, 999))
def test_the_cut_is_rounded_down_but_not_by_a_rounding_error(n, thousandths):
    assert n_hardest(n, thousandths / 1000) == n * thousandths // 1000


def ccs_bins_by_definition(scores, budget, misratio, n_bins):
    """Pure Python from the definition: members of each bin, samples to draw of each, cut."""
    by_score = sorted(range(len(scores)), key=lambda i: scores[i])
    n_cut = min(int(misratio * len(scores) + 1e-9), len(scores) - budget)
    kept = by_score[n_cut:]
    low, high = scores[kept[0]], scores[kept[-1]]
    members = [[] for _ in range(n_bins)]
    for i in kept:
        fraction = (scores[i] - low) / (high - low) if high > low else 0.0
        members[min(int(fraction * n_bins), n_bins - 1)].append(i)
    return members, counts_one_at_a_time([len(bin_) for bin_ in members], budget), n_cut


@given(
    hnp.arrays(np.float32, st.integers(1, 120), elements=st.floats(-4, 4, width=16)),
    st.data(),
    st.sampled_from([0.0, 0.1, 0.29, 0.5, 0.7, 0.9]),
    st.integers(1, 50),
    st.integers(0, 2**64 - 1),
)
def test_draws_match_the_slow_definition_bin_by_bin(scores, data, misratio, n_bins, seed):
    budget = data.draw(st.integers(1, len(scores)))
    positions, n_cut = ccs_draw(scores, budget, misratio=misratio, n_bins=n_bins, seed=seed)
    members, counts, expected = ccs_bins_by_definition(scores.tolist(), budget, misratio, n_bins)
    assert n_cut == expected
    keys = random_keys(len(scores), seed).tolist()  # of a position, whatever is cut
    drawn = [sorted(m, key=keys.__getitem__)[:n] for m, n in zip(members, counts, strict=True)]
    assert positions.tolist() == sorted(chain(*drawn))


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


@given(st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_a_class_is_drawn_as_if_it_stood_alone(random):
    scores, labels = labelled_scores([20, 25, 30], seed=1)
    # Move the samples of classes 1 and 2 about, scores and labels alike; class 0 stays in place.
    others = np.flatnonzero(labels != 0).tolist()
    moved = np.arange(labels.size)
    moved[others] = random.sample(others, len(others))
    members = np.flatnonzero(labels == 0)
    seed = derived_seed(SEED, 0)
    alone, _ = ccs_draw(scores[members], 6, misratio=0.3, n_bins=10, seed=seed)
    chosen = ccs(scores[moved], labels[moved], 3, 6).ids
    assert chosen[labels[moved][chosen] == 0].tolist() == members[alone].tolist()
    before, after = (random_coreset(some, 3, 6, seed=5).ids for some in (labels, labels[moved]))
    assert set(before[labels[before] == 0]) == set(after[labels[moved][after] == 0])


def test_the_seed_and_the_class_decide_the_draw():
    labels = np.repeat(np.arange(2), 40)
    ids = [ccs(np.zeros(80), labels, 2, 10, seed=seed).ids.tolist() for seed in (0, 0, 1)]
    ids += [random_coreset(labels, 2, 10, seed).ids.tolist() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[3] == ids[4] != ids[5]
    assert all(drawn[:10] != [i - 40 for i in drawn[10:]] for drawn in ids)


def test_classes_whose_cut_was_lowered_are_named():
    scores, labels = labelled_scores([100, 12, 100], seed=3)
    assert ccs(scores, labels, 3, 10, misratio=0.5).lowered == (1,)
    assert random_coreset(labels, 3, 10, seed=0).lowered == ()


def test_a_random_coreset_draws_every_sample_equally_often():
    labels = np.arange(24) % 2
    counts = np.zeros(24)
    for seed in range(3000):
        counts[random_coreset(labels, 2, 3, seed).ids] += 1
    # 3 of 12, 3000 times: 750 expected, binomial sigma 23.7.
    assert (np.abs(counts - 750) < 5 * 23.7).all()


@pytest.mark.parametrize("select", [partial(ccs, np.zeros(5)), partial(random_coreset, seed=0)])
def test_a_class_smaller_than_ipc_is_refused_by_number(select):
    with pytest.raises(ClassTooSmallError, match="class 1 has 0 samples") as caught:
        select(np.array([0, 0, 0, 2, 2]), 3, 2)
    assert (caught.value.class_index, caught.value.size) == (1, 0)


# What the draws come from.


def test_splitmix64_gives_the_published_stream():
    assert splitmix64(np.zeros(1, dtype=np.uint64)).tolist() == [16294208416658607535]
    states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * GOLDEN_GAMMA
    assert splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.integers(0, 500), st.integers(0, 100), st.integers(-(2**70), 2**70))
def test_a_permutation_holds_every_position_once_by_keys_that_do_not_know_the_length(n, more, seed):
    assert sorted(permutation(n, seed).tolist()) == list(range(n))
    np.testing.assert_array_equal(random_keys(n, seed), random_keys(n + more, seed)[:n])


def test_derived_seeds_differ_by_run_by_place_by_depth_and_by_order():
    seeds = [derived_seed(run, place) for run in range(50) for place in range(50)]
    seeds += [derived_seed(run, place, 0) for run in range(50) for place in range(50)]
    seeds += [derived_seed(0, 1, 2), derived_seed(0, 2, 1)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        ("RANDOM CCS", [0, 1]),
        ("FOLDS", [-1]),
        ("BLOCKS SAMPLES", [0, 1]),
        ("TRUE_LABEL FLIP OTHER_LABEL DIFFICULTY TEXTURE CLASS IMAGE", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_streams_keep_the_numbers_that_draws_on_disk_depend_on(names, numbers):
    assert [getattr(Stream, name) for name in names.split()] == numbers
