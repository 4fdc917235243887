"""Scores of two recipes, weighed against each other."""

import csv
import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.misratio import misratio_by_share
from coreset.engine.stages.pack import Pack
from coreset.shards.format.dataset import Dataset

N = 60  # of `packed`: 20 of each of 3 classes
COMPARED = ("--ipc", "2,5", "--misratio", 0.3)


@pytest.fixture
def cheap(packed, columns, tmp_path, write_scores):
    """Cheaper scores of the same data: noisier, without forgetting, one sample lost."""
    aum = columns["aum"] + np.random.default_rng(6).normal(0, 0.3, N).astype(np.float32)
    cheaper = {"aum": aum, "el2n": columns["el2n"] ** 3, "loss_mean": np.zeros(N, np.float32)}
    more: dict[str, Any] = {"undecodable": {"7": "cut"}, "config": {"recipe": "fast@1"}}
    return write_scores(packed, tmp_path / "CHEAP", cheaper, images=60, **more)


def test_rank_correlations_are_those_of_scipy(scores, cheap, columns, packed, values_of):
    def scipy_spearman(ids):
        ranked: Any = spearmanr(columns["aum"][ids], other[ids])
        return float(ranked.statistic)

    values = values_of("scores", "compare", scores, cheap, *COMPARED)
    agreement = {one["score"]: one for one in values["agreement"]}
    assert list(agreement) == ["aum", "el2n"]  # those that both hold
    assert values["images"] == 59
    ids, labels = np.delete(np.arange(N), 7), Dataset.open(packed).labels
    other = columns["aum"] + np.random.default_rng(6).normal(0, 0.3, N).astype(np.float32)
    assert agreement["aum"]["spearman"] == pytest.approx(scipy_spearman(ids))
    within = [scipy_spearman(ids[labels[ids] == label]) for label in range(3)]
    assert agreement["aum"]["spearman_within_class"] == pytest.approx(np.mean(within))
    assert agreement["el2n"]["spearman"] == pytest.approx(1)


def test_the_overlap_is_that_of_the_coresets_that_select_chooses(
    *, packed, columns, tmp_path, done, values_of, write_scores
):
    noise = np.random.default_rng(7).normal(0, 0.2, N).astype(np.float32)
    noisy = columns | {"aum": columns["aum"] + noise}
    pair = [
        write_scores(packed, tmp_path / name, stored)
        for name, stored in (("FULL", columns), ("CHEAP", noisy))
    ]
    drawn = ("--bins", 2, "--seed", 3)  # of so few bins, each holds many to draw from
    values = values_of("scores", "compare", *pair, *COMPARED, *drawn)
    for ipc, overlap in zip((2, 5), values["coresets"], strict=True):
        ours, theirs = (scores.with_name(f"{scores.name}-{ipc}") for scores in pair)
        for scores, out in zip(pair, (ours, theirs), strict=True):
            done("select", scores, out, "--ipc", ipc, "--misratio", 0.3, *drawn)
        shared = np.intersect1d(np.load(ours / "ids.npy"), np.load(theirs / "ids.npy"))
        assert (overlap["ipc"], overlap["share"]) == (ipc, shared.size / (3 * ipc))
        assert overlap["chance"] == pytest.approx(ipc / 20)
        assert 0 < overlap["share"] < 1


def test_the_costs_are_those_of_the_ledgers(scores, cheap, values_of):
    costs = values_of("scores", "compare", scores, cheap, *COMPARED)["costs"]
    for path, cost, images in ((scores, costs[0], 0), (cheap, costs[1], 60)):
        lines = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]
        own = [line["wall_seconds"] for line in lines if "artifact" not in line]
        assert len(lines) > len(own) == 1
        assert (cost["path"], cost["epochs"], cost["images"]) == (str(path), 3, images)
        assert cost["recipe"] == ("fast@1" if path == cheap else "-")
        assert cost["wall_seconds"] == pytest.approx(own[0])
        whole = sum(line["wall_seconds"] for line in lines)
        assert cost["wall_seconds_with_inputs"] == pytest.approx(whole)


