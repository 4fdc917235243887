import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from coreset.kernels.dynamics import Dynamics
from coreset.kernels.scores import SCORES, easiness
from coreset.kernels.tdds import Tdds

OF_AN_EVALUATION = {"loss_final", "entropy_final"}
OUT_OF_FOLD = {"confidence_oof", "margin_oof"}


def test_the_table_names_exactly_the_scores_that_can_be_made():
    of_the_pass = set(Dynamics(1, "cpu").scores()) - {"visits"}
    on_request = set(Tdds(1, 2, "cpu").scores())
    assert set(SCORES) == of_the_pass | on_request | OF_AN_EVALUATION | OUT_OF_FOLD
    assert not of_the_pass & on_request


@given(st.sampled_from(sorted(SCORES)), st.lists(st.floats(-5, 5), min_size=1))
def test_the_hardest_sample_comes_first_by_easiness(name, values):
    scores = np.array(values, dtype=np.float32)
    hardest = scores.min() if SCORES[name].low_is_hard else scores.max()
    assert scores[easiness(name, scores).argmin()] == hardest


def test_a_sample_that_was_learned_once_and_lost_is_the_hardest_by_every_score():
    dynamics, tdds = Dynamics(2, "cpu", el2n_epochs=4, window=3), Tdds(2, 3, "cpu", window=3)
    right, labels, ids = torch.tensor([4.0, 0.0, 0.0]), torch.tensor([0, 1]), torch.arange(2)
    for epoch in range(4):
        # Sample 0 is always right, sample 1 (true class 0, label 1) is right once, then never.
        logits = torch.stack((right, torch.tensor([0.0, 1.0, 0.0]) if epoch == 1 else right))
        dynamics.begin_epoch(epoch)
        tdds.begin_epoch(epoch)
        dynamics.update(logits, labels, ids)
        tdds.update(logits, ids)
        dynamics.end_epoch(epoch)
        tdds.end_epoch(epoch)
    scores = dynamics.scores() | tdds.scores()
    for name in set(SCORES) - OF_AN_EVALUATION - OUT_OF_FOLD:
        easy, hard = easiness(name, scores[name])
        assert hard < easy, name
