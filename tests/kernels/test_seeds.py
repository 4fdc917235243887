import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.kernels.seeds import (
    GOLDEN_GAMMA,
    OrderStream,
    ScoringStream,
    SelectionStream,
    SyntheticStream,
    derived_seed,
    permutation,
    random_keys,
    splitmix64,
)


@pytest.mark.parametrize(
    ("state", "output"), [(0, 16294208416658607535), (1234567, 6457827717110365317)]
)
def test_splitmix64_gives_the_published_vectors(state, output):
    assert int(splitmix64(np.array([state], dtype=np.uint64))[0]) == output


def test_successive_states_give_the_published_stream():
    states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * GOLDEN_GAMMA
    assert splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.integers(0, 500), st.integers(-(2**70), 2**70))
def test_permutation_holds_every_position_once(n, seed):
    assert sorted(permutation(n, seed).tolist()) == list(range(n))


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 2**64 - 1))
def test_a_key_depends_on_its_position_and_not_on_the_length(n, more, seed):
    np.testing.assert_array_equal(random_keys(n, seed), random_keys(n + more, seed)[:n])


def test_every_value_visits_every_place_equally_often():
    n, draws = 6, 6000
    counts = np.zeros((n, n))
    for seed in range(draws):
        counts[np.arange(n), permutation(n, seed)] += 1
    expected = draws / n
    # 36 cells, 25 degrees of freedom: 60 lies beyond the 0.9999 quantile.
    assert ((counts - expected) ** 2 / expected).sum() < 60


def test_keys_fill_their_range_evenly():
    sixteenths = np.bincount((random_keys(160_000, seed=3) >> np.uint64(60)).astype(int))
    # 15 degrees of freedom: 45 lies beyond the 0.9999 quantile.
    assert ((sixteenths - 10_000) ** 2 / 10_000).sum() < 45


def test_derived_seeds_differ_by_run_by_place_and_by_depth():
    seeds = [derived_seed(run, place) for run in range(50) for place in range(50)]
    seeds += [derived_seed(run, place, 0) for run in range(50) for place in range(50)]
    assert len(set(seeds)) == len(seeds)


def test_the_path_of_a_derived_seed_is_ordered():
    assert derived_seed(0, 1, 2) != derived_seed(0, 2, 1)


def test_streams_keep_the_numbers_that_draws_on_disk_depend_on():
    assert [*SelectionStream] == [0, 1]
    assert [*ScoringStream] == [-1]
    assert [*OrderStream] == [0, 1]
    assert [*SyntheticStream] == [0, 1, 2, 3, 4, 5, 6]
    assert derived_seed(0, SyntheticStream.IMAGE, 3) == derived_seed(0, 6, 3)
