"""Scores as a user looks at them: shown, and searched for wrong labels."""

import csv
import math
import shutil

import numpy as np
import pytest

from coreset.engine.runtime.text import Summary, binned, histogram
from coreset.engine.scoring.score_table import listing
from coreset.kernels.scores import SCORES
from coreset.shards.format.dataset import Dataset

N = 60  # of `packed`: 20 of each of 3 classes


# ---- show


def test_every_score_in_the_store_is_summed_up(scores, columns, done, values_of):
    summary = values_of("scores", "show", scores)["summary"]
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
    scores, columns, done, values_of, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "50")
    drawn = values_of("scores", "show", scores)["histogram"]
    expected, edges = np.histogram(columns["aum"].astype(float), bins=20)
    assert drawn["counts"] == expected.tolist()
    assert drawn["edges"] == pytest.approx(edges.tolist())
    lines = done("scores", "show", scores)
    begin = next(at for at, line in enumerate(lines) if line.startswith("aum: ")) + 1
    bars = lines[begin : begin + 20]
    assert [int(line.split()[1]) for line in bars] == expected.tolist()
    assert max(map(len, bars)) == 50


def test_classes_are_summed_up_hardest_first_and_of_many_only_both_ends(
    scores, columns, packed, done, values_of
):
    dataset = Dataset.open(packed)
    for score, hard_end in (("aum", 1), ("el2n", -1)):
        words = ("scores", "show", scores, "--score", score)
        means = {
            name: columns[score][dataset.labels == label].mean(dtype=float)
            for label, name in enumerate(dataset.classes)
        }
        summaries = values_of(*words)["classes"]
        assert {summary["n"] for summary in summaries.values()} == {20}
        found = {name: summary["mean"] for name, summary in summaries.items()}
        assert found == pytest.approx(means)
        rows = [line for line in done(*words) if line.startswith("n0")]
        assert [line.split()[0] for line in rows] == sorted(
            means, key=lambda name, means=means, end=hard_end: end * means[name]
        )
        lines = done(*words, "--classes", 1)
        at = lines.index(rows[0])
        assert lines[at : at + 4] == [rows[0], "... 1 classes between ...", rows[2], ""]


def test_undecodable_samples_are_left_out_of_every_number(
    packed, columns, tmp_path, values_of, write_scores
):
    aum = columns["aum"].copy()
    aum[7] = np.nan
    aum[9] = 1e9
    lost = {"7": "truncated", "9": "truncated"}
    scores = write_scores(packed, tmp_path / "S", columns | {"aum": aum}, undecodable=lost)
    facts = values_of("scores", "show", scores)
    assert (facts["images"], facts["undecodable"]) == (58, 2)
    assert facts["summary"]["aum"]["not_finite"] == 0
    assert facts["summary"]["aum"]["high"] <= 1
    assert sum(facts["histogram"]["counts"]) == 58
    suspects = values_of("scores", "suspects", scores)["suspects"]
    assert {one["sample"] for one in suspects} == set(range(60)) - {7, 9}


def test_a_data_set_finds_its_scores_beside_it(
    *, packed, val, tmp_path, values_of, refused, write_scores
):
    data = shutil.copytree(packed, tmp_path / "DATA")
    write_scores(val, tmp_path / "OTHERS", {"aum": np.zeros(18, np.float32)})
    said = refused(tmp_path, "scores", "show", data)
    assert f"no scores of {data} lie beside it; name them, or make some with `coreset sc" in said
    first = write_scores(data, tmp_path / "FIRST", {"aum": np.arange(N, dtype=np.float32)})
    assert values_of("scores", "show", data)["scores"] == str(first)
    shutil.copytree(first, tmp_path / ".SECOND.partial")  # one in the making
    assert values_of("scores", "show", data)["scores"] == str(first)
    second = shutil.copytree(first, tmp_path / "SECOND")
    said = refused(tmp_path, "scores", "show", data)
    assert f"2 scores of {data} lie beside it; name one of {first}, {second}" in said


# ---- suspects


def test_suspects_are_the_hardest_with_their_labels_shown_listed_and_told(
    scores, columns, packed, done, values_of
):
    dataset, listed = Dataset.open(packed), scores.with_name("suspects.csv")
    words = ("scores", "suspects", scores, "--score", "aum", "--top", 50)
    expected = np.argsort(columns["aum"])[:50].tolist()
    suspects = values_of(*words)["suspects"]
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


def test_equally_hard_images_have_one_share_and_come_by_id(scores, values_of):
    suspects = values_of("scores", "suspects", scores, "--score", "forgetting")["suspects"]
    assert [suspect["sample"] for suspect in suspects] == [
        sample for score in (3, 2, 1, 0) for sample in range(score, N, 4)
    ]
    shares = [suspect["share_harder"] for suspect in suspects]
    assert shares == pytest.approx([at // 15 * 15 / 59 for at in range(N)])


def test_per_class_lists_the_hardest_of_every_class(scores, columns, packed, values_of):
    labels, aum = Dataset.open(packed).labels, columns["aum"]
    options = ("--score", "aum", "--top", 2, "--per-class")
    suspects = values_of("scores", "suspects", scores, *options)["suspects"]
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
    *, packed, out_of_fold, tmp_path, values_of, done, write_scores
):
    scores, listed = write_scores(packed, tmp_path / "S", out_of_fold), tmp_path / "list.csv"
    words = ("scores", "suspects", scores, "--csv", listed, "--score", "aum")
    assert "2 of all 60 labels are taken for wrong (is_label_issue)" in done(*words)
    assert values_of(*words)["label_issues"] == 2
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


# ---- what is refused everywhere


def test_scores_of_which_none_tells_wrong_labels_are_refused(
    packed, columns, tmp_path, refused, write_scores
):
    scores = write_scores(packed, tmp_path / "S", {"forgetting": columns["forgetting"]})
    said = refused(tmp_path, "scores", "suspects", scores)
    assert f"{scores} has none of the scores confidence_oof, el2n, aum, mean_margin; ch" in said


def test_an_image_without_a_value_is_named(scores, packed, tmp_path, refused):
    for words in (("suspects", scores), ("compare", scores, scores)):
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
