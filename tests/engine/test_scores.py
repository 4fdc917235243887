"""Scores as a user looks at them: shown, searched for wrong labels, and weighed against others."""

import csv
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import SCORES_NAME, write_columns
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.selection import misratio_by_share
from coreset.engine.runtime.text import Summary, binned, histogram
from coreset.engine.scoring.score_table import listing
from coreset.kernels.scores import SCORES
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.manifest import Manifest

CHECKOUT = Path(__file__).parents[2]
N = 60  # of `packed`: 20 of each of 3 classes


def write_scores(data, out, columns, *, images=0, undecodable=None, config=None):
    """A scores artifact as `coreset score` commits it, without the training."""
    recorded = Provenance.read(data).as_input("data", data, out)
    provenance = Provenance(
        kind="scores",
        stage="score",
        config=config or {},
        binds={"identity": Manifest.read(data).identity},
        inputs=(recorded,),
    )
    with create_artifact(out, provenance, inputs=[data]) as work:
        work.meter.images = images
        visits = np.full(len(next(iter(columns.values()))), 3, np.int32)
        stored = {"visits": visits, **columns}
        generations = Checkpoints(work.scratch)
        generations.commit(9, lambda folder: write_columns(folder / SCORES_NAME, stored, {}))
        if undecodable:
            (work.scratch / "undecodable.json").write_text(json.dumps(undecodable))
    return out


@pytest.fixture(scope="session")
def columns(packed):
    """Scores of the 60 photos; class 1 is the hardest; photos 3 and 4 are predicted otherwise."""
    labels = Dataset.open(packed).labels
    aum = np.random.default_rng(5).permutation(np.linspace(-0.5, 0.9, N)) - 0.4 * (labels == 1)
    predicted = labels.copy()
    predicted[[3, 4]] = (labels[[3, 4]] + 1) % 3
    return {
        "aum": aum.astype(np.float32),
        "el2n": np.linspace(1, 0, N, dtype=np.float32) ** 2,
        "forgetting": (np.arange(N) % 4).astype(np.float32),
        "dyn_unc": np.full(N, np.nan, np.float32),
        "predicted": predicted.astype(np.int32),
    }


@pytest.fixture
def scores(packed, columns, tmp_path):
    return write_scores(packed, tmp_path / "SCORES", columns)


@pytest.fixture
def told(coreset):
    """Run a command that must succeed; returns the facts that it gives to machines."""

    def run(*words):
        there = coreset(*words, "--json")
        assert (there.code, there.err) == (0, "")
        return json.loads(there.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))

    return run


# ---- show


def test_every_score_in_the_store_is_summed_up(scores, columns, done, told):
    summary = told("scores", "show", scores)["summary"]
    assert list(summary) == ["aum", "el2n", "forgetting", "dyn_unc"]
    for name in ("aum", "el2n", "forgetting"):
        values = columns[name].astype(float)
        quartiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
        names = ("low", "lower_quartile", "median", "upper_quartile", "high")
        assert [summary[name][one] for one in names] == pytest.approx(quartiles)
        assert summary[name]["mean"] == pytest.approx(values.mean())
        assert summary[name]["not_finite"] == 0
    assert [summary[name]["hard_end"] for name in ("aum", "el2n")] == ["low", "high"]
    assert (summary["dyn_unc"]["not_finite"], summary["dyn_unc"]["mean"]) == (60, None)
    rows = {line.split()[0]: line.split() for line in done("scores", "show", scores)[1:5]}
    assert rows["el2n"][1:3] == ["high", "0"]
    assert rows["dyn_unc"][1:] == ["high", *["-"] * 6, "60"]


