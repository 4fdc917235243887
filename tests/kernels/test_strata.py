import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coreset.kernels.samplers import bin_of, ccs_draw, n_hardest, positions_by_class, stratum_counts

any_finite = st.floats(allow_nan=False, allow_infinity=False)
score_arrays = st.one_of(
    hnp.arrays(np.float32, st.integers(1, 80), elements=st.floats(-1, 1, width=32)),
    hnp.arrays(np.float32, st.integers(1, 80), elements=st.sampled_from([-0.5, -0.25, 0.0, 1.0])),
    hnp.arrays(np.float64, st.integers(1, 80), elements=any_finite),
)


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


@pytest.mark.parametrize("budget", [-1, 7])
def test_a_budget_beyond_the_samples_is_refused(budget):
    with pytest.raises(
        ValueError, match=rf"budget must be in \[0, 6\] \(all samples\), got {budget}"
    ):
        stratum_counts(np.array([1, 2, 3]), budget)


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="sizes must be at least 0, got -1"):
        stratum_counts(np.array([3, -1]), 1)


@given(score_arrays, st.integers(1, 60))
def test_every_score_is_in_one_bin_and_bins_grow_with_scores(scores, n_bins):
    bins = bin_of(scores, n_bins)
    assert bins.shape == scores.shape
    assert bins.min() == 0
    assert bins.max() == (n_bins - 1 if scores.min() < scores.max() else 0)
    assert (np.diff(bins[np.argsort(scores, kind="stable")]) >= 0).all()


