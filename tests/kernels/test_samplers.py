import hashlib
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coreset.kernels.samplers import (
    ClassTooSmallError,
    ccs_coreset,
    double_end_coreset,
    extreme_coreset,
    n_hardest,
    random_coreset,
)
from coreset.kernels.seeds import (
    GOLDEN_GAMMA,
    Stream,
    class_seeds,
    derived_seed,
    permutation,
    random_keys,
    splitmix64,
)

SEED = 5
ccs = partial(ccs_coreset, seed=SEED, misratio=0.3, n_bins=10)


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


def bins_by_definition(scores, budget, misratio, n_bins):
    """Pure Python from the definition: members of each bin of a class, and how many are cut."""
    by_score = sorted(range(len(scores)), key=lambda i: scores[i])
    n_cut = min(int(misratio * len(scores) + 1e-9), len(scores) - budget)
    kept = by_score[n_cut:]
    low, high = scores[kept[0]], scores[kept[-1]]
    members = [[] for _ in range(n_bins)]
    for i in kept:
        fraction = (scores[i] - low) / (high - low) if high > low else 0.0
        members[min(int(fraction * n_bins), n_bins - 1)].append(i)
    return members, n_cut


def drawn_by_definition(scores, budget, misratio, n_bins, seed):
    """Positions, and bins of them, drawn of one class."""
    members, _ = bins_by_definition(scores, budget, misratio, n_bins)
    counts = counts_one_at_a_time([len(bin_) for bin_ in members], budget)
    keys = random_keys(len(scores), seed).tolist()  # of a position, whatever is cut
    drawn = [sorted(m, key=keys.__getitem__)[:n] for m, n in zip(members, counts, strict=True)]
    return {i: b for b, of_bin in enumerate(drawn) for i in of_bin}


def test_three_selections_are_those_of_every_version():
    labels = (random_keys(6000, 1) % np.uint64(12)).astype(np.int64)
    scores = ((random_keys(6000, 2) >> np.uint64(40)).astype(np.float32) / 2**24) ** 3
    fifty, ten = np.full(12, 50), np.full(12, 10)
    ties = np.round(scores * 8)
    selections = {
        "fdf425a058b66cf7": random_coreset(labels, fifty, 7),
        "e524c8a861b61934": ccs_coreset(scores, labels, fifty, 7, misratio=0.7, n_bins=50),
        "f3200721f2fe586b": ccs_coreset(ties, labels, ten, 7, misratio=0.3, n_bins=50),
    }
    for digest, selection in selections.items():
        assert hashlib.sha256(selection.positions.tobytes()).hexdigest().startswith(digest)