def test_the_histogram_counts_every_image_and_its_longest_bar_fills_the_line(
    scores, columns, done, told, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "50")
    drawn = told("scores", "show", scores)["histogram"]
    expected, edges = np.histogram(columns["aum"].astype(float), bins=20)
    assert drawn["counts"] == expected.tolist()
    assert drawn["edges"] == pytest.approx(edges.tolist())
    lines = done("scores", "show", scores)
    begin = next(at for at, line in enumerate(lines) if line.startswith("aum: ")) + 1
    bars = lines[begin : begin + 20]
    assert [int(line.split()[1]) for line in bars] == expected.tolist()
    longest = max(bars, key=len)
    assert len(longest) == 50
    assert longest.split()[1:] == [str(expected.max()), "█" * longest.count("█")]
    assert all((line.split()[1] == "0") == (len(line.split()) == 2) for line in bars)


def test_classes_are_summed_up_hardest_first(scores, columns, packed, done, told):
    dataset = Dataset.open(packed)
    facts = told("scores", "show", scores)["classes"]
    for label, name in enumerate(dataset.classes):
        members = columns["aum"][dataset.labels == label].astype(float)
        assert facts[name]["n"] == members.size
        assert facts[name]["mean"] == pytest.approx(members.mean())
        assert facts[name]["median"] == pytest.approx(np.median(members))
    for score, hardest in (("aum", min), ("el2n", max)):
        facts = told("scores", "show", scores, "--score", score)["classes"]
        shown = [
            line.split()[0]
            for line in done("scores", "show", scores, "--score", score)
            if line.startswith("n0")
        ]
        assert sorted(shown) == sorted(dataset.classes)
        assert shown[0] == hardest(facts, key=lambda name: facts[name]["mean"])


def test_of_many_classes_the_hardest_and_the_easiest_are_shown(scores, done):
    everything = [line for line in done("scores", "show", scores) if line.startswith("n0")]
    lines = done("scores", "show", scores, "--classes", 1)
    at = lines.index("... 1 classes between ...")
    assert [lines[at - 1], lines[at + 1]] == [everything[0], everything[2]]
    assert everything[1] not in lines


def test_a_class_of_which_no_image_was_scored_comes_last(packed, columns, tmp_path, done):
    labels = Dataset.open(packed).labels
    lost = {str(sample): "truncated" for sample in np.flatnonzero(labels == 1)}
    scores = write_scores(packed, tmp_path / "S", columns, undecodable=lost)
    rows = [line.split() for line in done("scores", "show", scores) if line.startswith("n0")]
    assert rows[-1] == [Dataset.open(packed).classes[1], "0", *["-"] * 6, "0"]


def test_undecodable_samples_are_left_out_of_every_number(packed, columns, tmp_path, told):
    aum = columns["aum"].copy()
    aum[7] = np.nan
    aum[9] = 1e9
    lost = {"7": "truncated", "9": "truncated"}
    scores = write_scores(packed, tmp_path / "S", columns | {"aum": aum}, undecodable=lost)
    facts = told("scores", "show", scores)
    assert (facts["images"], facts["undecodable"]) == (58, 2)
    assert facts["summary"]["aum"]["not_finite"] == 0
    assert facts["summary"]["aum"]["high"] <= 1
    assert sum(facts["histogram"]["counts"]) == 58
    suspects = told("scores", "suspects", scores)["suspects"]
    assert {one["sample"] for one in suspects} == set(range(60)) - {7, 9}


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30])
def test_equal_scores_are_drawn_as_one_bar(packed, tmp_path, told, value):
    columns = {"aum": np.full(N, value, np.float32)}
    scores = write_scores(packed, tmp_path / "S", columns)
    facts = told("scores", "show", scores)
    assert sorted(facts["histogram"]["counts"]) == [0] * 19 + [60]


def test_a_score_without_any_value_is_shown_without_a_histogram(scores, done):
    lines = done("scores", "show", scores, "--score", "dyn_unc")
    (at,) = (at for at, line in enumerate(lines) if line.startswith("dyn_unc: "))
    assert lines[at + 1] == ""


def test_a_data_set_finds_the_scores_beside_it(packed, columns, tmp_path, told, refused):
    data = shutil.copytree(packed, tmp_path / "DATA")
    said = refused(tmp_path, "scores", "show", data)
    assert f"no scores of {data} lie beside it; name them, or make some with `coreset sc" in said
    first = write_scores(data, tmp_path / "FIRST", columns)
    assert told("scores", "show", data)["scores"] == str(first)
    shutil.copytree(first, tmp_path / ".SECOND.partial")  # one in the making
    assert told("scores", "show", data)["scores"] == str(first)
    second = shutil.copytree(first, tmp_path / "SECOND")
    said = refused(tmp_path, "scores", "show", data)
    assert f"2 scores of {data} lie beside it; name one of {first}, {second}" in said


