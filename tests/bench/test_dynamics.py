"""Accumulation benchmark: what is counted, and who has failed."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coreset.bench.dynamics_counts import (
    GROUPS,
    OTHER,
    Traffic,
    code_counts,
    group_of,
    host_reads,
    step_cost,
)
from coreset.bench.dynamics_peers import aum_error, aum_package, peers
from coreset.bench.dynamics_timing import Setting, epoch_costs, training
from coreset.bench.harness import Absent, Contender
from coreset.engine.doctor.arithmetic import HostReads

# A package with the interface of aum 1.0.2: sums and counts by id, one margin per sample.
PEER = """
from collections import defaultdict

class AUMCalculator:
    def __init__(self, save_dir, compressed=True):
        self.sums, self.counts = defaultdict(float), defaultdict(int)

    def update(self, logits, targets, sample_ids):
        for row, target, one in zip(logits.tolist(), targets.tolist(), sample_ids):
            own = row[target]
            self.sums[one] += own - max(row[:target] + row[target + 1 :]) + OFFSET
            self.counts[one] += 1
"""


@pytest.fixture
def setting(tmp_path):
    return Setting(samples=70, classes=13, batch=16, size=32, repeats=1, work=tmp_path)


def test_batches_hold_every_id_once_and_the_last_is_short(setting):
    batches = setting.batches(torch.bfloat16)
    assert [len(ids) for _, _, ids in batches] == [16, 16, 16, 16, 6]
    assert all(len(logits) == len(labels) == len(ids) for logits, labels, ids in batches)
    assert sorted(torch.cat([ids for _, _, ids in batches]).tolist()) == list(range(70))
    assert batches[0][0].dtype == torch.bfloat16
    assert len(setting.batches(torch.float32, 2)) == 2


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with this interface before all others, for as long as the test runs."""
    sys.modules.pop("aum", None)

    def installed(offset):
        (tmp_path / "aum-1.0.2.dist-info").mkdir()
        (tmp_path / "aum-1.0.2.dist-info" / "METADATA").write_text("Name: aum\nVersion: 1.0.2\n")
        (tmp_path / "aum.py").write_text(PEER.replace("OFFSET", offset))
        monkeypatch.syspath_prepend(tmp_path)

    yield installed
    sys.modules.pop("aum", None)


def peer_of(setting):
    batches = setting.batches(torch.float32)
    shown = range(setting.samples)

    def check(aum_of, _out):
        found = dict(zip([i for _, _, ids in batches for i in ids.tolist()], aum_of(), strict=True))
        expected = {}
        for logits, labels, ids in batches:
            for row, label, one in zip(logits.tolist(), labels.tolist(), ids.tolist(), strict=True):
                expected[one] = row[label] - max(v for c, v in enumerate(row) if c != label)
        return aum_error(
            np.array([found[one] for one in shown]), np.array([expected[one] for one in shown])
        )

    return aum_package(setting.work, batches, shown, check)


@pytest.mark.parametrize(("offset", "right"), [("0", True), ("0.01", False)])
def test_a_peer_whose_aum_differs_has_failed(setting, install, offset, right):
    install(offset)
    peer = peer_of(setting)
    assert isinstance(peer, Contender)
    assert peer.versions == {"aum": "1.0.2"}
    for _ in range(2):
        peer.run(Path())
        assert (peer.check(Path()) == "") is right


def test_a_peer_that_cannot_be_imported_is_absent_with_the_reason(setting, monkeypatch):
    monkeypatch.setitem(sys.modules, "aum", None)  # Python's way to say that there is none
    peer = peer_of(setting)
    assert isinstance(peer, Absent)
    assert "import of aum halted" in peer.row()["absent"]


def test_an_aum_that_is_far_or_missing_is_a_complaint():
    expected = np.array([1.0, -2.0, 30.0])
    assert aum_error(expected.astype(np.float32), expected) == ""
    assert "1 samples" in aum_error(np.array([1.0, -2.1, 30.0]), expected)
    assert "nan" in aum_error(np.array([1.0, np.nan, 30.0]), expected)


