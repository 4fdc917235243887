import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.kernels.seeds import (
    GOLDEN_GAMMA,
    Stream,
    derived_seed,
    permutation,
    random_keys,
    splitmix64,
)


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


def test_every_value_visits_every_place_equally_often():
    n, draws = 6, 6000
    counts = np.zeros((n, n))
    for seed in range(draws):
        counts[np.arange(n), permutation(n, seed)] += 1
    expected = draws / n
    # 36 cells, 25 degrees of freedom: 60 lies beyond the 0.9999 quantile.
    assert ((counts - expected) ** 2 / expected).sum() < 60


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
