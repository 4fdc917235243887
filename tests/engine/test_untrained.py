"""Scores without training (``--proxy neighbours``) as a user sees them, and beside trained ones."""

import shutil
from typing import Any

import numpy as np
import pytest

from coreset.engine.artifacts.checkpoints import COMMIT_NAME
from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.engine.scoring.score_table import ScoreTable
from coreset.kernels.feature_scores import class_mean_margins, knn_disagreement
from coreset.shards.format.dataset import Dataset

BACKBONE = ("--backbone", "tf_efficientnet_lite0", "--size", 64)
NEIGHBOURS = ("--proxy", "neighbours", *BACKBONE)
TRAINED = np.random.default_rng(4).normal(0, 1, 60).astype(np.float32)


@pytest.fixture(scope="module")
def noisy(mislabel):
    return mislabel(7)


@pytest.fixture(scope="module")
def untrained(noisy, made):
    out = noisy.with_name("UNTRAINED")
    return made(out, "score", noisy, out, *NEIGHBOURS)


def test_the_columns_are_those_of_the_kernels_on_the_cached_features(noisy, untrained):
    dataset, table = Dataset.open(noisy), ScoreTable.open(untrained)
    features = features_for(dataset, FeatureSpec(backbone="tf_efficientnet_lite0", size=64))
    margins, predicted = class_mean_margins(features, dataset.labels, 3)
    shares = np.concatenate(list(knn_disagreement(features, dataset.labels, 10)))
    expected = {
        "mean_margin": margins,
        "knn_disagreement": shares,
        "predicted": predicted,
        "visits": np.zeros(60, np.int32),
    }
    assert set(table.columns) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(table.columns[name], values)
        assert table.columns[name].dtype == values.dtype
    assert (table.epochs, table.usual_score) == (0, "mean_margin")


def test_the_artifact_names_what_shaped_it_and_holds_no_network(noisy, untrained):
    provenance = Provenance.read(untrained)
    assert provenance.config == {
        "proxy": "neighbours", "recipe": "neighbours@1+changed", "size": 64,
        "backbone": "tf_efficientnet_lite0", "decoder_exact": False,
    }  # fmt: skip
    assert [recorded["role"] for recorded in provenance.inputs] == ["data", "features"]
    assert [line["stage"] for line in read_ledger(untrained)] == ["pack", "embed", "score"]
    assert [path.name for path in (untrained / "gen-000001").iterdir()] == ["scores.zarr"]
    assert not list(noisy.parent.glob(".UNTRAINED*"))


def test_it_is_shown_and_searched_without_naming_a_score(noisy, untrained, done, values_of):
    wrong = {key for at, key in enumerate(Dataset.open(noisy).keys) if at % 7 == 0}
    shown = values_of("scores", "show", untrained)
    assert (shown["score"], shown["epochs"]) == ("mean_margin", 0)
    assert list(shown["summary"]) == ["mean_margin", "knn_disagreement"]
    assert f"60 images scored without training: {untrained}" in done("scores", "show", untrained)
    found = values_of("scores", "suspects", untrained, "--top", 9)
    assert found["score"] == "mean_margin"
    assert sum(each["source"].split(".")[0] in str(wrong) for each in found["suspects"]) >= 7
    lines = done("scores", "suspects", untrained)
    assert (
        "told by mean_margin: of features alone, which no training taught a wrong la" in lines[-3]
    )
    assert lines[-1].endswith(f"{untrained} SET --ipc 10 --score mean_margin --misratio 0.3")


def test_a_coreset_by_it_is_measured_and_reported(untrained, val, tmp_path, done, refused):
    condensed, results, page = tmp_path / "SET", tmp_path / "RESULTS", tmp_path / "report.html"
    said = refused(tmp_path, "select", untrained, condensed, "--ipc", 2)
    assert "must be one of mean_margin, knn_disagreement in" in said
    chosen = done("select", untrained, condensed, "--ipc", 2, "--score", "mean_margin")
    assert "(ccs-mean_margin, " in chosen[-2]
    done("measure", condensed, val, results, *BACKBONE)
    done("report", results, page)
    name = ScoreTable.open(untrained).dataset.manifest.name
    assert f"mean_margin of {name} by class" in page.read_text()


@pytest.fixture(scope="module")
def trained(noisy, write_scores):
    """Scores by training that know nothing."""
    columns = {"aum": TRAINED, "el2n": TRAINED**2}
    return write_scores(noisy, noisy.with_name("TRAINED"), columns, config={"recipe": "full@1"})