def test_scores_of_another_data_set_beside_it_do_not_count(val, packed, columns, tmp_path, refused):
    data = shutil.copytree(val, tmp_path / "DATA")
    write_scores(packed, tmp_path / "OTHERS", columns)
    assert "lie beside it" in refused(tmp_path, "scores", "show", data)


def test_real_scores_are_shown(scored, done):
    epochs = Provenance.read(scored).config["epochs"]
    lines = done("scores", "show", scored)
    assert lines[-1] == f"next: coreset scores suspects {scored}"
    assert lines[-2] == f"60 images scored over {epochs} epochs: {scored}"


# ---- suspects


def test_suspects_are_the_hardest_with_their_labels(scores, columns, packed, told):
    dataset = Dataset.open(packed)
    rows = dataset.samples.to_pylist()
    suspects = told("scores", "suspects", scores, "--score", "aum", "--top", 7)["suspects"]
    expected = np.argsort(columns["aum"])[:7].tolist()
    assert [one["sample"] for one in suspects] == expected
    for rank, one in enumerate(suspects):
        row = rows[one["sample"]]
        assert one["source"] == row["source"]
        assert one["given_label"] == row["class"]
        assert one["predicted_label"] == dataset.classes[columns["predicted"][row["id"]]]
        assert one["score"] == columns["aum"][row["id"]]
        assert one["share_harder"] == pytest.approx(rank / 59)
        assert one["predicted_otherwise"] == (one["given_label"] != one["predicted_label"])
        assert (one["label_quality"], one["is_label_issue"]) == (None, None)


def test_the_hard_end_of_each_score_is_searched(scores, columns, told):
    suspects = told("scores", "suspects", scores, "--score", "el2n", "--top", 3)["suspects"]
    assert [one["sample"] for one in suspects] == np.argsort(-columns["el2n"])[:3].tolist()


def test_equally_hard_images_have_one_share_and_come_by_id(scores, told):
    suspects = told("scores", "suspects", scores, "--score", "forgetting")["suspects"]
    assert [one["score"] for one in suspects] == [3.0] * 15 + [2.0] * 15 + [1.0] * 15 + [0.0] * 15
    shares = [one["share_harder"] for one in suspects]
    assert shares == pytest.approx([0] * 15 + [15 / 59] * 15 + [30 / 59] * 15 + [45 / 59] * 15)
    for first in range(0, 60, 15):
        ids = [one["sample"] for one in suspects[first : first + 15]]
        assert ids == sorted(ids)


def test_per_class_lists_the_hardest_of_every_class(scores, columns, packed, told):
    labels = Dataset.open(packed).labels
    options = ("--score", "aum", "--top", 2, "--per-class")
    found = told("scores", "suspects", scores, *options)["suspects"]
    ids = [one["sample"] for one in found]
    expected = [
        np.flatnonzero(labels == c)[np.argsort(columns["aum"][labels == c])[:2]] for c in range(3)
    ]
    assert sorted(ids) == sorted(np.concatenate(expected).tolist())
    assert ids == sorted(ids, key=columns["aum"].__getitem__)


def test_without_folds_the_csv_has_columns_of_its_own(scores, columns, packed, tmp_path, done):
    listed = tmp_path / "suspects.csv"
    lines = done("scores", "suspects", scores, "--score", "aum", "--top", 50, "--csv", listed)
    assert lines[21] == f"listed: {listed}"  # below a header and 20 rows
    with listed.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == [
        "sample", "source", "given_label", "predicted_label", "share_harder", "predicted_otherwise",
    ]  # fmt: skip
    assert [int(row["sample"]) for row in rows] == np.argsort(columns["aum"])[:50].tolist()
    shares = [float(row["share_harder"]) for row in rows]
    assert shares == pytest.approx([rank / 59 for rank in range(50)], abs=1e-7)
    labels, predicted = Dataset.open(packed).labels, columns["predicted"]
    for row in rows:
        differs = labels[int(row["sample"])] != predicted[int(row["sample"])]
        assert row["predicted_otherwise"] == str(differs)
        assert (row["given_label"] != row["predicted_label"]) == differs


