"""Scores as a user looks at them: shown, searched for wrong labels, and weighed against others."""

import csv
import json
import math
import shutil
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.methods import misratio_by_share
from coreset.engine.runtime.text import Summary, binned, histogram
from coreset.engine.scoring.score_table import listing
from coreset.kernels.scores import SCORES
from coreset.shards.format.dataset import Dataset

N = 60  # of `packed`: 20 of each of 3 classes


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
def scores(packed, columns, tmp_path, write_scores):
    return write_scores(packed, tmp_path / "SCORES", columns)


@pytest.fixture
def told(coreset):
    """Run a command that must succeed; returns the values that it gives to machines."""

    def run(*words):
        result = coreset(*words, "--json")
        assert (result.code, result.err) == (0, "")
        return json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))

    return run


# ---- show


def test_every_score_in_the_store_is_summed_up(scores, columns, done, told):
    summary = told("scores", "show", scores)["summary"]
    assert list(summary) == ["aum", "el2n", "forgetting", "dyn_unc"]
    for name in ("aum", "el2n", "forgetting"):
        values = columns[name].astype(float)
        low, lower, median, upper, high = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
        assert summary[name] == {
            "hard_end": "low" if name == "aum" else "high",
            "n": N,
            "not_finite": 0,
            "low": pytest.approx(low),
            "lower_quartile": pytest.approx(lower),
            "median": pytest.approx(median),
            "upper_quartile": pytest.approx(upper),
            "high": pytest.approx(high),
            "mean": pytest.approx(values.mean()),
        }
    assert (summary["dyn_unc"]["not_finite"], summary["dyn_unc"]["mean"]) == (60, None)
    lines = done("scores", "show", scores, "--score", "dyn_unc")
    rows = {line.split()[0]: line.split() for line in lines[1:5]}
    assert rows["el2n"][1:3] == ["high", "0"]
    assert rows["dyn_unc"][1:] == ["high", *["-"] * 6, "60"]
    assert (lines[6][:9], lines[7]) == ("dyn_unc: ", ""), "no histogram of no value"
    shown = f"60 images scored over 3 epochs: {scores}"
    assert lines[-2:] == [shown, f"next: coreset scores suspects {scores}"]


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
    assert max(map(len, bars)) == 50


def class_rows(lines):
    return [line for line in lines if line.startswith("n0")]


def test_classes_are_summed_up_hardest_first_and_of_many_only_both_ends(
    scores, columns, packed, done, told
):
    dataset = Dataset.open(packed)
    for score, hard_end in (("aum", 1), ("el2n", -1)):
        words = ("scores", "show", scores, "--score", score)
        means = {
            name: columns[score][dataset.labels == label].mean(dtype=float)
            for label, name in enumerate(dataset.classes)
        }
        summaries = told(*words)["classes"]
        assert {summary["n"] for summary in summaries.values()} == {20}
        found = {name: summary["mean"] for name, summary in summaries.items()}
        assert found == pytest.approx(means)
        rows = class_rows(done(*words))
        assert [line.split()[0] for line in rows] == sorted(
            means, key=lambda name, means=means, end=hard_end: end * means[name]
        )
        lines = done(*words, "--classes", 1)
        assert class_rows(lines) == [rows[0], rows[2]]
        assert lines[lines.index(rows[0]) + 1] == "... 1 classes between ..."


def test_undecodable_samples_are_left_out_of_every_number(
    packed, columns, tmp_path, told, write_scores
):
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


def test_a_data_set_finds_its_scores_beside_it(
    *, packed, val, tmp_path, told, refused, write_scores
):
    data = shutil.copytree(packed, tmp_path / "DATA")
    write_scores(val, tmp_path / "OTHERS", {"aum": np.zeros(18, np.float32)})
    said = refused(tmp_path, "scores", "show", data)
    assert f"no scores of {data} lie beside it; name them, or make some with `coreset sc" in said
    first = write_scores(data, tmp_path / "FIRST", {"aum": np.arange(N, dtype=np.float32)})
    assert told("scores", "show", data)["scores"] == str(first)
    shutil.copytree(first, tmp_path / ".SECOND.partial")  # one in the making
    assert told("scores", "show", data)["scores"] == str(first)
    second = shutil.copytree(first, tmp_path / "SECOND")
    said = refused(tmp_path, "scores", "show", data)
    assert f"2 scores of {data} lie beside it; name one of {first}, {second}" in said