def test_a_trained_score_is_compared_with_it_by_easiness(untrained, trained, done, values_of):
    from scipy.stats import spearmanr

    ours = ScoreTable.open(untrained).columns
    for score, other, sign in (
        ("aum", "mean_margin", 1),
        ("aum", "knn_disagreement", -1),
        ("el2n", "mean_margin", -1),
        ("el2n", "knn_disagreement", 1),
    ):
        names = ("--score", score, "--other-score", other)
        facts = values_of("scores", "compare", trained, untrained, *names, "--ipc", 2)
        (agreement,) = facts["agreement"]
        values = TRAINED if score == "aum" else TRAINED**2
        ranked: Any = spearmanr(values, ours[other])
        assert agreement["spearman"] == pytest.approx(sign * ranked.statistic)
        assert (agreement["score"], agreement["other_score"]) == (score, other)
        assert [cost["epochs"] for cost in facts["costs"]] == [3, 0]
    lines = done("scores", "compare", trained, untrained)
    assert lines[1].startswith("aum, mean_margin ")
    assert lines[-1] == f"next: coreset select {untrained} SET --ipc 10 --score mean_margin"
    (turned,) = values_of("scores", "compare", untrained, trained)["agreement"]
    assert (turned["score"], turned["other_score"]) == ("mean_margin", "aum")


def test_a_trained_score_that_finds_flipped_labels_no_better_is_told(
    *, noisy, untrained, trained, tmp_path, done, values_of, write_scores
):
    from sklearn.metrics import roc_auc_score

    truth = ("--truth", noisy.with_name("labels.csv"), "--column", "clean")
    dataset, table = Dataset.open(noisy), ScoreTable.open(untrained)
    clean = [line.split(",") for line in (noisy.with_name("labels.csv")).read_text().split()[1:]]
    true = {key: name for key, name, _ in clean}
    wrong = np.array([
        true[key] != dataset.classes[label]
        for key, label in zip(dataset.keys, dataset.labels, strict=True)
    ])  # fmt: skip
    area = roc_auc_score(wrong, -TRAINED)
    floor = roc_auc_score(wrong, -table.columns["mean_margin"])
    assert floor > area
    told = (
        f"aum ({area:.3f}) finds flipped labels no better than mean_margin ({floor:.3f}), "
        "which needs no training"
    )
    for pair in ((trained, untrained), (untrained, trained)):
        assert told in done("scores", "compare", *pair, *truth)
        (agreement,) = values_of("scores", "compare", *pair, *truth)["agreement"]
        assert sorted((agreement["roc_area"], agreement["other_roc_area"])) == [
            pytest.approx(area), pytest.approx(floor),
        ]  # fmt: skip
    for same in (trained, untrained):
        assert not any(
            "no better" in line for line in done("scores", "compare", same, same, *truth)
        )
    perfect = write_scores(noisy, tmp_path / "PERFECT", {"aum": -wrong.astype(np.float32)})
    lines = done("scores", "compare", perfect, untrained, *truth)
    assert not any("no better" in line for line in lines)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("--score", "tdds"), "must be one of aum, el2n in {trained}, got tdds, which was not"),
        (("--other-score", "aum"), "one of mean_margin, knn_disagreement in {untrained}, got aum"),
        (("--other-score", "beauty"), "in {untrained}, got beauty, which is no score"),
    ],
)
def test_a_score_that_one_of_both_lacks_is_refused(
    *, untrained, trained, tmp_path, refused, names, said
):
    shown = refused(tmp_path, "scores", "compare", trained, untrained, *names)
    assert said.format(trained=trained, untrained=untrained) in shown


def test_few_images_have_fewer_neighbours_and_the_only_one_of_a_class_no_margin(
    photos, tmp_path, done, refused
):
    source, data, scores = tmp_path / "src", tmp_path / "DATA", tmp_path / "SCORES"
    for name, count in (("n01440764", 1), ("n02102040", 3), ("n02979186", 3)):
        (source / name).mkdir(parents=True)
        for path in sorted((photos / name).iterdir())[:count]:
            shutil.copy(path, source / name)
    done("pack", source, data)
    lines = done("score", data, scores, *NEIGHBOURS)
    assert lines[-3] == (
        "knn_disagreement is of 6 neighbours, for there are no more images; "
        "1 images have no mean_margin: each is the only one of its class"
    )
    columns, labels = ScoreTable.open(scores).columns, Dataset.open(data).labels
    assert np.array_equal(np.isnan(columns["mean_margin"]), labels == 0)
    assert (columns["knn_disagreement"][labels == 0] == 1).all()
    assert set((columns["knn_disagreement"] * 6).round(4)) <= {4, 6}  # all six others
    said = refused(tmp_path, "scores", "suspects", scores, code=3)
    assert "nan as mean_margin of n01440764" in said
    done("scores", "suspects", scores, "--score", "knn_disagreement")


def test_features_without_direction_leave_nothing_behind(
    packed, tmp_path, refused, done, monkeypatch
):
    command = ("score", packed, tmp_path / "SCORES", *NEIGHBOURS)
    with monkeypatch.context() as patch:
        blank = np.zeros((60, 4), np.float16)
        patch.setattr("coreset.engine.scoring.untrained.feature_table", lambda *_: blank)
        said = refused(tmp_path, *command)
    assert "not all zero, got length 0.0 at position 0 (60 in all); embed these images ag" in said
    done(*command)
    assert (tmp_path / "SCORES" / COMMIT_NAME).is_file()