def test_the_terminal_shows_twenty_and_says_where_the_rest_is(scores, columns, done):
    lines = done("scores", "suspects", scores, "--score", "aum", "--top", 50)
    shown = [int(line.split()[0]) for line in lines[1:21]]
    assert shown == np.argsort(columns["aum"])[:20].tolist()
    assert lines[21] == "and 30 more: --csv FILE lists all"
    n_otherwise = len(set(np.argsort(columns["aum"])[:50].tolist()) & {3, 4})
    assert f"50 of 60 images, hardest by aum first; {n_otherwise} are predicted oth" in lines[22]
    assert f"coreset select {scores} SET" in lines[23]


@pytest.fixture(scope="session")
def out_of_fold(columns):
    """The columns with those of folds; photos 5 and 6 are taken for wrong."""
    predicted = columns["predicted"].copy()
    predicted[[5, 6]] = (predicted[[5, 6]] + 1) % 3
    return columns | {
        "confidence_oof": np.random.default_rng(8).permutation(
            np.linspace(0, 1, N, dtype=np.float32)
        ),
        "margin_oof": np.linspace(1, -1, N, dtype=np.float32),
        "predicted_oof": predicted,
        "label_issue_oof": np.isin(np.arange(N), [5, 6]),
    }


@pytest.mark.parametrize(
    ("skipped", "best", "why"),
    [
        ((), "confidence_oof", "by classifiers that never saw the label"),
        (("confidence_oof",), "el2n", "first epochs, before wrong labels are memorised"),
        (("confidence_oof", "el2n"), "aum", "el2n was not stored"),
    ],
)
def test_the_stored_score_that_finds_wrong_labels_best_is_the_default_and_says_why(  # noqa: PLR0917 - fixtures
    packed, out_of_fold, tmp_path, told, done, skipped, best, why
):
    columns = {name: values for name, values in out_of_fold.items() if name not in skipped}
    scores = write_scores(packed, tmp_path / "S", {"aum": columns["aum"]} | columns)
    facts = told("scores", "suspects", scores)
    ease = columns[best] if SCORES[best].low_is_hard else -columns[best]
    assert facts["score"] == best
    assert [one["sample"] for one in facts["suspects"]] == np.argsort(ease).tolist()
    (line,) = [
        line for line in done("scores", "suspects", scores) if line.startswith(f"told by {best}: ")
    ]
    assert why in line
    chosen = done("scores", "suspects", scores, "--score", best)
    assert not any(line.startswith("told by") for line in chosen)


def test_scores_of_which_none_tells_wrong_labels_are_refused_with_those_there(
    packed, columns, tmp_path, refused
):
    stored = {"forgetting": columns["forgetting"]}
    scores = write_scores(packed, tmp_path / "S", stored)
    said = refused(tmp_path, "scores", "suspects", scores)
    assert f"{scores} has none of the scores confidence_oof, el2n, aum; choose a --score" in said
    assert "of forgetting, or score again" in said


@pytest.mark.parametrize("score", [None, "aum"])
def test_with_folds_the_csv_has_the_columns_of_cleanlab_in_its_sense(
    packed, out_of_fold, tmp_path, told, score
):
    scores, listed = write_scores(packed, tmp_path / "S", out_of_fold), tmp_path / "list.csv"
    options = () if score is None else ("--score", score)
    facts = told("scores", "suspects", scores, "--top", 60, "--csv", listed, *options)
    assert facts["label_issues"] == 2
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    assert list(rows[0]) == [
        "sample", "source", "given_label", "predicted_label", "label_quality", "is_label_issue",
    ]  # fmt: skip
    order = np.argsort(out_of_fold["confidence_oof" if score is None else score])
    assert [int(row["sample"]) for row in rows] == order.tolist()
    classes = Dataset.open(packed).classes
    for row, sample in zip(rows, order, strict=True):
        assert float(row["label_quality"]) == pytest.approx(out_of_fold["confidence_oof"][sample])
        assert row["is_label_issue"] == str(sample in {5, 6})
        assert row["predicted_label"] == classes[out_of_fold["predicted_oof"][sample]]


