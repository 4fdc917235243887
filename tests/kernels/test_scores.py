import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.dynamics import Dynamics
from kernels.scores import SCORES, easiness


def test_the_table_names_exactly_the_scores_of_the_pass():
    assert set(SCORES) == set(Dynamics(1, "cpu").scores()) - {"visits"}


@given(st.sampled_from(sorted(SCORES)), st.lists(st.floats(-5, 5), min_size=1))
def test_the_hardest_sample_comes_first_by_easiness(name, values):
    scores = np.array(values, dtype=np.float32)
    hardest = scores.min() if SCORES[name].low_is_hard else scores.max()
    assert scores[easiness(name, scores).argmin()] == hardest


def test_a_sample_that_was_learned_once_and_lost_is_the_hardest_by_every_score():
    dynamics = Dynamics(2, "cpu")
    right = torch.tensor([4.0, 0.0, 0.0])
    for epoch in range(4):
        # Sample 0 is always right, sample 1 (true class 0, label 1) is right once, then never.
        wrong = torch.tensor([0.0, 1.0, 0.0]) if epoch == 1 else right
        dynamics.update(
            torch.stack((right, wrong)), torch.tensor([0, 1]), torch.tensor([0, 1]), epoch
        )
    scores = dynamics.scores()
    for name in SCORES:
        assert np.argmin(easiness(name, scores[name])) == 1, name


def test_not_a_number_stays_not_a_number():
    assert np.isnan(easiness("el2n", np.array([np.nan]))).all()


def test_an_unknown_score_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'emul'.*choose one of aum, aum_logit, el2n"):
        easiness("emul", 1.0)