# ---- suspects


def test_suspects_are_the_hardest_with_their_labels_shown_listed_and_told(
    scores, columns, packed, done, told
):
    dataset, listed = Dataset.open(packed), scores.with_name("suspects.csv")
    words = ("scores", "suspects", scores, "--score", "aum", "--top", 50)
    expected = np.argsort(columns["aum"])[:50].tolist()
    suspects = told(*words)["suspects"]
    assert [suspect["sample"] for suspect in suspects] == expected
    for rank, suspect in enumerate(suspects):
        sample = suspect["sample"]
        predicted = columns["predicted"][sample]
        assert suspect == {
            "sample": sample,
            "source": dataset.samples["source"][sample].as_py(),
            "given_label": dataset.classes[dataset.labels[sample]],
            "predicted_label": dataset.classes[predicted],
            "score": columns["aum"][sample],
            "share_harder": pytest.approx(rank / 59),
            "predicted_otherwise": bool(predicted != dataset.labels[sample]),
            "label_quality": None,
            "is_label_issue": None,
        }
    lines = done(*words)
    assert [int(line.split()[0]) for line in lines[1:21]] == expected[:20]
    assert lines[21] == "and 30 more: --csv FILE lists all"
    n_otherwise = len({*expected} & {3, 4})
    assert f"50 of 60 images, hardest by aum first; {n_otherwise} are predicted oth" in lines[22]
    assert f"coreset select {scores} SET" in lines[23]
    assert done(*words, "--csv", listed)[21] == f"listed: {listed}"
    names = (
        "sample", "source", "given_label", "predicted_label", "share_harder", "predicted_otherwise",
    )  # fmt: skip
    rows = [
        [f"{suspect[name]:.7g}" if name == "share_harder" else str(suspect[name]) for name in names]
        for suspect in suspects
    ]
    assert list(csv.reader(listed.read_text().splitlines())) == [list(names), *rows]


