"""Scoring benchmarks: the loops do what they are timed for; what the figures mean."""

import numpy as np
import pytest
from PIL import Image

from coreset.bench.score_labels import OURS, THEIRS, Judged, areas_of, medians_of, row_of
from coreset.bench.score_loops import (
    digested_epochs,
    training_on,
    transform_of,
    usual_epochs,
)
from coreset.bench.score_scale import ScoreScaleBench
from coreset.kernels.scores import SCORES
from coreset.shards.format.dataset import Dataset


def test_an_epoch_trains_on_every_image_once(packed):
    scoring = training_on(Dataset.open(packed), 32)
    scoring.epoch()
    assert scoring.trainer.steps == 1
    assert (scoring.dynamics.visits() == 1).all()


@pytest.mark.slow
def test_epochs_of_one_seed_end_in_the_same_weights(packed):
    first, second = digested_epochs(packed), digested_epochs(packed)
    before = first()
    assert second() == before
    assert first() != before


def test_the_usual_loop_trains_on_every_image_once(make_photos, tmp_path):
    epoch = usual_epochs(make_photos(tmp_path / "photos", per_class=4), tmp_path, 32, 1)
    assert epoch() == dict.fromkeys(range(12), 1)
    assert epoch() == dict.fromkeys(range(12), 2)


def test_crops_of_the_usual_loop_are_normalised_squares():
    crop = transform_of(32)(Image.new("RGB", (60, 90), (124, 116, 104)))
    assert crop.shape == (3, 32, 32)
    assert crop.abs().max() < 0.02  # that is ImageNet's mean colour


def test_areas_are_those_of_the_hard_end():
    from sklearn.metrics import roc_auc_score

    draws = np.random.default_rng(0)
    flipped = draws.random(50) < 0.3
    columns = {name: draws.random(50, np.float32) for name in ("aum", "loss_mean")}
    ids = np.arange(5, 50)
    found = areas_of(columns, flipped, ids)
    for name, values in columns.items():
        hard = -values if SCORES[name].low_is_hard else values
        assert found[name] == pytest.approx(roc_auc_score(flipped[ids], hard[ids]))


FLIPPED = np.array([True, True, False, False])


def label_rows(*areas):
    """Rows of ``labels`` with these areas of ours and of cleanlab's, seed by seed."""
    issues = np.array([True, False, True, False]), np.array([True, True, True, True])
    return [
        row_of(25, seed, Judged({OURS: ours}, issues[0]), Judged({THEIRS: theirs}, issues[1]),
               FLIPPED)
        for seed, (ours, theirs) in enumerate(areas)
    ]  # fmt: skip


def test_out_of_fold_confidence_must_come_near_cleanlab_in_the_worst_run():
    rows = label_rows((0.96, 0.9), (0.94, 0.944), (0.95, 0.9))
    assert [row["met"] for row in rows] == [True, True, True]
    assert rows[0]["issues"] == {"found": 2, "precision": 0.5, "recall": 0.5}
    assert rows[0]["peer_issues"] == {"found": 4, "precision": 0.5, "recall": 1.0}
    summed = medians_of(25, rows)
    assert summed["areas"] == {OURS: 0.95}
    assert summed["peer_areas"] == {THEIRS: 0.9}
    assert summed["worst_difference"] == pytest.approx(-0.004)
    assert summed["met"]
    assert not medians_of(25, [*rows, *label_rows((0.9, 0.906))])["met"]


@pytest.mark.slow
def test_growth_is_measured_in_processes_that_leave_nothing_behind(tmp_path):
    rows = list(ScoreScaleBench(images=(60,), work=tmp_path).rows())
    assert [row["verb"] for row in rows] == ["synth", "decode", "score"]
    assert not [row["failed"] for row in rows if row["failed"]]
    assert rows[2]["scores_bytes"] < rows[2]["artifact_bytes"]
    assert 50e6 < rows[2]["peak_anonymous_bytes"] < rows[2]["peak_bytes"]
    assert not list(tmp_path.iterdir())
