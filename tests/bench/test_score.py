"""Scoring benchmark: both loops do what they are timed for; what its figures mean."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from coreset.bench.harness import Contender, Measured
from coreset.bench.score_labels import Judged, medians_of_labels, row_of
from coreset.bench.score_loops import agreement_of
from coreset.bench.score_noise import areas_of, medians, without_paths
from coreset.bench.score_pipeline import PIPELINE, RESIDENT, rows_of
from coreset.bench.score_training import last_json, random_images, training
from coreset.bench.score_usual import Usual, UsualLoop, opened, transform_of
from coreset.kernels.scores import SCORES
from coreset.shards.format.dataset import Dataset


def measured(name, *seconds):
    contender = Contender(name=name, run=lambda _: None)
    return Measured(contender=contender, seconds=seconds, errors=("",) * (len(seconds) + 1))


@pytest.fixture
def folder(make_photos, tmp_path):
    return make_photos(tmp_path / "photos", per_class=4)


@pytest.fixture
def usual(folder, tmp_path):
    return Usual(
        folder=folder,
        scratch=tmp_path,
        size=32,
        epochs=2,
        batch=5,
        lr=0.01,
        seed=0,
        workers=0,
    )


def test_an_epoch_of_the_pipeline_trains_on_every_image_once():
    scoring = training(random_images(12, 32), 12, 1000, size=32, batch=4)
    scoring.epoch()
    assert scoring.trainer.steps == 3
    assert (scoring.dynamics.visits() == 1).all()


def test_the_share_is_the_median_of_the_shares_within_rounds():
    rows = list(rows_of([measured(PIPELINE, 4.0, 2.0, 1.0), measured(RESIDENT, 2.0, 2.0, 0.8)], 8))
    assert rows[0]["shares"] == [0.5, 1.0, 0.8]
    assert rows[0]["share"] == 0.8
    assert rows[0]["images_per_second"] == 4.0
    assert "share" not in rows[1]


def test_the_usual_loop_keeps_the_mean_margin_of_the_logits(usual):
    loop = UsualLoop(usual)
    batches = list(loop.loader)
    loop.loader = batches  # pyright: ignore[reportAttributeAccessIssue] - the same batches twice
    seen = []
    loop.network.register_forward_hook(lambda _net, _in, logits: seen.append(logits.detach()))
    assert [loop.epoch(), loop.epoch()] == [12, 12]
    margins = {one: [] for one in range(12)}
    for logits, (_, labels, ids) in zip(seen, batches * 2, strict=True):
        for row, label, one in zip(logits.numpy(), labels.tolist(), ids.tolist(), strict=True):
            margins[one].append(row[label] - np.delete(row, label).max())
    expected = [np.mean(margins[one]) for one in range(12)]
    assert list(loop.aum().values()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_both_loops_name_images_alike(usual, photos, packed):
    loop = UsualLoop(replace(usual, folder=photos, batch=20))
    loop.epoch()
    assert sorted(loop.aum()) == sorted(Dataset.open(packed).keys)


def test_crops_of_the_usual_loop_are_normalised_squares():
    transform = transform_of(32)
    crop = transform(Image.new("RGB", (60, 90), (124, 116, 104)))
    assert crop.shape == (3, 32, 32)
    assert crop.abs().max() < 0.02  # that is ImageNet's mean colour


@pytest.mark.slow
def test_the_usual_loop_runs_in_a_process_of_its_own(usual):
    with opened(replace(usual, workers=1), 1) as remote:
        assert remote.epoch() == 12
        assert len(remote.aum()) == 12


def of_pairs(ours, theirs):
    """Scores of two seeds of each loop, over four files."""
    runs = {("ours", 0): ours[0], ("ours", 1): ours[1]}
    runs |= {("usual", 0): theirs[0], ("usual", 1): theirs[1]}
    return {run: dict(zip("abcd", values, strict=True)) for run, values in runs.items()}


def test_loops_must_agree_like_the_seeds_of_one_of_them():
    ascending, almost, reversed_ = [1, 2, 3, 4], [2, 1, 3, 4], [4, 3, 2, 1]
    same = agreement_of(of_pairs([ascending, almost], [ascending, almost]))
    assert same["means"] == pytest.approx(
        {"seeds of ours": 0.8, "between loops": 0.9, "seeds of usual": 0.8}
    )
    assert same["met"]
    apart = agreement_of(of_pairs([ascending, almost], [reversed_, reversed_]))
    assert not apart["met"]


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


def runs_of(*areas):
    about = {"recipe": "linear@1", "proxy": "linear", "epochs": 2, "size": 64, "images": 9}
    return [
        about | {"seed": seed, "percent": 5, "wall_seconds": 1.0, "areas": {"aum": area}}
        for seed, area in enumerate(areas)
    ]


def test_the_goal_is_for_the_median_of_the_seeds():
    row = medians(5, runs_of(0.99, 0.5, 0.98), 0.98)
    assert (row["areas"], row["seeds"], row["met"]) == ({"aum": 0.98}, [0, 1, 2], True)
    assert not medians(5, runs_of(0.97, 0.5, 0.99), 0.98)["met"]


FLIPPED = np.array([True, True, False, False])


def label_rows(*areas):
    """Rows of ``labels`` with these areas of ours and of cleanlab's, seed by seed."""
    issues = np.array([True, False, True, False]), np.array([True, True, True, True])
    for seed, (ours, theirs) in enumerate(areas):
        of_ours = {"confidence_oof": ours, "margin_oof": 0.9, "el2n": 0.8, "aum": 0.7}
        one, other = (
            Judged(of_ours, issues[0], 2.0),
            Judged({"self_confidence": theirs}, issues[1], 9.0),
        )
        yield row_of(25, seed, one, other, FLIPPED)


def test_label_issues_are_weighed_by_precision_and_recall():
    (row,) = label_rows((0.9, 0.9))
    assert row["issues"] == {"found": 2, "precision": 0.5, "recall": 0.5}
    assert row["peer_issues"] == {"found": 4, "precision": 0.5, "recall": 1.0}


def test_out_of_fold_confidence_must_come_near_cleanlab_in_the_worst_run():
    rows = list(label_rows((0.96, 0.9), (0.94, 0.944), (0.95, 0.9)))
    assert [row["met"] for row in rows] == [True, True, True]
    summed = medians_of_labels(25, rows)
    assert (summed["areas"]["confidence_oof"], summed["peer_areas"]["self_confidence"]) == (
        0.95,
        0.9,
    )
    assert summed["worst_difference"] == pytest.approx(-0.004)
    assert summed["met"]
    assert not medians_of_labels(25, [*rows, *label_rows((0.9, 0.906))])["met"]


def test_the_facts_of_a_command_are_its_last_json_line():
    lines = ["auto picked something", '{"event": "progress"}', json.dumps({"images": 3})]
    assert last_json(lines) == {"images": 3}


def test_records_of_a_comparison_leave_places_out():
    costs = [{"path": "/somewhere", "recipe": "full@1", "wall_seconds": 2.0}]
    facts = {"scores": ["/somewhere"], "images": 4, "flipped": 1, "agreement": [], "coresets": []}
    assert "/somewhere" not in str(without_paths(facts | {"costs": costs}))
