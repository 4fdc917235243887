import math
from functools import partial
from itertools import pairwise
from statistics import pvariance, stdev

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset.engine.doctor.arithmetic import HostReads
from coreset.kernels.dynamics import Dynamics
from coreset.kernels.logits import per_sample_stats
from coreset.kernels.scores import SCORES, easiness
from coreset.kernels.tdds import Tdds

assert_close = partial(np.testing.assert_allclose, rtol=1e-4, atol=3e-5)
ELSEWHERE = {
    "loss_final", "entropy_final", "confidence_oof", "margin_oof", "mean_margin",
    "knn_disagreement",
}  # fmt: skip
OF_THE_PASS = set(SCORES) - ELSEWHERE - {"tdds"}
BATCH = 4


def softmax(logits):
    largest = max(logits)
    exponentials = [math.exp(z - largest) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def margin(values, label):
    return values[label] - max(v for c, v in enumerate(values) if c != label)


def mean(values):
    return sum(values) / len(values) if values else math.nan


def el2n(probabilities, label):
    return math.sqrt(sum((p - (c == label)) ** 2 for c, p in enumerate(probabilities)))


def deviation(values):
    """As the codes of Dyn-Unc and DUAL: divided by one less than there are values."""
    return stdev(values) if len(values) > 1 else 0.0


def scores_of_one_sample(history, label, *, epochs, el2n_epochs, window):
    """Every score by its definition, from the (epoch, logits) pairs of one sample in order."""
    if not history:
        return dict.fromkeys(OF_THE_PASS, math.nan)
    softmaxes = {epoch: softmax(logits) for epoch, logits in history}
    right = [logits.index(max(logits)) == label for _, logits in history]
    forgetting = sum(a and not b for a, b in pairwise(right))
    margins_of = [margin(ps, label) for ps in softmaxes.values()]
    single = softmaxes.get(el2n_epochs - 1) if len(history) == epochs else None
    windows = []
    if len(history) == epochs:
        label_p = [ps[label] for ps in softmaxes.values()]
        windows = [label_p[at : at + window] for at in range(epochs - window + 1)]
    return {
        "aum": mean(margins_of),
        "aum_logit": mean([margin(logits, label) for _, logits in history]),
        "margin_variance": pvariance(margins_of),
        "el2n": mean([el2n(ps, label) for epoch, ps in softmaxes.items() if epoch < el2n_epochs]),
        "el2n_single": math.nan if single is None else el2n(single, label),
        "forgetting": forgetting,
        "forgetting_toneva": forgetting if any(right) else epochs,
        "correctness": sum(right),
        "loss_mean": mean([-math.log(ps[label]) for ps in softmaxes.values()]),
        "entropy_mean": mean([-sum(p * math.log(p) for p in ps) for ps in softmaxes.values()]),
        "dyn_unc": mean([deviation(some) for some in windows]),
        "dual": mean([(1 - mean(some)) * deviation(some) for some in windows]),
    }


def recorded_run(*, n, n_classes, n_epochs, seed, offset=0.0, skipped_share=0.0):
    """Labels and, per epoch, batches of (logits, labels, ids) in random order, the last padded."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, n_classes, n)
    epochs = []
    for _ in range(n_epochs):
        shown = np.flatnonzero(generator.random(n) >= skipped_share)
        ids = generator.permutation(shown)
        ids = np.concatenate([ids, np.full(-len(ids) % BATCH, -1)]).reshape(-1, BATCH)
        batches = []
        for ids_b in ids:
            logits = (generator.normal(0, 2, (BATCH, n_classes)) + offset).astype(np.float32)
            logits[ids_b < 0] = np.nan
            batches.append((logits, np.where(ids_b < 0, -1, labels[ids_b]), ids_b))
        epochs.append(batches)
    return labels, epochs


def replay(dynamics, epochs, first_epoch=0):
    for epoch, batches in enumerate(epochs, start=first_epoch):
        dynamics.begin_epoch(epoch)
        for batch in batches:
            dynamics.update(*(torch.from_numpy(part) for part in batch))
        dynamics.end_epoch(epoch)
    return dynamics


def histories(n, epochs):
    history = [[] for _ in range(n)]
    for epoch, batches in enumerate(epochs):
        for logits, _, ids in batches:
            for row, sample in zip(logits.tolist(), ids.tolist(), strict=True):
                if sample >= 0:
                    history[sample].append((epoch, row))
    return history


@settings(max_examples=60)
@given(
    run=st.builds(
        dict,
        n=st.integers(1, 25),
        n_classes=st.integers(2, 7),
        n_epochs=st.integers(0, 9),
        offset=st.sampled_from([0.0, -30.0, 30.0]),
        skipped_share=st.sampled_from([0.0, 0.4]),
        seed=st.integers(0, 2**32 - 1),
    ),
    el2n_epochs=st.integers(1, 10),
    window=st.integers(1, 10),
)
def test_streamed_scores_equal_those_of_the_recorded_history(run, el2n_epochs, window):
    n = run["n"]
    labels, epochs = recorded_run(**run)
    dynamics = replay(Dynamics(n, "cpu", el2n_epochs=el2n_epochs, window=window), epochs)
    scores, history = dynamics.scores(), histories(n, epochs)
    lengths = {"epochs": len(epochs), "el2n_epochs": el2n_epochs, "window": window}
    expected = [scores_of_one_sample(history[i], int(labels[i]), **lengths) for i in range(n)]
    assert set(scores) == OF_THE_PASS | {"visits"}
    for name in OF_THE_PASS:
        assert scores[name].dtype == np.float32
        assert scores[name].shape == (n,)
        assert_close(scores[name], [e[name] for e in expected], err_msg=name)
    np.testing.assert_array_equal(scores["visits"], [len(h) for h in history])
    np.testing.assert_array_equal(dynamics.visits(), scores["visits"])
    total = sum(-math.log(softmax(row)[labels[i]]) for i in range(n) for _, row in history[i])
    assert dynamics.total_loss() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_restoring_the_state_midway_gives_bit_equal_scores(cut):
    _, epochs = recorded_run(n=30, n_classes=5, n_epochs=6, seed=1)
    make = partial(Dynamics, 30, "cpu", el2n_epochs=4, window=3)
    whole, before, after = replay(make(), epochs), replay(make(), epochs[:cut]), make()
    state, kept = before.state(), before.state()
    after.load_state(state, cut)
    assert_same_state(replay(after, epochs[cut:], first_epoch=cut), whole)
    assert all(torch.equal(state[name], rows) for name, rows in kept.items()), "it is a copy"
    assert not whole.state()["seen"].any(), "an ended epoch is not added to the next"
    helper = make(is_main=False)
    helper.load_state(state, cut)
    helper.begin_epoch(cut)
    assert not helper.state()["sums"].any(), "the main process alone keeps the sums"


def assert_same_state(one, other):
    for name, rows in one.state().items():
        assert torch.equal(rows, other.state()[name]), name
    for name, values in one.scores().items():
        np.testing.assert_array_equal(values, other.scores()[name])


def test_half_precision_logits_accumulate_in_float32():
    logits = (torch.randn((8, 5), generator=torch.Generator()) * 3).bfloat16()
    labels, ids = torch.arange(8) % 5, torch.arange(8)
    half, full = Dynamics(8, "cpu"), Dynamics(8, "cpu")
    for epoch in range(300):
        for dynamics, values in ((half, logits), (full, logits.float())):
            dynamics.begin_epoch(epoch)
            dynamics.update(values, labels, ids)
            dynamics.end_epoch(epoch)
    assert_same_state(half, full)
    one_visit = per_sample_stats(logits.float(), labels).logit_margin
    np.testing.assert_allclose(half.scores()["aum_logit"], one_visit, rtol=1e-5)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_all_scores_of_a_batch_are_one_graph_for_all_epochs(backend):
    _, epochs = recorded_run(n=24, n_classes=4, n_epochs=12, seed=4)
    traced, eager = (Dynamics(24, "cpu", el2n_epochs=5, window=3) for _ in range(2))
    inner, graphs = torch._dynamo.lookup_backend(backend), []

    def counted(graph, example_inputs):
        graphs.append(graph)
        return inner(graph, example_inputs)

    traced._accumulate = torch.compile(traced._accumulate, fullgraph=True, backend=counted)
    replay(traced, epochs)
    assert len(graphs) == 1
    for name, values in replay(eager, epochs).scores().items():
        assert_close(traced.scores()[name], values)


def test_a_batch_reads_nothing_back_from_the_device_and_keeps_no_graph():
    # A tensor on `meta` has no values: what needs one would raise here, or be found below.
    dynamics = Dynamics(10, "meta")
    logits = torch.empty((4, 3), device="meta", requires_grad=True)
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    with HostReads() as reads:
        stats = dynamics.update(logits, labels, labels)
    assert reads.found == []
    assert not any(rows.requires_grad for rows in (*stats, *dynamics.rows.values()))


def test_the_state_of_another_data_set_is_refused():
    with pytest.raises(ValueError, match=r"sums must be torch.float32 \(5, 10\), got .* \(7, 10\)"):
        Dynamics(5, "cpu").load_state(Dynamics(7, "cpu").state(), 0)
    with pytest.raises(ValueError, match=r"sums must be .* got nothing"):
        Dynamics(5, "cpu").load_state({}, 0)


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
    for name in set(SCORES) - ELSEWHERE:
        easy, hard = easiness(name, scores[name])
        assert hard < easy, name
