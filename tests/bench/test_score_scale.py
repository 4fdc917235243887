"""The benchmark of scoring at scale: whose memory is counted, what is scored, and its tables."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from coreset.bench import record as recording
from coreset.bench import score_scale_tables
from coreset.bench.record import write
from coreset.bench.score_scale_inputs import CACHE, WIDTH, cache_in, write_features, write_records
from coreset.bench.score_scale_memory import memory_in, tree_bytes, watch
from coreset.bench.score_scale_parts import Setting, linear
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.models.features import features_for
from coreset.shards.format.dataset import Dataset

SMAPS = b"""\
5600-5700 r-xp 00002000 fe:00 11                         /usr/lib/lib with spaces.so
Size:                 90 kB
Pss:                  30 kB
Pss_Dirty:            10 kB
Anonymous:            10 kB
7000-7100 r--p 00000000 fe:00 12                         /data/one/rows.f16
Pss:                 500 kB
Anonymous:             0 kB
7100-7200 rw-p 00000000 fe:00 13                         /data/one/changed rows
Pss:                  70 kB
Anonymous:            20 kB
7200-7300 r--p 00000000 fe:00 14                         /data/other/rows.f16
Pss:                   8 kB
Anonymous:             0 kB
7f00-7f10 rw-p 00000000 00:00 0
Pss:                   4 kB
Anonymous:             4 kB
7f10-7f20 rw-p 00000000 00:00 0                          [heap]
Pss:                   2 kB
Anonymous:             4 kB
"""


def test_pages_of_data_files_are_told_from_all_other_memory():
    found = memory_in(SMAPS, Path("/data/one"))
    assert found.total == 614 * 1024
    assert found.data == (500 + 50) * 1024
    assert found.anonymous == (10 + 20 + 4 + 2) * 1024


def test_a_command_is_seen_to_hold_memory_of_its_own_mapped_data_and_files(tmp_path):
    rows, scratch = tmp_path / "data" / "rows", tmp_path / "scratch"
    rows.parent.mkdir()
    scratch.mkdir()
    rows.write_bytes(bytes(50_000_000))
    code = f"""