def test_the_number_of_labels_taken_for_wrong_is_told(packed, out_of_fold, tmp_path, done):
    lines = done("scores", "suspects", write_scores(packed, tmp_path / "S", out_of_fold))
    assert "2 of all 60 labels are taken for wrong (is_label_issue)" in lines


def test_without_predictions_the_cells_are_empty(packed, columns, tmp_path, done):
    del (only := dict(columns))["predicted"]
    scores, listed = write_scores(packed, tmp_path / "S", only), tmp_path / "list.csv"
    lines = done("scores", "suspects", scores, "--top", 1, "--csv", listed)
    assert lines[1].split()[3] == "-"
    assert any("; no predictions were stored: " in line for line in lines)
    (row,) = csv.DictReader(listed.read_text().splitlines())
    assert (row["predicted_label"], row["predicted_otherwise"]) == ("", "")


def test_a_csv_that_is_there_is_replaced(scores, tmp_path, done):
    listed = tmp_path / "list.csv"
    listed.write_text("old\n" * 1000)
    done("scores", "suspects", scores, "--top", 1, "--csv", listed)
    assert len(listed.read_text().splitlines()) == 2
    assert not list(tmp_path.glob(".*"))


def test_a_csv_never_takes_the_place_of_anything_else(scores, tmp_path, refused):
    folder, link, target = tmp_path / "folder", tmp_path / "link", tmp_path / "target"
    folder.mkdir()
    target.write_text("mine")
    link.symlink_to(target)
    for path in (folder, link):
        said = refused(tmp_path, "scores", "suspects", scores, "--csv", path)
        assert said == f"csv {path} is no regular file and is not replaced; choose another name"
    said = refused(tmp_path, "scores", "suspects", scores, "--csv", tmp_path / "no" / "list.csv")
    assert said.endswith(f"lies in a folder that does not exist; make {tmp_path / 'no'}")


# ---- compare


@pytest.fixture
def cheap(packed, columns, tmp_path):
    """Cheaper scores of the same data: noisier, without forgetting, one sample lost."""
    aum = columns["aum"] + np.random.default_rng(6).normal(0, 0.3, N).astype(np.float32)
    cheaper = {"aum": aum, "el2n": columns["el2n"] ** 3, "loss_mean": np.zeros(N, np.float32)}
    return write_scores(
        packed,
        tmp_path / "CHEAP",
        cheaper,
        images=60,
        undecodable={"7": "cut"},
        config={"recipe": "fast@1"},
    )


COMPARED = ("--ipc", "2,5", "--misratio", 0.3)


def scipy_spearman(one, other):
    ranked: Any = spearmanr(one, other)
    return float(ranked.statistic)


def test_rank_correlations_are_those_of_scipy(scores, cheap, columns, packed, told):
    facts = told("scores", "compare", scores, cheap, *COMPARED)
    agreement = {one["score"]: one for one in facts["agreement"]}
    assert list(agreement) == ["aum", "el2n"]  # those that both hold
    assert facts["images"] == 59
    ids = np.delete(np.arange(N), 7)
    noise = np.random.default_rng(6).normal(0, 0.3, N).astype(np.float32)
    other, labels = columns["aum"] + noise, Dataset.open(packed).labels
    assert agreement["aum"]["spearman"] == pytest.approx(
        scipy_spearman(columns["aum"][ids], other[ids])
    )
    members = [ids[labels[ids] == label] for label in range(3)]
    within = [scipy_spearman(columns["aum"][one], other[one]) for one in members]
    assert agreement["aum"]["spearman_within_class"] == pytest.approx(np.mean(within))
    assert agreement["el2n"]["spearman"] == pytest.approx(1)


