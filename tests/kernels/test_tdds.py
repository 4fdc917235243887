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
    """What steps of the state cost: each change half a step, a norm sqrt(J - 1) of that, and the
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
    run=st.fixed_dictionaries(
        {
            "n": st.integers(1, 12),
            "n_classes": st.integers(2, 6),
            "n_epochs": st.integers(0, 9),
            "scale": st.sampled_from([0.1, 2.0, 12.0]),
            "seed": st.integers(0, 2**32 - 1),
        }
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
    logs = np.log(softmax(rising[0].astype(np.float64)) + FLOOR)
    in_half = np.log(softmax(rising[0]).astype(np.float16).astype(np.float64) + FLOOR)
    assert abs(in_half - logs).max() > 0.5


def window_that_never_slides(values, window):
    """The formula in dual-pruning's `tdds`: the changes of epochs 1 .. J-1, whatever k is, and the
    logarithm of what it is given, where a logarithm that does not exist counts as no change."""
    n_epochs, score = len(values), 0.0
    with np.errstate(invalid="ignore"):
        logs = np.log(values + FLOOR)
    d = [np.abs(values[t] * np.nan_to_num(logs[t] - logs[t - 1])).sum() for t in range(1, window)]
    for k in range(n_epochs - window + 1):
        score += DECAY * (1 - DECAY) ** (n_epochs - window - k) * np.std(d) * math.sqrt(len(d))
    return score


def test_the_window_slides_to_the_last_epoch_unlike_that_of_the_dual_repository():
    """A sample that moves late only has no score in a window that stays at the start."""
    still = [[3.0, 0.0]] * 5
    late = np.array([*still, [0.0, 3.0], [3.0, 0.0], [3.0, 0.0]], dtype=np.float32)
    found = replay(Tdds(1, 2, "cpu", window=4), late[:, None], range(8)).scores()["tdds"][0]
    assert found == pytest.approx(by_definition(late, 4), abs=tolerance(4))
    assert found > 1
    assert window_that_never_slides(softmax(late), 4) == pytest.approx(0, abs=1e-6)


def test_with_a_single_window_both_formulas_agree():
    logits = recorded_run(n=1, n_classes=3, n_epochs=4, seed=1)
    found = replay(Tdds(1, 3, "cpu", window=4), logits, range(4)).scores()["tdds"][0]
    expected = window_that_never_slides(softmax(logits[:, 0].astype(np.float64)), 4)
    assert found == pytest.approx(expected, abs=tolerance(4))


def test_a_constant_added_to_all_logits_changes_nothing_unlike_logarithms_of_raw_logits():
    logits = recorded_run(n=1, n_classes=3, n_epochs=5, seed=2)
    plain, raised = (
        replay(Tdds(1, 3, "cpu", window=4), values, range(5)).scores()["tdds"][0]
        for values in (logits, logits + 40)
    )
    assert raised == pytest.approx(plain, abs=tolerance(4))
    theirs = [window_that_never_slides(values[:, 0], 4) for values in (logits, logits + 40)]
    assert abs(theirs[0] - theirs[1]) > 1


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


def test_no_sample_has_a_score_before_a_window_is_whole():
    logits = recorded_run(n=3, n_classes=3, n_epochs=4, seed=4)
    tdds = Tdds(3, 3, "cpu", window=4)
    for epoch in range(3):
        assert np.isnan(replay(tdds, logits, [epoch]).scores()["tdds"]).all()
    assert np.isfinite(replay(tdds, logits, [3]).scores()["tdds"]).all()


@pytest.mark.parametrize("cut", [0, 1, 3, 6])
def test_going_on_from_a_state_between_epochs_gives_equal_bytes(cut):
    logits = recorded_run(n=10, n_classes=4, n_epochs=7, seed=5)
    make = partial(Tdds, 10, 4, "cpu", window=4)
    whole, before, after = replay(make(), logits, range(7)), make(), make()
    after.load_state(replay(before, logits, range(cut)).state(), cut)
    assert_same_state(replay(after, logits, range(cut, 7)), whole)


@pytest.mark.parametrize("epoch", [0, 2, 5])
def test_going_on_from_a_state_in_the_middle_of_an_epoch_gives_equal_bytes(epoch):
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


def test_a_state_and_scores_are_copies():
    logits = recorded_run(n=3, n_classes=3, n_epochs=5, seed=7)
    tdds = replay(Tdds(3, 3, "cpu", window=3), logits, range(4))
    state, scores = tdds.state(), tdds.scores()["tdds"]
    before = {name: rows.clone() for name, rows in state.items()}, scores.copy()
    replay(tdds, logits, [4])
    assert all(torch.equal(rows, before[0][name]) for name, rows in state.items())
    np.testing.assert_array_equal(scores, before[1])


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.from_numpy(recorded_run(n=8, n_classes=5, n_epochs=4, seed=8)).bfloat16()
    half, full = (Tdds(8, 5, "cpu", window=3) for _ in range(2))
    for epoch in range(4):
        for tdds, values in ((half, logits[epoch]), (full, logits[epoch].float())):
            tdds.begin_epoch(epoch)
            tdds.update(values, torch.arange(8))
            tdds.end_epoch(epoch)
    assert_same_state(half, full)


def test_a_batch_reads_nothing_back_from_the_device():
    # A tensor on `meta` has no values: whatever reads one raises.
    tdds = Tdds(10, 3, "meta")
    ids = torch.empty(4, dtype=torch.int64, device="meta")
    tdds.update(torch.empty((4, 3), device="meta"), ids)
    with pytest.raises(NotImplementedError, match="no data"):
        tdds.state()


def test_a_batch_is_one_graph_for_all_epochs():
    logits = recorded_run(n=10, n_classes=4, n_epochs=6, seed=9)
    traced, eager = (Tdds(10, 4, "cpu", window=3) for _ in range(2))
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph

    traced._note_change = torch.compile(traced._note_change, fullgraph=True, backend=counted)
    replay(traced, logits, range(6))
    assert_same_state(traced, replay(eager, logits, range(6)))
    assert len(graphs) == 1


@pytest.mark.slow
def test_compiling_changes_scores_by_rounding_only():
    logits = recorded_run(n=10, n_classes=4, n_epochs=6, seed=11)
    compiled, eager = (Tdds(10, 4, "cpu", window=3, compiled=c) for c in (True, False))
    found, expected = (
        replay(tdds, logits, range(6)).scores()["tdds"] for tdds in (compiled, eager)
    )
    np.testing.assert_allclose(found, expected, atol=2 * tolerance(3))


def test_the_stated_memory_is_what_the_state_takes():
    rows = Tdds(50, 7, "cpu", window=6)._rows().values()
    assert state_bytes(50, 7, 6) == sum(part.numel() * part.element_size() for part in rows)
    assert 2.6e9 < state_bytes(1_281_167, 1000) < 2.7e9


def test_update_does_not_keep_the_graph_of_the_loss():
    tdds = Tdds(2, 2, "cpu", window=3)
    tdds.update(torch.eye(2, requires_grad=True), torch.arange(2))
    assert not any(rows.requires_grad for rows in tdds.state().values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_update_does_not_wait_for_a_gpu_and_agrees_with_the_cpu():
    logits = recorded_run(n=50, n_classes=10, n_epochs=6, seed=10)
    on_gpu, on_cpu = Tdds(50, 10, "cuda", window=4), Tdds(50, 10, "cpu", window=4)
    for epoch in range(6):
        on_gpu.begin_epoch(epoch)
        there = [[part.cuda() for part in batch] for batch in epoch_of(logits, epoch)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in there:
                on_gpu.update(*batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        on_gpu.end_epoch(epoch)
    expected = replay(on_cpu, logits, range(6)).scores()["tdds"]
    np.testing.assert_allclose(on_gpu.scores()["tdds"], expected, atol=2 * tolerance(4))


def test_the_state_of_another_data_set_is_refused():
    with pytest.raises(
        ValueError, match=r"tdds_logs must be torch.int16 \(5, 3\), got .* \(5, 4\)"
    ):
        Tdds(5, 3, "cpu").load_state(Tdds(5, 4, "cpu").state(), 0)
    with pytest.raises(ValueError, match=r"tdds_visits must be .* got nothing"):
        Tdds(5, 3, "cpu").load_state({}, 0)


@pytest.mark.parametrize(("wrong", "least"), [("n_samples", 1), ("n_classes", 2), ("window", 3)])
def test_sizes_that_give_no_score_are_refused(wrong, least):
    sizes = {"n_samples": 5, "n_classes": 3, "window": 4} | {wrong: least - 1}
    with pytest.raises(ValueError, match=f"{wrong} must be at least {least}, got {least - 1}"):
        Tdds(sizes["n_samples"], sizes["n_classes"], "cpu", window=sizes["window"])