@given(
    hnp.arrays(np.float32, st.integers(1, 120), elements=st.floats(-4, 4, width=16)),
    st.data(),
    st.sampled_from([0.0, 0.1, 0.29, 0.5, 0.7, 0.9]),
    st.integers(1, 50),
    st.integers(0, 2**64 - 1),
)
def test_draws_match_the_slow_definition_bin_by_bin(scores, data, misratio, n_bins, seed):
    budget = data.draw(st.integers(1, len(scores)))
    labels, budgets = np.zeros(scores.size, np.int64), np.array([budget])
    chosen = ccs_coreset(scores, labels, budgets, seed, misratio=misratio, n_bins=n_bins)
    own = derived_seed(seed, 0)
    expected = drawn_by_definition(scores.tolist(), budget, misratio, n_bins, own)
    assert chosen.bins is not None
    assert dict(zip(chosen.positions.tolist(), chosen.bins.tolist(), strict=True)) == expected
    keys = random_keys(scores.size, own)[chosen.positions]
    assert (
        chosen.positions[np.argsort(chosen.ranks)].tolist()
        == chosen.positions[np.argsort(keys)].tolist()
    )


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    data=st.data(),
    order=st.randoms(use_true_random=False),
)
def test_every_class_is_drawn_as_if_it_stood_alone(sizes, data, order):
    """Whatever the order of samples and classes: by a loop over the classes, one by one."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order.shuffle(labels)
    scores = hnp.arrays(np.float64, labels.size, elements=st.floats(-1e300, 1e300))
    values = data.draw(st.one_of(scores, scores.map(np.round), scores.map(np.sign)))
    budgets = np.array([data.draw(st.integers(1, size)) for size in sizes])
    chosen = ccs_coreset(values, labels, budgets, 3, misratio=0.5, n_bins=7)
    expected, lowered = [], []
    for c, budget in enumerate(budgets.tolist()):
        members = np.flatnonzero(labels == c)
        of_class = values[members].tolist()
        assume(np.isfinite(max(of_class) - min(of_class)))
        drawn = drawn_by_definition(of_class, budget, 0.5, 7, derived_seed(3, c))
        expected += members[sorted(drawn)].tolist()
        lowered += [c] if members.size - budget < members.size // 2 else []
    assert chosen.positions.tolist() == sorted(expected)
    assert chosen.lowered == tuple(lowered)
    at_random = random_coreset(labels, budgets, 3)
    assert np.bincount(labels[at_random.positions], minlength=len(sizes)).tolist() == [*budgets]


@pytest.mark.parametrize("unit", [5e-324, 1e-30, 1.0, 1e300])
def test_bins_do_not_depend_on_the_magnitude_of_the_range(unit):
    scores = np.array([-2.0, -1.9, -1.0, 0.0, 1.0, 1.5, 2.0]) * unit
    one_class = np.zeros(7, np.int64), np.array([7])
    chosen = ccs_coreset(scores, *one_class, 0, misratio=0, n_bins=4)
    assert chosen.bins is not None
    assert chosen.bins.tolist() == [0, 0, 1, 2, 3, 3, 3]


@given(st.integers(1, 2_000_000), st.integers(0, 999))
def test_the_cut_is_rounded_down_but_not_by_a_rounding_error(n, thousandths):
    assert n_hardest(n, thousandths / 1000) == n * thousandths // 1000


def labelled_scores(sizes, seed):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return generator.normal(size=labels.size).astype(np.float32), labels


@given(
    sizes=st.lists(st.integers(5, 40), min_size=1, max_size=8),
    ipc=st.integers(1, 5),
    cut=st.sampled_from([0.0, 0.3, 0.9]),
    n_bins=st.integers(1, 50),
    seed=st.integers(0, 2**32),
)
def test_exactly_the_budget_of_every_class_is_chosen(sizes, ipc, cut, n_bins, seed):
    scores, labels = labelled_scores(sizes, seed)
    budgets = np.minimum(np.arange(len(sizes)) + ipc, sizes)
    for selection in (
        ccs_coreset(scores, labels, budgets, seed, misratio=cut, n_bins=n_bins),
        random_coreset(labels, budgets, seed),
        extreme_coreset(scores, labels, budgets, easy=seed % 2 == 0),
        double_end_coreset(scores, labels, budgets, seed, misratio=cut, cut_easy=1 - cut),
    ):
        assert selection.positions.dtype == np.int64
        assert (np.diff(selection.positions) > 0).all()
        chosen = labels[selection.positions]
        assert np.bincount(chosen, minlength=len(sizes)).tolist() == budgets.tolist()
        for c, budget in enumerate(budgets):
            assert sorted(selection.ranks[chosen == c]) == list(range(budget))


@given(st.integers(1, 60), st.data())
def test_as_many_bins_as_images_leave_no_bin_without_one(ipc, data):
    n = data.draw(st.integers(ipc, 200))
    scores = data.draw(hnp.arrays(np.float32, n, elements=st.floats(-1, 1, width=16)))
    one_class, n_bins = (np.zeros(n, np.int64), np.array([ipc])), min(50, ipc)
    chosen = ccs_coreset(scores, *one_class, 0, misratio=0, n_bins=n_bins)
    members, _ = bins_by_definition(scores.tolist(), ipc, 0, n_bins)
    assert chosen.bins is not None
    assert set(chosen.bins.tolist()) == {b for b, those in enumerate(members) if those}


def published_counts(scores, budget, n_bins):
    """Sizes and budgets of the bins by `stratified_sampling` of the authors' code, restated.

    Its arithmetic is torch's on float32; None where it loses samples.
    """
    low, high = scores.min(), scores.max() * np.float32(1.0001)
    step = (high - low) / np.float32(n_bins)
    edges = [low + np.float32(k) * step for k in range(n_bins + 1)]
    inside = [(scores >= a) & (scores < b) for a, b in pairwise(edges)]
    sizes = np.array([part.sum() for part in inside])
    if sizes.sum() < scores.size:
        return None
    rest, counts = budget, []
    for i, size in enumerate(sorted(sizes)):
        counts.append(min(size, rest // (n_bins - i)))
        rest -= counts[-1]
    return sizes.tolist(), counts


@settings(max_examples=300)
@given(
    st.sampled_from([(-1, 1), (-1, -0.25), (0, 1)]).flatmap(
        lambda ends: hnp.arrays(
            np.float32, st.integers(1, 150), elements=st.floats(*ends, width=32)
        )
    ),
    st.data(),
    st.integers(1, 50),
)
def test_the_published_dialect_has_the_bins_and_counts_of_the_authors_code(scores, data, n_bins):
    budget = data.draw(st.integers(1, scores.size))
    one_class = np.zeros(scores.size, np.int64), np.array([budget])
    draw = partial(ccs_coreset, scores, *one_class, 0, misratio=0, n_bins=n_bins, published=True)
    expected = published_counts(scores, budget, n_bins)
    if expected is None:
        with pytest.raises(ValueError, match=r"\d+ samples lie in no bin of the published rule"):
            draw()
        return
    sizes, counts = expected
    chosen = draw()
    assert chosen.bins is not None
    drawn = np.bincount(chosen.bins, minlength=n_bins).tolist()
    # Which of equally large bins comes first is the unstable sort's choice.
    assert sorted(zip(sizes, drawn, strict=True)) == sorted(zip(sorted(sizes), counts, strict=True))


def test_the_seed_and_the_class_decide_the_draw():
    labels, ten = np.repeat(np.arange(2), 40), np.array([10, 10])
    ids = [ccs(np.zeros(80), labels, ten, seed=seed).positions.tolist() for seed in (0, 0, 1)]
    ids += [random_coreset(labels, ten, seed).positions.tolist() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[3] == ids[4] != ids[5]
    assert all(drawn[:10] != [i - 40 for i in drawn[10:]] for drawn in ids)


def test_classes_whose_cut_was_lowered_are_named():
    scores, labels = labelled_scores([100, 12, 100], seed=3)
    ten = np.full(3, 10)
    assert ccs(scores, labels, ten, misratio=0.5).lowered == (1,)
    assert random_coreset(labels, ten, seed=0).lowered == ()
    both = partial(double_end_coreset, scores, labels, ten, 0)
    assert both(misratio=0.5, cut_easy=0.0).lowered == (1,)
    assert both(misratio=0.1, cut_easy=0.2).lowered == (1,)
    assert both(misratio=0.1, cut_easy=0.0).lowered == ()


def test_the_ends_of_a_class_are_its_lowest_and_highest_scores_the_extreme_one_first():
    scores = np.array([0.5, 0.1, 0.9, 0.1, -1.0, 3.0, 2.0])
    labels, two = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([2, 2])
    for easy, order in ((False, [[1, 3], [4, 6]]), (True, [[2, 0], [5, 6]])):
        chosen = extreme_coreset(scores, labels, two, easy=easy)
        by_rank = chosen.positions[np.lexsort((chosen.ranks, labels[chosen.positions]))]
        assert by_rank.reshape(2, 2).tolist() == order


def test_what_is_cut_at_either_end_is_never_drawn_and_all_else_is():
    scores, labels = np.arange(20.0)[::-1].copy(), np.zeros(20, np.int64)
    seen = [
        double_end_coreset(scores, labels, np.array([3]), seed, misratio=0.3, cut_easy=0.2)
        for seed in range(60)
    ]
    drawn = {float(scores[i]) for those in seen for i in those.positions}
    assert drawn == set(range(6, 16))
    tight = double_end_coreset(scores, labels, np.array([10]), 0, misratio=0.3, cut_easy=0.6)
    assert sorted(scores[tight.positions]) == [*range(6, 16)]  # the easy end gives way first


def test_a_random_coreset_draws_every_sample_equally_often():
    labels, three = np.arange(24) % 2, np.array([3, 3])
    counts = np.zeros(24)
    for seed in range(3000):
        counts[random_coreset(labels, three, seed).positions] += 1
    # 3 of 12, 3000 times: 750 expected, binomial sigma 23.7.
    assert (np.abs(counts - 750) < 5 * 23.7).all()


@pytest.mark.parametrize(
    "select",
    [
        partial(ccs, np.zeros(5)),
        partial(random_coreset, seed=0),
        partial(extreme_coreset, np.zeros(5), easy=True),
        partial(double_end_coreset, np.zeros(5), seed=0, misratio=0, cut_easy=0),
    ],
)
def test_a_class_smaller_than_its_budget_is_refused_by_number(select):
    with pytest.raises(ClassTooSmallError, match="class 1 has 0 samples") as caught:
        select(np.array([0, 0, 0, 2, 2]), np.full(3, 2))
    assert (caught.value.class_index, caught.value.size) == (1, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=f"scores must be finite, got {bad}"):
        ccs(np.array([1.0, bad]), np.zeros(2, np.int64), np.array([1]))


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
    assert class_seeds(-7, 40).tolist() == [derived_seed(-7, c) for c in range(40)]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        ("RANDOM CCS DOUBLE_END PROTOTYPES DEDUP_RANDOM", [0, 1, 2, 3, 4]),
        ("FOLDS", [-1]),
        ("BLOCKS SAMPLES", [0, 1]),
        ("TRUE_LABEL FLIP OTHER_LABEL DIFFICULTY TEXTURE CLASS IMAGE", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_streams_keep_the_numbers_that_draws_on_disk_depend_on(names, numbers):
    assert [getattr(Stream, name) for name in names.split()] == numbers