def test_the_overlap_is_that_of_the_coresets_that_select_chooses(
    packed, columns, tmp_path, done, told
):
    noise = np.random.default_rng(7).normal(0, 0.2, N).astype(np.float32)
    pair = [
        write_scores(packed, tmp_path / name, columns | {"aum": columns["aum"] + extra})
        for name, extra in (("FULL", np.float32(0)), ("CHEAP", noise))
    ]
    facts = told("scores", "compare", *pair, *COMPARED, "--seed", 3)
    assert [one["ipc"] for one in facts["coresets"]] == [2, 5]
    for one in facts["coresets"]:
        chosen = []
        for scores in pair:
            out = tmp_path / f"{scores.name}-{one['ipc']}"
            options = ("--ipc", one["ipc"], "--misratio", 0.3, "--seed", 3)
            done("select", scores, out, *options)
            chosen.append(set(np.load(out / "ids.npy").tolist()))
        assert one["share"] == len(chosen[0] & chosen[1]) / len(chosen[0])
        assert one["chance"] == pytest.approx(one["ipc"] / 20)
        assert 0 < one["share"] < 1


def test_scores_agree_with_themselves_wholly(scores, done, told):
    facts = told("scores", "compare", scores, scores, *COMPARED)
    assert [one["share"] for one in facts["coresets"]] == [1, 1]
    assert all(one["unrelated"] < 1 for one in facts["coresets"])
    by_score = {one["score"]: one for one in facts["agreement"]}
    assert by_score["aum"]["spearman"] == by_score["aum"]["spearman_within_class"] == 1
    assert by_score["dyn_unc"]["spearman"] is None
    lines = done("scores", "compare", scores, scores, *COMPARED)
    assert lines[-1] == f"next: coreset select {scores} SET --ipc 2"
    assert ["dyn_unc", "-", "-"] in [line.split() for line in lines]


def test_the_costs_are_those_of_the_ledgers(scores, cheap, told):
    costs = told("scores", "compare", scores, cheap, *COMPARED)["costs"]
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
    from coreset.engine.stages.pack import Pack

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


def test_the_areas_under_the_roc_are_those_of_scikit_learn(flipped, tmp_path, done, told):
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
    facts = told(*command)
    assert facts["flipped"] == 9
    for one in facts["agreement"]:  # whichever end of the score is hard
        assert one["roc_area"] == pytest.approx(roc_auc_score(wrong, -margins[0]))
        assert one["other_roc_area"] == pytest.approx(roc_auc_score(wrong, -margins[1]))
    assert done(*command)[0].split()[-4:] == ["ROC", "area", "of", "other"]
    assert "ROC" not in done(*command[:-4])[0]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("noisy", "noisy of {table} differs from 0 of the 60 labels of {data}, so there is noth"),
        ("dirty", "{table} has no label column 'dirty'; choose one of clean, noisy, elsewhere"),
        ("elsewhere", "elsewhere is 'n00000001', which is no class folder of {data}; correct"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(flipped, tmp_path, refused, column, message):
    data, table, _ = flipped
    scores = write_scores(data, tmp_path / "S", {"aum": np.arange(N, dtype=np.float32)})
    command = ("scores", "compare", scores, scores, *COMPARED, "--truth", table)
    said = refused(tmp_path, *command, "--column", column)
    assert message.format(table=table, data=data) in said


def test_a_truth_with_a_missing_row_is_refused(flipped, tmp_path, refused):
    data, table, _ = flipped
    scores = write_scores(data, tmp_path / "S", {"aum": np.arange(N, dtype=np.float32)})
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))
    command = ("scores", "compare", scores, scores, *COMPARED, "--truth", table)
    said = refused(tmp_path, *command, "--column", "clean")
    assert f"has no row in {table} (1 of 60 files have none)" in said