import mmap, time
from pathlib import Path
file = open({str(rows)!r}, "rb")
rows = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(rows[::4096])
block = bytearray(b"x" * 30_000_000)
Path({str(scratch)!r}, "half").write_bytes(bytes(1234))
time.sleep(1)
"""
    seen = watch(
        [sys.executable, "-c", code],
        data=rows.parent,
        scratch=scratch,
        errors=tmp_path / "errors",
    )
    assert not seen.failed
    assert seen.looks > 1
    # A page cache in large folios may map a little more than was touched, never more than the file.
    assert 49e6 < seen.peak_data_bytes < 51e6
    assert 30e6 < seen.peak_anonymous_bytes <= seen.peak_above_bytes < 90e6
    assert seen.peak_scratch_bytes == 1234
    assert seen.peak_bytes <= seen.peak_above_bytes + seen.peak_data_bytes


def test_a_command_that_fails_says_so(tmp_path):
    seen = watch(
        [sys.executable, "-c", "raise SystemExit('no disk')"],
        data=tmp_path,
        scratch=tmp_path / "absent",
        errors=tmp_path / "errors",
    )
    assert seen.failed == "exit code 1: no disk"


def test_bytes_of_a_folder_are_those_of_all_its_files(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "one").write_bytes(bytes(10))
    (tmp_path / "deeper" / "two").write_bytes(bytes(5))
    assert tree_bytes(tmp_path) == 15
    assert tree_bytes(tmp_path / "absent") == 0


def test_features_of_records_are_found_in_the_cache_and_cluster_by_class(tmp_path):
    with cache_in(tmp_path / "cache"):
        dataset = write_records(tmp_path / "data", 5000)
        spec = write_features(tmp_path / "features", dataset, 0)
        features = features_for(dataset, spec)  # would fail to decode if they were not found
    assert Provenance.read(tmp_path / "data").binds["identity"] == dataset.manifest.identity
    assert features.shape == (5000, WIDTH)
    assert features.dtype == np.float16
    rows = features.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = Dataset.open(tmp_path / "data").labels
    first, *others = np.flatnonzero(labels == labels[0])
    strangers = np.flatnonzero(labels != labels[0])
    assert (rows[others] @ rows[first]).mean() > 0.01 + (rows[strangers] @ rows[first]).mean()


def test_the_cache_is_elsewhere_only_for_a_while(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE, raising=False)
    with cache_in(tmp_path):
        assert os.environ[CACHE] == str(tmp_path)
    assert CACHE not in os.environ
    monkeypatch.setenv(CACHE, "before")
    with cache_in(tmp_path):
        pass
    assert os.environ[CACHE] == "before"


@pytest.mark.slow
def test_records_are_scored_in_processes_of_their_own_and_leave_nothing_behind(tmp_path):
    setting = Setting(
        images=(),
        pixel_epochs=1,
        pixel_batch=1,
        side=20,
        crop=17,
        records=(3000,),
        linear_epochs=1,
        linear_batch=1024,
        final=True,
        seed=0,
        work=tmp_path,
    )
    (row,) = linear(setting)
    assert not row["failed"]
    assert (row["images"], row["features"]) == (3000, "resident")
    assert 4 * 3000 < row["scores_bytes"] < row["artifact_bytes"]
    assert row["peak_anonymous_bytes"] < row["peak_above_bytes"] < row["peak_bytes"]
    assert not list(tmp_path.iterdir())


def _row(part, **fields):
    return {
        "bench": f"score_scale.{part}",
        "failed": "",
        "goal_bytes": 1_500_000_000,
        "peak_above_bytes": 600_000_000,
        "peak_anonymous_bytes": 400_000_000,
        "peak_data_bytes": 0,
        "peak_scratch_bytes": 90_000_000,
        "artifact_bytes": 50_000_000,
        "date": "2026-01-02",
        "commit": "abc",
        "versions": {"torch": "2.0"},
        "hardware": {"processor": "one", "cores": 2, "memory_gib": 24.0},
    } | fields


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "RESULTS", tmp_path)
    training = {"verb": "score", "epochs": 1, "batch": 1024, "final": True, "size": 17}
    linear_rows = {**training, "epochs": 3, "classes": 1000, "columns": 512, "features": "mapped"}
    rows = [
        _row("pixels", verb="synth", images=100, wall_seconds=2.0),
        _row("pixels", images=100, wall_seconds=5.0, scores_bytes=6000, **training),
        _row("pixels", verb="synth", images=300, wall_seconds=3.0, peak_above_bytes=7e8),
        _row("pixels", images=300, wall_seconds=0.1, **training | {"failed": "exit code 4: full"}),
        _row("linear", images=1000, wall_seconds=9.0, scores_bytes=64_000, peak_data_bytes=3e6)
        | linear_rows
        | {"peak_anonymous_bytes": 450_000_000},
        _row("linear", images=100, wall_seconds=8.0, scores_bytes=6400, features_bytes=2_000_000)
        | linear_rows
        | {"features": "resident"},
    ]
    write("score_scale", rows)


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    ("block", "cells"),
    [
        (
            "pixels",
            ["| `synth` | 300 | 3.0 | 10,000 | 5,000 | 400 | 700 | 0 | 90 | 50.0 | 166,666.7 |"],
        ),
        ("pixels", ["| `score` | 100 | 5.0 | 50,000 |  | 400 | 600 | 0 | 90 | 0.0 | 60.0 |"]),
        ("pixels", ["| `score` | 300 | failed: exit code 4: full |"]),
        ("linear", ["| 3, mapped | 90 | 0.1 | 64.0 |", "| 2, resident | 90 | 0.0 | 64.0 |"]),
        ("goal", ["450 MB (`score`, 1,000 images)", "libraries 700 MB", "under 1,500 MB"]),
        ("circumstances", ["2 cores (one)", "1 epoch and the final look", "3 epochs", "512 feat"]),
    ],
)
def test_tables_show_what_each_size_and_each_further_image_cost(block, cells):
    table = getattr(score_scale_tables, f"score_scale_{block}")()
    assert all(cell in table for cell in cells), table
