import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.kernels.tdds import DECAY, FLOOR, LOG_STEP, Tdds, state_bytes

BATCH = 4


def tolerance(window):
    """Bound what the state's steps cost: a change half a step, a norm sqrt(J - 1) of that, and the
    weights of a moving average add up to at most 1. The rest is float32 arithmetic."""
    return math.sqrt(window - 1) * LOG_STEP / 2 + 2e-5


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def changes(values, epochs):
    """d_t of the given epochs, from an array (T, C) of what goes into the logarithm."""
    logs = np.log(values + FLOOR)
    return np.array([np.abs(values[t] * (logs[t] - logs[t - 1])).sum() for t in epochs])


def by_definition(logits, window):
    """TDDS of one sample from its recorded logits (T, C), in float64."""
    p, n_epochs = softmax(np.asarray(logits, dtype=np.float64)), len(logits)
    score = 0.0
    for k in range(n_epochs - window + 1):
        d = changes(p, range(k + 1, k + window))
        spread = math.sqrt(((d - d.mean()) ** 2).sum())
        score += DECAY * (1 - DECAY) ** (n_epochs - window - k) * spread
    return score if n_epochs >= window else math.nan


def recorded_run(*, n, n_classes, n_epochs, seed, scale=4.0):
    """Logits (T, n, C): a walk from epoch to epoch, so that some classes fade and come back."""
    generator = np.random.default_rng(seed)
    steps = generator.normal(0, scale, (n_epochs, n, n_classes))
    return steps.cumsum(axis=0).astype(np.float32)


def epoch_of(logits, epoch, missed=()):
    """Batches of (logits, ids) in another order every epoch, the last one padded with NaN."""
    n = logits.shape[1]
    order = [i for i in np.random.default_rng(epoch).permutation(n) if i not in missed]
    for ids in np.array(order + [-1] * (-len(order) % BATCH), dtype=np.int64).reshape(-1, BATCH):
        shown = logits[epoch, ids].copy()
        shown[ids < 0] = np.nan
        yield torch.from_numpy(shown), torch.from_numpy(ids)


def replay(tdds, logits, epochs):
    for epoch in epochs:
        tdds.begin_epoch(epoch)
        for batch in epoch_of(logits, epoch):
            tdds.update(*batch)
        tdds.end_epoch(epoch)
    return tdds


def assert_same_state(one, other):
    assert one.state().keys() == other.state().keys()
    for name, rows in one.state().items():
        assert torch.equal(rows, other.state()[name]), name
    np.testing.assert_array_equal(one.scores()["tdds"], other.scores()["tdds"])


@settings(max_examples=60)
@given(
    run=st.builds(
        dict,
        n=st.integers(1, 12),
        n_classes=st.integers(2, 6),
        n_epochs=st.integers(0, 9),
        scale=st.sampled_from([0.1, 2.0, 12.0]),
        seed=st.integers(0, 2**32 - 1),
    ),
    window=st.integers(3, 6),
)
def test_the_streamed_score_is_that_of_the_recorded_history(run, window):
    n, n_epochs = run["n"], run["n_epochs"]
    logits = recorded_run(**run)
    tdds = Tdds(n, run["n_classes"], "cpu", window=window)
    scores = replay(tdds, logits, range(n_epochs)).scores()
    assert scores.keys() == {"tdds"}
    assert scores["tdds"].dtype == np.float32
    expected = [by_definition(logits[:, i], window) for i in range(n)]
    np.testing.assert_allclose(scores["tdds"], expected, rtol=1e-5, atol=tolerance(window))


def test_a_class_that_comes_back_from_nothing_costs_no_more_than_half_a_step():
    """A float16 of the probability, 3e-8, is 6e-8 or nothing: over half a nat from the truth."""
    rising = np.array([[0, -17.3], [0, 20], [0, 20], [0, 20]], dtype=np.float32)
    tdds = replay(Tdds(1, 2, "cpu", window=4), rising[:, None], range(4))
    expected = by_definition(rising, 4)
    assert expected > 10
    assert abs(tdds.scores()["tdds"][0] - expected) < tolerance(4)


def test_a_sample_that_missed_an_epoch_has_no_score_and_the_others_have_theirs():
    logits = recorded_run(n=6, n_classes=3, n_epochs=5, seed=3)
    tdds = Tdds(6, 3, "cpu", window=3)
    for epoch in range(5):
        tdds.begin_epoch(epoch)
        for batch in epoch_of(logits, epoch, missed=[2] if epoch == 1 else [4]):
            tdds.update(*batch)
        tdds.end_epoch(epoch)
    found = tdds.scores()["tdds"]
    assert np.flatnonzero(np.isnan(found)).tolist() == [2, 4]
    expected = [by_definition(logits[:, i], 3) for i in (0, 1, 3, 5)]
    np.testing.assert_allclose(found[[0, 1, 3, 5]], expected, atol=tolerance(3))


@pytest.mark.parametrize("epoch", [0, 2, 5])
def test_going_on_from_a_state_gives_equal_bytes(epoch):
    logits = recorded_run(n=10, n_classes=4, n_epochs=7, seed=6)
    make = partial(Tdds, 10, 4, "cpu", window=4)
    whole, before, after = replay(make(), logits, range(7)), make(), make()
    first, *rest = epoch_of(logits, epoch)
    replay(before, logits, range(epoch)).begin_epoch(epoch)
    before.update(*first)
    after.load_state(before.state(), epoch)
    after.begin_epoch(epoch)
    for batch in rest:
        after.update(*batch)
    after.end_epoch(epoch)
    assert_same_state(replay(after, logits, range(epoch + 1, 7)), whole)


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.from_numpy(recorded_run(n=8, n_classes=5, n_epochs=4, seed=8)).bfloat16()
    half, full = (Tdds(8, 5, "cpu", window=3) for _ in range(2))
    for epoch in range(4):
        for tdds, values in ((half, logits[epoch]), (full, logits[epoch].float())):
            tdds.begin_epoch(epoch)
            tdds.update(values, torch.arange(8))
            tdds.end_epoch(epoch)
    assert_same_state(half, full)


def test_a_batch_is_one_graph_for_all_epochs_and_reads_nothing_back():
    # A tensor on `meta` has no values: whatever reads one raises.
    ids = torch.empty(4, dtype=torch.int64, device="meta")
    nowhere = Tdds(10, 3, "meta")
    nowhere.update(torch.empty((4, 3), device="meta", requires_grad=True), ids)
    assert not any(rows.requires_grad for rows in nowhere.rows.values())
    logits = recorded_run(n=10, n_classes=4, n_epochs=6, seed=9)
    traced, eager = (Tdds(10, 4, "cpu", window=3) for _ in range(2))
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph

    traced._count = torch.compile(traced._count, fullgraph=True, backend=counted)
    replay(traced, logits, range(6))
    assert_same_state(traced, replay(eager, logits, range(6)))
    assert len(graphs) == 1


def test_the_stated_memory_is_what_the_state_takes():
    rows = Tdds(50, 7, "cpu", window=6).rows.values()
    assert state_bytes(50, 7, 6) == sum(part.numel() * part.element_size() for part in rows)
    assert 2.6e9 < state_bytes(1_281_167, 1000) < 2.7e9