@pytest.mark.slow
def test_all_accumulators_give_the_same_aum(setting, install):
    install("0")
    rows = list(peers(setting))
    assert [row["role"] for row in rows] == ["ours"] * 4 + ["limit", "peer"]
    assert not [row for row in rows if "failed" in row or "absent" in row]
    assert {row["images"] for row in rows} == {70}


@pytest.mark.slow
def test_an_epoch_is_counted_and_what_it_commits_is_its_state(setting):
    rows = list(epoch_costs(setting))
    assert [row["failed"] for row in rows] == [""] * 5
    assert rows[0]["batches"] == 5
    assert rows[0]["state_bytes"] == 70 * 72
    assert rows[0]["reference_bytes"] == 70 * 13 * 60 * 2


def test_traffic_is_what_operators_read_and_write():
    with Traffic() as traffic:
        one = torch.empty(8)
        one.fill_(1.0)
        first = traffic.n_bytes
        _ = one.view(2, 4) + one.reshape(2, 4)
    assert first == 2 * 32
    assert traffic.n_bytes - first == 3 * 32


def test_waits_are_found_and_a_batch_has_none(setting):
    values = torch.ones(2)
    with HostReads() as reads:
        float(values.sum())
    assert reads.found == ["_local_scalar_dense"]
    rows = {row["name"]: row for row in host_reads(setting)}
    assert rows["waits of the accumulation"]["host_reads"] == []
    assert rows["waits of the training step"]["host_reads"] == []
    assert (rows["compiled network"]["graphs"], rows["compiled network"]["graph_breaks"]) == (1, 0)


def test_a_step_takes_the_published_operations_of_resnet18(setting):
    # torchvision gives 1.814 GFLOPS (multiply-adds) for its ResNet-18 at 224 px and 1000 classes.
    # Backward is twice that but for the gradient of the images, which nobody needs.
    one = step_cost(replace(setting, classes=1000), 224, 2)
    stem = 112 * 112 * 64 * 3 * 7 * 7
    assert one["flops"] / 2 / 2 == pytest.approx(3 * 1.814e9 - stem, rel=1e-3)
    assert one["parameter_bytes"] == one["optimiser_bytes"] == 4 * 11_689_512


def test_a_step_on_tensors_without_values_computes_nothing():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 13))
    meta = torch.device("meta")
    logits = training(network.to(meta), meta, batch=4, size=32).step()
    assert (logits.device.type, tuple(logits.shape)) == ("meta", (4, 13))


def loop(variable, bound, space=""):
    """A loop as Inductor writes it; with spaces, it is that of what does not fill a vector."""
    first, last = "static_cast<int64_t>(0L)", f"static_cast<int64_t>({bound}L)"
    return f"for{space}(int64_t {variable}={first}; {variable}{space}<{space}{last}; {variable}++)"


CODE = f"""
cpp_fused_0 = async_compile.cpp_pybinding(['const float*'], '''
    {loop("x0", 16)}
        {loop("x1", 13)}
            {loop("x1_tail", 13, " ")}
        {loop("x1", 13)}
''')
    def call(self, args):
        cpp_fused_0(arg0_1)
        buf1 = torch.ops.aten.index_add.default(arg0_1)
"""


def test_passes_are_loops_over_the_classes_in_generated_code():
    found = code_counts(CODE, 13)
    assert found == {"functions": 1, "passes": 2, "fallbacks": ["index_add"]}


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (["aten::mkldnn_convolution", "aten::convolution", "aten::conv2d"], "matrix arithmetic"),
        (["aten::copy_", "aten::to", "aten::conv2d"], "casts and copies"),
        (["aten::mul_", "Optimizer.step#SGD.step"], "optimiser"),
        (["aten::addmm", "Optimizer.step#SGD.step"], "optimiser"),
        (["aten::exp", "bench::accumulation"], "accumulation"),
        (["aten::native_batch_norm_backward", "NativeBatchNormBackward0"], "norm"),
        (["aten::max_pool2d_with_indices"], "pooling"),
        (["aten::threshold_backward"], "elementwise"),
        (["aten::nll_loss_forward"], OTHER),
    ],
)
def test_an_event_belongs_to_what_it_is_done_for(names, group):
    assert group_of(names) == group
    assert group in {*GROUPS, OTHER}
