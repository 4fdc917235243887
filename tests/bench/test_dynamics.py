"""Accumulation benchmark: what is timed, and who has failed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from coreset.bench.dynamics import (
    DynamicsBench,
    aum_error,
    aum_package,
    margins_by_definition,
)
from coreset.bench.harness import Contender


@pytest.fixture
def bench(tmp_path):
    return DynamicsBench(samples=70, classes=13, batch=16, size=32, repeats=1, work=tmp_path)


def test_batches_hold_every_id_once_and_the_last_is_short(bench):
    batches = bench.batches(torch.bfloat16)
    assert [len(ids) for _, _, ids in batches] == [16, 16, 16, 16, 6]
    assert all(len(logits) == len(labels) == len(ids) for logits, labels, ids in batches)
    assert sorted(torch.cat([ids for _, _, ids in batches]).tolist()) == list(range(70))
    assert batches[0][0].dtype == torch.bfloat16
    assert len(bench.batches(torch.float32, 2)) == 2


def peer_of(bench, shift=0.0):
    batches = bench.batches(torch.float32)
    expected = np.concatenate([margins_by_definition(*batch[:2]) for batch in batches])
    return aum_package(bench.work, batches, bench.samples, expected + shift)


@pytest.mark.parametrize(("shift", "right"), [(0.0, True), (0.01, False)])
def test_a_peer_whose_aum_differs_has_failed(bench, shift, right):
    peer = peer_of(bench, shift)
    assert isinstance(peer, Contender)
    for _ in range(2):
        peer.run(Path())
        assert (peer.check(Path()) == "") is right


def test_margins_are_the_own_logit_less_the_largest_other():
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 1.0]])
    assert margins_by_definition(logits, torch.tensor([2, 0])).tolist() == [-3, 3]


def test_an_aum_that_is_far_or_missing_is_a_complaint():
    expected = np.array([1.0, -2.0, 30.0])
    assert aum_error(expected.astype(np.float32), expected) == ""
    assert "1 samples" in aum_error(np.array([1.0, -2.1, 30.0]), expected)
    assert "nan" in aum_error(np.array([1.0, np.nan, 30.0]), expected)


@pytest.mark.slow
def test_all_accumulators_give_the_same_aum_and_a_share_of_the_step(bench):
    rows = list(bench.peers())
    assert [row["role"] for row in rows] == ["ours"] * 2 + ["peer"]
    assert not [row for row in rows if "failed" in row or "absent" in row]
    assert {row["images"] for row in rows} == {70}
    step, *ours = bench.step()
    for row in ours:
        share = row["median_ms"] / step["median_ms"]
        assert row["share"] == pytest.approx(share, rel=1e-3)