@pytest.fixture
def flipped(photos, tmp_path):
    """Photos packed with 9 wrong labels; the table of the true ones; the wrong samples."""
    rows = sorted(path.relative_to(photos) for path in photos.rglob("*.*"))
    classes = sorted({path.parts[0] for path in rows})
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "clean", "noisy", "elsewhere"])
        for at, path in enumerate(rows):
            noisy = classes[(classes.index(path.parts[0]) + (at % 7 == 0)) % 3]
            writer.writerow([f"train/{path.as_posix()}", path.parts[0], noisy, "n00000001"])
    data, table = tmp_path / "NOISY", tmp_path / "labels.csv"
    Pack(src=photos, data=data, labels=table, column="noisy").run()
    dataset = Dataset.open(data)
    return data, table, dataset.labels != dataset.ints("folder_label")


def test_the_areas_under_the_roc_are_those_of_scikit_learn(
    flipped, tmp_path, done, values_of, write_scores
):
    from sklearn.metrics import roc_auc_score

    data, table, wrong = flipped
    assert wrong.sum() == 9
    rng = np.random.default_rng(8)
    margins = [(rng.normal(0, 1, N) - shift * wrong).astype(np.float32) for shift in (3, 1)]
    pair = [
        write_scores(data, tmp_path / name, {"aum": margin, "el2n": -margin})
        for name, margin in zip(("FULL", "CHEAP"), margins, strict=True)
    ]
    command = ("scores", "compare", *pair, *COMPARED, "--truth", table, "--column", "clean")
    facts = values_of(*command)
    assert facts["flipped"] == 9
    for agreement in facts["agreement"]:  # whichever end of the score is hard
        assert agreement["roc_area"] == pytest.approx(roc_auc_score(wrong, -margins[0]))
        assert agreement["other_roc_area"] == pytest.approx(roc_auc_score(wrong, -margins[1]))
    assert done(*command)[0].split()[-4:] == ["ROC", "area", "of", "other"]
    assert "ROC" not in done(*command[:-4])[0]


@pytest.mark.parametrize(
    ("column", "rows", "message"),
    [
        ("noisy", 60, "noisy of {table} differs from 0 of the 60 labels of {data}, so there is n"),
        ("dirty", 60, "{table} has no label column 'dirty'; choose one of clean, noisy, elsewhe"),
        ("elsewhere", 60, "elsewhere is 'n00000001', which is no class folder of {data}; correc"),
        ("clean", 59, "has no row in {table} (1 of 60 files have none)"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(
    *, flipped, refused, column, rows, message, write_scores
):
    data, table, _ = flipped
    tmp_path = table.parent
    table.write_text("".join(table.read_text().splitlines(keepends=True)[: rows + 1]))
    scores = write_scores(data, tmp_path / "S", {"aum": np.arange(N, dtype=np.float32)})
    command = ("scores", "compare", scores, scores, *COMPARED, "--truth", table)
    said = refused(tmp_path, *command, "--column", column)
    assert message.format(table=table, data=data) in said


def test_scores_of_different_data_sets_are_not_compared(
    scores, val, tmp_path, refused, write_scores
):
    others = write_scores(val, tmp_path / "VAL-SCORES", {"aum": np.zeros(18, np.float32)})
    said = refused(tmp_path, "scores", "compare", scores, others, *COMPARED)
    own, foreign = (Provenance.read(path).binds["identity"][:12] for path in (scores, others))
    assert said == (
        f"{scores} scores the data set {own} and {others} the data set {foreign}; "
        "compare scores of one data set"
    )


def test_correlations_need_no_misratio(scores, cheap, done, values_of):
    command = ("scores", "compare", scores, cheap)
    facts = values_of(*command)
    assert [one["ipc"] for one in facts["coresets"]] == [10]  # a class has 20 images, not 50
    assert facts["coresets"][0]["misratio"] == misratio_by_share(10 / (59 / 3))
    lines = done(*command)
    assumed = "assumed: misratio 0, by a rule from the study's Table 6 for 10 of 20 images"
    assert assumed in " ".join(lines)
    assert lines[-1] == f"next: coreset select {cheap} SET --ipc 10"


def test_correlations_of_small_classes_are_told_without_coresets(
    val, tmp_path, done, values_of, write_scores
):
    scores = write_scores(val, tmp_path / "S", {"aum": np.arange(18, dtype=np.float32)})
    facts = values_of("scores", "compare", scores, scores)
    assert facts["coresets"] == []
    assert facts["agreement"][0]["spearman"] == 1
    lines = done("scores", "compare", scores, scores)
    assert "no coresets compared: the smallest class has 6 images; give --ipc" in lines
    assert lines[-1] == f"next: coreset select {scores} SET --ipc 6"