@given(
    hnp.arrays(np.int64, st.integers(2, 60), elements=st.integers(-200, 200)), st.integers(1, 50)
)
def test_bins_have_equal_widths_closed_below(integers, n_bins):
    low, high = int(integers.min()), int(integers.max())
    # In integers, so that no rounding decides: floor((x - low) * n / (high - low)).
    expected = [min((int(x) - low) * n_bins // max(high - low, 1), n_bins - 1) for x in integers]
    # Powers of two scale exactly; a quotient that is a whole number of bins may round below it.
    bins = bin_of(integers / 256, n_bins)
    on_an_edge = np.array([(int(x) - low) * n_bins % max(high - low, 1) == 0 for x in integers])
    np.testing.assert_array_equal(bins[~on_an_edge], np.array(expected)[~on_an_edge])
    assert (np.abs(bins - expected) <= 1).all()


@pytest.mark.parametrize("unit", [np.finfo(np.float64).max / 2, 5e-324, 1e-30, 1.0])
def test_bins_do_not_depend_on_the_magnitude_of_the_range(unit):
    assert bin_of(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) * unit, 4).tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("value", [3.0, 0.0, -2.0])
def test_identical_scores_share_one_bin(value):
    assert bin_of(np.full(5, value, dtype=np.float32), 50).tolist() == [0] * 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_position(bad):
    scores = np.array([0.5, bad, bad], dtype=np.float32)
    with pytest.raises(ValueError, match=r"must be finite, got -?(nan|inf) at position 1 \(2 in"):
        bin_of(scores, 3)
    with pytest.raises(ValueError, match="at position 1"):
        ccs_draw(scores, 1, misratio=0.9, n_bins=5, seed=0)


def test_no_bins_and_no_scores_are_refused():
    with pytest.raises(ValueError, match="n_bins must be at least 1, got 0"):
        bin_of(np.zeros(3), 0)
    with pytest.raises(ValueError, match="scores must not be empty"):
        bin_of(np.zeros(0), 5)


@pytest.mark.parametrize(
    ("n", "misratio", "expected"),
    [(100, 0.29, 29), (10, 0.7, 7), (3, 1 / 3, 1), (858, 0.9, 772), (7, 0.5, 3), (1, 0.999, 0)],
)
def test_the_cut_is_rounded_down_but_not_by_a_rounding_error(n, misratio, expected):
    assert n_hardest(n, misratio) == expected


@given(st.integers(1, 2_000_000), st.integers(0, 999))
def test_the_cut_equals_exact_arithmetic_on_thousandths(n, thousandths):
    assert n_hardest(n, thousandths / 1000) == n * thousandths // 1000


@pytest.mark.parametrize("misratio", [-0.1, 1.0, float("nan")])
def test_a_misratio_outside_its_range_is_refused(misratio):
    with pytest.raises(ValueError, match=r"misratio must be in \[0, 1\), got"):
        n_hardest(10, misratio)


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
    counts, remaining = [0] * n_bins, budget
    for rank, b in enumerate(sorted(range(n_bins), key=lambda b: len(members[b]))):
        counts[b] = min(len(members[b]), remaining // (n_bins - rank))
        remaining -= counts[b]
    return members, counts, n_cut


@given(
    hnp.arrays(np.float32, st.integers(1, 120), elements=st.floats(-4, 4, width=16)),
    st.data(),
    st.sampled_from([0.0, 0.1, 0.29, 0.5, 0.7, 0.9]),
    st.integers(1, 50),
    st.integers(0, 2**64 - 1),
)
def test_draws_match_the_slow_definition_bin_by_bin(scores, data, misratio, n_bins, seed):
    budget = data.draw(st.integers(1, len(scores)))
    draw = ccs_draw(scores, budget, misratio=misratio, n_bins=n_bins, seed=seed)
    members, counts, n_cut = ccs_bins_by_definition(scores.tolist(), budget, misratio, n_bins)
    assert draw.n_cut == n_cut
    assert len(set(draw.positions.tolist())) == budget
    assert (np.diff(draw.positions) > 0).all()
    drawn = set(draw.positions.tolist())
    assert [len(drawn.intersection(m)) for m in members] == counts


def test_the_easiest_is_eligible_when_all_scores_are_negative():
    scores = -np.arange(1, 21, dtype=np.float32)
    everything = ccs_draw(scores, 20, misratio=0.5, n_bins=50, seed=0)
    np.testing.assert_array_equal(everything.positions, np.arange(20))
    # One bin each for the easiest and the rest: the smaller bin is filled first.
    lonely = np.array([-9.0, -8.9, -8.8, -8.7, -1.0], dtype=np.float32)
    assert 4 in ccs_draw(lonely, 2, misratio=0.0, n_bins=2, seed=0).positions


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_identical_scores_give_a_full_budget_without_the_cut(value):
    draw = ccs_draw(np.full(40, value), 15, misratio=0.5, n_bins=50, seed=0)
    assert (draw.positions.size, draw.n_cut) == (15, 20)
    # Ties are cut from the front.
    assert draw.positions.min() >= 20


def test_the_cut_is_lowered_to_leave_the_budget():
    draw = ccs_draw(np.arange(10.0), 4, misratio=0.9, n_bins=5, seed=0)
    assert (draw.positions.tolist(), draw.n_cut) == ([6, 7, 8, 9], 6)


def test_every_candidate_of_a_bin_is_drawn_equally_often():
    scores = np.concatenate((np.zeros(8), np.ones(12)))
    draws, budget = 4000, 8
    counts = np.zeros(20)
    for seed in range(draws):
        counts[ccs_draw(scores, budget, misratio=0.0, n_bins=2, seed=seed).positions] += 1
    expected = draws * np.where(scores == 0, 4 / 8, 4 / 12)
    # Draws without replacement vary less than the binomial law, so five of its sigmas is loose.
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_pairs_within_a_bin_are_drawn_together_equally_often():
    n, draws = 6, 3000
    together = np.zeros((n, n))
    for seed in range(draws):
        chosen = ccs_draw(np.zeros(n), 2, misratio=0.0, n_bins=5, seed=seed).positions
        together[chosen[0], chosen[1]] += 1
    pairs = together[np.triu_indices(n, 1)]
    # 15 pairs, 14 degrees of freedom: 45 lies beyond the 0.9999 quantile.
    assert ((pairs - draws / 15) ** 2 / (draws / 15)).sum() < 45


@pytest.mark.parametrize("budget", [0, 6])
def test_a_draw_outside_the_samples_is_refused(budget):
    with pytest.raises(ValueError, match=r"budget must be in \[1, 5\]"):
        ccs_draw(np.zeros(5), budget, misratio=0.0, n_bins=5, seed=0)


@given(hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(0, 6)))
def test_positions_by_class_list_each_class_in_order(labels):
    for c, positions in enumerate(positions_by_class(labels, 7)):
        assert positions.tolist() == [i for i, label in enumerate(labels) if label == c]


@pytest.mark.parametrize("unknown", [-1, 3])
def test_a_label_outside_the_classes_is_refused_with_its_position(unknown):
    with pytest.raises(ValueError, match=rf"in 0 .. 2, got {unknown} at position 1"):
        positions_by_class(np.array([0, unknown, 2]), 3)