def test_scores_of_different_data_sets_are_not_compared(scores, val, tmp_path, refused):
    others = write_scores(val, tmp_path / "VAL-SCORES", {"aum": np.zeros(18, np.float32)})
    said = refused(tmp_path, "scores", "compare", scores, others, *COMPARED)
    here, there = (Provenance.read(one).binds["identity"][:12] for one in (scores, others))
    assert said == (
        f"{scores} scores the data set {here} and {others} the data set {there}; "
        "compare scores of one data set"
    )


def test_correlations_need_no_misratio(scores, cheap, done, told):
    command = ("scores", "compare", scores, cheap)
    facts = told(*command)
    assert [one["ipc"] for one in facts["coresets"]] == [10]  # a class has 20 images, not 50
    assert facts["coresets"][0]["misratio"] == misratio_by_share(10 / (59 / 3))
    lines = done(*command)
    assert (
        "assumed: misratio 0, by a rule from the study's Table 6 for 10 of 20 images"
        in " ".join(lines)
    )
    assert lines[-1] == f"next: coreset select {cheap} SET --ipc 10"


def test_correlations_of_small_classes_are_told_without_coresets(val, tmp_path, done, told):
    scores = write_scores(val, tmp_path / "S", {"aum": np.arange(18, dtype=np.float32)})
    facts = told("scores", "compare", scores, scores)
    assert facts["coresets"] == []
    assert facts["agreement"][0]["spearman"] == 1
    lines = done("scores", "compare", scores, scores)
    assert "no coresets compared: the smallest class has 6 images; give --ipc" in lines
    assert lines[-1] == f"next: coreset select {scores} SET --ipc 6"


# ---- what is refused everywhere


@pytest.fixture
def folder(packed, columns, tmp_path, monkeypatch):
    """The current folder; it holds scores called S."""
    write_scores(packed, tmp_path / "S", columns)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "S", "--classes", 0), "classes must be at least 1, got 0"),
        (("suspects", "S", "--top", 0), "top must be at least 1, got 0"),
        (
            ("compare", "S", "S", "--ipc", "2,,5"),
            "ipc must be whole numbers such as 10,50, got 2,,",
        ),
        (("compare", "S", "S", "--ipc", "0"), "ipc must be at least 1, got 0"),
        (("compare", "S", "S", "--ipc", "-3"), "ipc must be whole numbers such as 10,50, got -3"),
        (("compare", "S", "S", "--ipc", ""), "ipc must be whole numbers such as 10,50, got"),
        (("compare", "S", "S", "--bins", 0), "bins must be at least 1, got 0"),
        (("compare", "S", "S", "--misratio", 1), "misratio must be in [0, 1), got 1.0"),
        (("compare", "S", "S", "--truth", "t.csv"), "truth and column go together, got truth t.c"),
        (("compare", "S", "S", "--column", "c"), "truth and column go together, got truth None"),
        (
            ("compare", "S", "S", "--ipc", 21, "--misratio", 0),
            "got 21, but class n01440764 has 20 images; lower --ipc",
        ),
        (("show", "S", "--score", "tdds"), "forgetting, dyn_unc in S, got tdds, which was not sto"),
        (("suspects", "S", "--score", "beauty"), "dyn_unc in S, got beauty, which is no score"),
        (("suspects", "S", "--score", "visits"), "dyn_unc in S, got visits, which is no score"),
        (
            ("compare", "S", "S", *COMPARED, "--score", "loss_mean"),
            "score must be one of aum, el2n, forgetting, dyn_unc in S, got loss_mean, which was",
        ),
        (("show", "no"), "no does not exist; make it with `coreset score DATA no`"),
        (("suspects", "."), ". holds no scores; name the output of `coreset score`"),
        (("compare", "S", "no"), "no does not exist; make it with `coreset score DATA no`"),
        (("dance", "S"), "Unrecognized options: dance, S; Available subcommands: show, suspects"),
        ((), "Expected one of {show, suspects, compare}"),
        (("show", "S", "--top", 5), "--top"),
    ],
)
def test_bad_arguments_are_refused_with_the_reason(folder, refused, words, message):
    assert message in refused(folder, "scores", *words)


