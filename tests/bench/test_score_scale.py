"""Scoring at scale: features of records, and a small run."""

import os

import numpy as np
import pytest

from coreset.bench.processes import environment_of
from coreset.bench.score_scale import ScoreScaleBench
from coreset.bench.score_scale_inputs import WIDTH, write_features, write_records
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.models.features import features_for
from coreset.shards.format.dataset import Dataset


def test_features_of_records_are_found_in_the_cache_and_cluster_by_class(tmp_path):
    with environment_of({"CORESET_CACHE": str(tmp_path / "cache")}):
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


@pytest.mark.slow
def test_records_are_scored_in_processes_of_their_own_and_leave_nothing_behind(tmp_path):
    bench = ScoreScaleBench(
        records=(3000,), linear_epochs=1, linear_batch=1024, work=tmp_path, part=("linear",)
    )
    (row,) = bench.rows("linear")
    assert not row["failed"]
    assert (row["images"], row["features"]) == (3000, "resident")
    assert 4 * 3000 < row["scores_bytes"] < row["artifact_bytes"]
    assert row["peak_anonymous_bytes"] < row["peak_above_bytes"] < row["peak_bytes"]
    assert not list(tmp_path.iterdir())
    assert "CORESET_CACHE" not in os.environ or str(tmp_path) not in os.environ["CORESET_CACHE"]
