import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.dynamics import Dynamics, margins, presentations

assert_close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
SCORE_NAMES = ("aum", "aum_logit", "el2n", "forgetting", "correctness")


def softmax(logits):
    largest = max(logits)
    exponentials = [math.exp(z - largest) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def margin(values, label):
    return values[label] - max(v for c, v in enumerate(values) if c != label)


def mean(values):
    return sum(values) / len(values) if values else math.nan


def scores_of_one_sample(history, label, el2n_epochs):
    """Every score by its definition, from the (epoch, logits) pairs of one sample in order."""
    if not history:
        return dict.fromkeys(SCORE_NAMES, math.nan)
    right = [logits.index(max(logits)) == label for _, logits in history]
    early = [softmax(logits) for epoch, logits in history if epoch < el2n_epochs]
    return {
        "aum": mean([margin(softmax(logits), label) for _, logits in history]),
        "aum_logit": mean([margin(logits, label) for _, logits in history]),
        "el2n": mean(
            [math.sqrt(sum((p - (c == label)) ** 2 for c, p in enumerate(ps))) for ps in early]
        ),
        "forgetting": sum(a and not b for a, b in pairwise(right)),
        "correctness": sum(right),
    }


def recorded_run(*, n, n_classes, n_epochs, seed, offset=0.0, skipped_share=0.0):
    """Labels and, per epoch, batches of (logits, labels, ids) in random order, the last padded."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, n_classes, n)
    epochs = []
    for _ in range(n_epochs):
        shown = np.flatnonzero(generator.random(n) >= skipped_share)
        ids = generator.permutation(shown)
        batch = 4
        ids = np.concatenate([ids, np.full(-len(ids) % batch, -1)]).reshape(-1, batch)
        batches = []
        for ids_b in ids:
            logits = (generator.normal(0, 2, (batch, n_classes)) + offset).astype(np.float32)
            logits[ids_b < 0] = np.nan
            batches.append((logits, np.where(ids_b < 0, -1, labels[ids_b]), ids_b))
        epochs.append(batches)
    return labels, epochs


def replay(dynamics, epochs, first_epoch=0):
    for epoch, batches in enumerate(epochs, start=first_epoch):
        for batch in batches:
            dynamics.update(*(torch.from_numpy(part) for part in batch), epoch)
    return dynamics


def histories(n, epochs):
    history = [[] for _ in range(n)]
    for epoch, batches in enumerate(epochs):
        for logits, _, ids in batches:
            for row, sample in zip(logits.tolist(), ids.tolist(), strict=True):
                if sample >= 0:
                    history[sample].append((epoch, row))
    return history


@settings(max_examples=60, deadline=None)
@given(
    run=st.fixed_dictionaries(
        {
            "n": st.integers(1, 25),
            "n_classes": st.integers(2, 7),
            "n_epochs": st.integers(0, 9),
            "offset": st.sampled_from([0.0, -30.0, 30.0]),
            "skipped_share": st.sampled_from([0.0, 0.4]),
            "seed": st.integers(0, 2**32 - 1),
        }
    ),
    el2n_epochs=st.integers(1, 10),
)
def test_streamed_scores_equal_those_of_the_recorded_history(run, el2n_epochs):
    n = run["n"]
    labels, epochs = recorded_run(**run)
    scores = replay(Dynamics(n, "cpu", el2n_epochs), epochs).scores()
    history = histories(n, epochs)
    expected = [scores_of_one_sample(history[i], int(labels[i]), el2n_epochs) for i in range(n)]
    for name in SCORE_NAMES:
        assert scores[name].dtype == np.float32
        assert scores[name].shape == (n,)
        assert_close(scores[name], [e[name] for e in expected])
    np.testing.assert_array_equal(scores["visits"], [len(h) for h in history])


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_restoring_the_rows_midway_gives_bit_equal_scores(cut):
    _, epochs = recorded_run(n=30, n_classes=5, n_epochs=6, seed=1)
    whole = replay(Dynamics(30, "cpu", el2n_epochs=4), epochs)
    before = replay(Dynamics(30, "cpu", el2n_epochs=4), epochs[:cut])
    after = Dynamics(30, "cpu", el2n_epochs=4)
    after.load_rows(before.rows)
    replay(after, epochs[cut:], first_epoch=cut)
    assert torch.equal(after.rows, whole.rows)
    for name, values in whole.scores().items():
        np.testing.assert_array_equal(after.scores()[name], values)


def test_loaded_rows_are_a_copy():
    source, copy = Dynamics(3, "cpu"), Dynamics(3, "cpu")
    copy.load_rows(source.rows)
    source.update(torch.eye(3), torch.arange(3), torch.arange(3), 0)
    assert copy.scores()["visits"].tolist() == [0, 0, 0]


def test_scores_do_not_change_when_training_goes_on():
    dynamics = Dynamics(3, "cpu")
    scores = dynamics.scores()
    dynamics.update(torch.eye(3), torch.arange(3), torch.arange(3), 0)
    assert scores["visits"].tolist() == [0, 0, 0]


def test_the_margin_of_all_negative_logits_is_not_measured_against_zero():
    assert margins(torch.tensor([[-3.0, -1.0]]), torch.tensor([0])).item() == -2


def test_a_never_learned_sample_was_never_forgotten():
    dynamics = Dynamics(1, "cpu")
    for epoch in range(5):
        dynamics.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), torch.tensor([0]), epoch)
    scores = dynamics.scores()
    assert (scores["forgetting"][0], scores["correctness"][0]) == (0, 0)


def test_half_precision_logits_accumulate_in_float32():
    logits = (torch.randn((8, 5), generator=torch.Generator()) * 3).bfloat16()
    labels, ids = torch.arange(8) % 5, torch.arange(8)
    half, full = Dynamics(8, "cpu"), Dynamics(8, "cpu")
    for epoch in range(300):
        half.update(logits, labels, ids, epoch)
        full.update(logits.float(), labels, ids, epoch)
    assert torch.equal(half.rows, full.rows)
    one_visit = margins(logits.float(), labels).numpy()
    np.testing.assert_allclose(half.scores()["aum_logit"], one_visit, rtol=1e-5)


def test_update_reads_nothing_back_from_the_device():
    # A tensor on `meta` has no values: item(), nonzero() or a boolean mask would raise here.
    dynamics = Dynamics(10, "meta")
    logits, labels = (
        torch.empty((4, 3), device="meta"),
        torch.empty(4, dtype=torch.int64, device="meta"),
    )
    dynamics.update(logits, labels, labels, epoch=0)
    assert dynamics.rows.shape == (11, dynamics.rows.shape[1])


def test_margins_and_update_compile_as_one_graph():
    logits = torch.randn((6, 4), generator=torch.Generator())
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    compiled = torch.compile(margins, fullgraph=True, backend="eager")
    assert torch.equal(compiled(logits, labels), margins(logits, labels))
    traced, eager = Dynamics(6, "cpu"), Dynamics(6, "cpu")
    update = torch.compile(traced.update, fullgraph=True, backend="eager")
    for epoch in range(3):
        update(logits, labels, torch.arange(6), epoch)
        eager.update(logits, labels, torch.arange(6), epoch)
    assert torch.equal(traced.rows, eager.rows)


def test_update_does_not_keep_the_graph_of_the_loss():
    dynamics = Dynamics(2, "cpu")
    logits = torch.eye(2, requires_grad=True)
    dynamics.update(logits, torch.arange(2), torch.arange(2), 0)
    assert not dynamics.rows.requires_grad


def test_a_rank_that_records_the_presentations_of_all_agrees_with_one_process():
    _, epochs = recorded_run(n=32, n_classes=4, n_epochs=5, seed=3)
    alone, rank = replay(Dynamics(32, "cpu"), epochs), Dynamics(32, "cpu")
    for epoch, batches in enumerate(epochs):
        for mine, theirs in zip(batches[::2], batches[1::2], strict=True):
            gathered = [
                presentations(torch.from_numpy(logits), torch.from_numpy(labels))
                for logits, labels, _ in (mine, theirs)
            ]
            ids = torch.from_numpy(np.concatenate((mine[2], theirs[2])))
            rank.record(torch.cat(gathered), ids, epoch)
    assert torch.equal(rank.rows, alone.rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_update_does_not_wait_for_a_gpu_and_agrees_with_the_cpu():
    _, epochs = recorded_run(n=50, n_classes=10, n_epochs=4, seed=2)
    on_gpu, on_cpu = Dynamics(50, "cuda"), replay(Dynamics(50, "cpu"), epochs)
    batches = [
        (epoch, *(torch.from_numpy(part).cuda() for part in batch))
        for epoch, batch_list in enumerate(epochs)
        for batch in batch_list
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for epoch, logits, labels, ids in batches:
            on_gpu.update(logits, labels, ids, epoch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, values in on_cpu.scores().items():
        assert_close(on_gpu.scores()[name], values)


def test_rows_of_another_data_set_are_refused():
    with pytest.raises(ValueError, match=r"shape \(6, 8\), got torch.float32 of shape \(8, 8\)"):
        Dynamics(5, "cpu").load_rows(Dynamics(7, "cpu").rows)


@pytest.mark.parametrize(("n_samples", "el2n_epochs"), [(0, 10), (5, 0)])
def test_sizes_below_one_are_refused(n_samples, el2n_epochs):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        Dynamics(n_samples, "cpu", el2n_epochs)