@pytest.mark.parametrize("words", [("suspects", "S"), ("compare", "S", "S", *COMPARED)])
def test_an_image_without_a_value_is_named(folder, packed, refused, words):
    said = refused(folder, "scores", *words, "--score", "dyn_unc", code=3)
    assert f"nan as dyn_unc of {Dataset.open(packed).keys[0]} (60 are not finite)" in said


def test_scores_of_another_number_of_images_are_refused(packed, tmp_path, refused):
    scores = write_scores(packed, tmp_path / "S", {"aum": np.zeros(59, np.float32)})
    said = refused(tmp_path, "scores", "show", scores, code=3)
    assert "aum has 59 rows for 60 images" in said


def test_damaged_scores_are_refused(scores, tmp_path, refused):
    chunk = next(path for path in scores.rglob("aum/c/*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    for words in (("show", scores), ("suspects", scores), ("compare", scores, scores)):
        said = refused(tmp_path, "scores", *words, code=3)
        assert said == f"{scores}: every generation is damaged; remove it, run again"


@pytest.mark.parametrize(
    "words", [("show", "F"), ("suspects", "F"), ("compare", "F", "F", *COMPARED)]
)
def test_a_data_set_that_moved_is_asked_for_and_taken(folder, packed, refused, done, words):
    (folder / "away").mkdir()
    shutil.copytree(folder / "S", folder / "away" / "F")
    words = ("scores", *("away/F" if word == "F" else word for word in words))
    assert "name its place with --data" in refused(folder, *words)
    done(*words, "--data", packed)


def test_another_data_set_in_its_place_is_refused(scores, val, tmp_path, refused):
    for words in (("show", scores), ("suspects", scores), ("compare", scores, scores)):
        said = refused(tmp_path, "scores", *words, "--data", val)
        assert f"but the scores {scores} was made from" in said


# ---- parts


def test_bars_are_of_ascii_where_the_terminal_has_no_blocks():
    lines = list(histogram([1, 4, 0], [0, 1, 2, 3], width=24, encoding="ascii"))
    assert lines == ["      0.0  1  ###", "      1.0  4  " + "#" * 10, "      2.0  0"]
    lines = list(histogram([1, 4, 0], [0, 1, 2, 3], width=24, encoding="utf-8"))
    assert lines == ["      0.0  1  ██▌", "      1.0  4  " + "█" * 10, "      2.0  0"]


def test_a_single_image_among_a_million_shows():
    for encoding, mark in (("utf-8", "▏"), ("latin-1", "#")):
        lines = list(histogram([1_000_000, 1], [0, 0.5, 1], width=80, encoding=encoding))
        assert lines[1].split() == ["0.50", "1", mark]


def test_infinite_numbers_are_counted_and_left_out():
    spread = Summary.of(np.array([1, math.inf, 3, math.nan, -math.inf], np.float32))
    assert (spread.n, spread.not_finite, spread.low, spread.high, spread.mean) == (5, 3, 1, 3, 2)
    assert sum(binned(np.array([1, math.inf, 3]), 4)[0]) == 2
    assert replace(spread, mean=math.nan).facts()["mean"] is None


def test_the_listing_has_a_row_for_every_score():
    header, *rows = listing()
    assert header.split() == ["score", "hard", "end", "unit", "what", "it", "is", "source"]
    for row, (name, meaning) in zip(rows, SCORES.items(), strict=True):
        assert row.split()[:2] == [name, "low" if meaning.low_is_hard else "high"]
        assert meaning.unit in row
        assert meaning.summary in row
        assert row.endswith(meaning.source)


WITHOUT_TORCH = """
import sys
from coreset.engine.cli import main

scores, out = sys.argv[1:]
for words in (
    ["show", scores],
    ["suspects", scores, "--csv", out],
    ["compare", scores, scores, "--ipc", "2", "--misratio", "0.1"],
    ["--help"],
):
    assert main(["scores", *words]) == 0, words
    assert not {"torch", "sklearn"} & set(sys.modules), words
"""


def test_looking_at_scores_imports_no_torch(scores, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(scores), str(tmp_path / "list.csv")]
    subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