def test_equally_hard_images_have_one_share_and_come_by_id(scores, told):
    suspects = told("scores", "suspects", scores, "--score", "forgetting")["suspects"]
    assert [suspect["sample"] for suspect in suspects] == [
        sample for score in (3, 2, 1, 0) for sample in range(score, N, 4)
    ]
    shares = [suspect["share_harder"] for suspect in suspects]
    assert shares == pytest.approx([at // 15 * 15 / 59 for at in range(N)])


def test_per_class_lists_the_hardest_of_every_class(scores, columns, packed, told):
    labels, aum = Dataset.open(packed).labels, columns["aum"]
    options = ("--score", "aum", "--top", 2, "--per-class")
    suspects = told("scores", "suspects", scores, *options)["suspects"]
    members = [np.flatnonzero(labels == label) for label in range(3)]
    expected = [sample for ids in members for sample in ids[np.argsort(aum[ids])[:2]]]
    assert [suspect["sample"] for suspect in suspects] == sorted(expected, key=aum.__getitem__)


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


def test_the_stored_score_that_finds_wrong_labels_best_is_the_default(
    packed, out_of_fold, tmp_path, done, write_scores
):
    columns = dict(out_of_fold)
    for best, why in (
        ("confidence_oof", "by classifiers that never saw the label"),
        ("el2n", "of the first epochs, before wrong labels are memorised"),
        ("aum", "el2n was not stored"),
    ):
        words = ("scores", "suspects", write_scores(packed, tmp_path / best, columns))
        lines = done(*words)
        (line,) = [line for line in lines if line.startswith("told by")]
        assert line.startswith(f"told by {best}: {why}")
        lines.remove(line)
        assert done(*words, "--score", best) == lines
        del columns[best]


def test_with_folds_the_csv_has_the_columns_of_cleanlab_in_its_sense(
    *, packed, out_of_fold, tmp_path, told, done, write_scores
):
    scores, listed = write_scores(packed, tmp_path / "S", out_of_fold), tmp_path / "list.csv"
    words = ("scores", "suspects", scores, "--csv", listed, "--score", "aum")
    assert "2 of all 60 labels are taken for wrong (is_label_issue)" in done(*words)
    assert told(*words)["label_issues"] == 2
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    assert list(rows[0]) == [
        "sample", "source", "given_label", "predicted_label", "label_quality", "is_label_issue",
    ]  # fmt: skip
    order = np.argsort(out_of_fold["aum"])
    assert [int(row["sample"]) for row in rows] == order.tolist()
    classes = Dataset.open(packed).classes
    for row, sample in zip(rows, order, strict=True):
        assert float(row["label_quality"]) == pytest.approx(out_of_fold["confidence_oof"][sample])
        assert row["is_label_issue"] == str(sample in {5, 6})
        assert row["predicted_label"] == classes[out_of_fold["predicted_oof"][sample]]


def test_without_predictions_the_cells_are_empty(packed, columns, tmp_path, done, write_scores):
    del (only := dict(columns))["predicted"]
    scores, listed = write_scores(packed, tmp_path / "S", only), tmp_path / "list.csv"
    lines = done("scores", "suspects", scores, "--top", 1, "--csv", listed)
    assert lines[1].split()[3] == "-"
    assert any("; no predictions were stored: " in line for line in lines)
    (row,) = csv.DictReader(listed.read_text().splitlines())
    assert (row["predicted_label"], row["predicted_otherwise"]) == ("", "")


def test_a_csv_replaces_a_file_and_never_anything_else(scores, tmp_path, done, refused):
    listed, folder, link = tmp_path / "list.csv", tmp_path / "folder", tmp_path / "link"
    listed.write_text("old\n" * 1000)
    done("scores", "suspects", scores, "--top", 1, "--csv", listed)
    assert len(listed.read_text().splitlines()) == 2
    assert not list(tmp_path.glob(".*"))
    folder.mkdir()
    link.symlink_to(listed)
    for path in (folder, link):
        said = refused(tmp_path, "scores", "suspects", scores, "--csv", path)
        assert said == f"csv {path} is no regular file and is not replaced; choose another name"
    said = refused(tmp_path, "scores", "suspects", scores, "--csv", tmp_path / "no" / "list.csv")
    assert said.endswith(f"lies in a folder that does not exist; make {tmp_path / 'no'}")


# ---- compare


@pytest.fixture
def cheap(packed, columns, tmp_path, write_scores):
    """Cheaper scores of the same data: noisier, without forgetting, one sample lost."""
    aum = columns["aum"] + np.random.default_rng(6).normal(0, 0.3, N).astype(np.float32)
    cheaper = {"aum": aum, "el2n": columns["el2n"] ** 3, "loss_mean": np.zeros(N, np.float32)}
    more: dict[str, Any] = {
        "images": 60,
        "undecodable": {"7": "cut"},
        "config": {"recipe": "fast@1"},
    }
    return write_scores(packed, tmp_path / "CHEAP", cheaper, **more)


COMPARED = ("--ipc", "2,5", "--misratio", 0.3)


def test_rank_correlations_are_those_of_scipy(scores, cheap, columns, packed, told):
    def scipy_spearman(ids):
        ranked: Any = spearmanr(columns["aum"][ids], other[ids])
        return float(ranked.statistic)

    values = told("scores", "compare", scores, cheap, *COMPARED)
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
    *, packed, columns, tmp_path, done, told, write_scores
):
    noise = np.random.default_rng(7).normal(0, 0.2, N).astype(np.float32)
    noisy = columns | {"aum": columns["aum"] + noise}
    pair = [
        write_scores(packed, tmp_path / name, stored)
        for name, stored in (("FULL", columns), ("CHEAP", noisy))
    ]
    values = told("scores", "compare", *pair, *COMPARED, "--seed", 3)
    for ipc, overlap in zip((2, 5), values["coresets"], strict=True):
        ours, theirs = (scores.with_name(f"{scores.name}-{ipc}") for scores in pair)
        for scores, out in zip(pair, (ours, theirs), strict=True):
            done("select", scores, out, "--ipc", ipc, "--misratio", 0.3, "--seed", 3)
        shared = np.intersect1d(np.load(ours / "ids.npy"), np.load(theirs / "ids.npy"))
        assert (overlap["ipc"], overlap["share"]) == (ipc, shared.size / (3 * ipc))
        assert overlap["chance"] == pytest.approx(ipc / 20)
        assert 0 < overlap["share"] < 1


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


def test_the_areas_under_the_roc_are_those_of_scikit_learn(
    flipped, tmp_path, done, told, write_scores
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
    facts = told(*command)
    assert facts["flipped"] == 9
    for one in facts["agreement"]:  # whichever end of the score is hard
        assert one["roc_area"] == pytest.approx(roc_auc_score(wrong, -margins[0]))
        assert one["other_roc_area"] == pytest.approx(roc_auc_score(wrong, -margins[1]))
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
    assumed = "assumed: misratio 0, by a rule from the study's Table 6 for 10 of 20 images"
    assert assumed in " ".join(lines)
    assert lines[-1] == f"next: coreset select {cheap} SET --ipc 10"


def test_correlations_of_small_classes_are_told_without_coresets(
    val, tmp_path, done, told, write_scores
):
    scores = write_scores(val, tmp_path / "S", {"aum": np.arange(18, dtype=np.float32)})
    facts = told("scores", "compare", scores, scores)
    assert facts["coresets"] == []
    assert facts["agreement"][0]["spearman"] == 1
    lines = done("scores", "compare", scores, scores)
    assert "no coresets compared: the smallest class has 6 images; give --ipc" in lines
    assert lines[-1] == f"next: coreset select {scores} SET --ipc 6"


# ---- what is refused everywhere


def test_scores_of_which_none_tells_wrong_labels_are_refused(
    packed, columns, tmp_path, refused, write_scores
):
    scores = write_scores(packed, tmp_path / "S", {"forgetting": columns["forgetting"]})
    said = refused(tmp_path, "scores", "suspects", scores)
    assert f"{scores} has none of the scores confidence_oof, el2n, aum; choose a --score" in said


def test_an_image_without_a_value_is_named(scores, packed, tmp_path, refused):
    for words in (("suspects", scores), ("compare", scores, scores, *COMPARED)):
        said = refused(tmp_path, "scores", *words, "--score", "dyn_unc", code=3)
        assert f"nan as dyn_unc of {Dataset.open(packed).keys[0]} (60 are not finite)" in said


def test_damaged_scores_are_refused(scores, tmp_path, refused):
    chunk = next(path for path in scores.rglob("aum/c/*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    select = ("select", scores, tmp_path / "SET", "--ipc", 2, "--misratio", 0)
    words = (("show", scores), ("suspects", scores), ("compare", scores, scores))
    for command in (select, *(("scores", *some) for some in words)):
        said = refused(tmp_path, *command, code=3)
        assert said == f"{scores}: every checkpoint is damaged; remove it, run again"


# ---- parts


@pytest.mark.parametrize(
    ("encoding", "one", "many", "few"), [("ascii", "###", "#", "#"), ("utf-8", "██▌", "█", "▏")]
)
def test_bars_are_of_what_the_terminal_has_and_a_single_image_shows(encoding, one, many, few):
    lines = list(histogram([1, 4, 0], [0, 1, 2, 3], width=24, encoding=encoding))
    assert lines == [f"      0.0  1  {one}", f"      1.0  4  {many * 10}", "      2.0  0"]
    lines = list(histogram([1_000_000, 1], [0, 0.5, 1], width=80, encoding=encoding))
    assert lines[1].split() == ["0.50", "1", few]


def test_infinite_numbers_are_left_out_and_equal_ones_are_one_bar():
    spread = Summary.of(np.array([1, math.inf, 3, math.nan, -math.inf], np.float32))
    assert (spread.n, spread.not_finite, spread.low, spread.high, spread.mean) == (5, 3, 1, 3, 2)
    assert sum(binned(np.array([1, math.inf, 3]), 4)[0]) == 2
    for value in (0.0, -3.0, 1e30):
        assert sorted(binned(np.full(60, value), 20)[0]) == [0] * 19 + [60]


def test_the_listing_has_a_row_for_every_score():
    header, *rows = listing()
    assert header.split() == ["score", "hard", "end", "unit", "what", "it", "is", "source"]
    for row, (name, meaning) in zip(rows, SCORES.items(), strict=True):
        assert row.split()[:2] == [name, "low" if meaning.low_is_hard else "high"]
        assert all(words in row for words in (meaning.unit, meaning.summary, meaning.source))
