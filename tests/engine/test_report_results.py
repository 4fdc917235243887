"""Results that a report compares: names of sets, intervals of differences, verdicts, tables."""

import csv
import json
import math
from functools import partial
from statistics import pstdev, stdev
from typing import Any

import pytest
from scipy import stats

from coreset.engine.report.curves import training_figures
from coreset.engine.report.figures import accuracy_figures, look_of
from coreset.engine.report.results import (
    Accuracy,
    accuracy_records,
    comparisons,
    difference,
    headline,
)
from coreset.engine.report.sets import catalogue, measurements
from coreset.engine.report.tables import Table, accuracy_table, csv_bytes, markdown_bytes


def described(**changes):
    row = {
        "data": "d", "method": "ccs-aum", "ipc": 10, "set_kind": "coreset", "set_digest": "a" * 64,
        "set_path": "../a", "set_seed": 0, "parameters": '{"ipc": 10, "misratio": 0.3}',
    }  # fmt: skip
    return row | changes


TOLD_APART = {
    "misratios of one IPC": (
        {"parameters": '{"ipc": 10, "misratio": 0.7}'},
        ["ccs-aum (misratio 0.3)", "ccs-aum (misratio 0.7)"],
        ["ccs-aum (misratio 0.3), IPC 10", "ccs-aum (misratio 0.7), IPC 10"],
    ),
    "misratios of two IPCs": (
        {"parameters": '{"ipc": 50, "misratio": 0.7}', "ipc": 50},
        ["ccs-aum", "ccs-aum"],
        ["ccs-aum, IPC 10", "ccs-aum, IPC 50"],
    ),
    "seeds": (
        {"set_seed": 1},
        ["ccs-aum", "ccs-aum"],
        ["ccs-aum, IPC 10, seed 0", "ccs-aum, IPC 10, seed 1"],
    ),
    "inputs": (
        {},
        ["ccs-aum (set aaaaaaaa)", "ccs-aum (set bbbbbbbb)"],
        ["ccs-aum (set aaaaaaaa), IPC 10", "ccs-aum (set bbbbbbbb), IPC 10"],
    ),
}


@pytest.mark.parametrize(("changes", "methods", "names"), TOLD_APART.values(), ids=TOLD_APART)
def test_names_tell_sets_apart_and_methods_are_pooled_over_seeds(changes, methods, names):
    sets = catalogue([described(), described(set_digest="b" * 64) | changes]).values()
    assert [one.method for one in sets] == methods
    assert [one.name for one in sets] == names


def accuracy(method, *best, seeds=()):
    return Accuracy(method=method, best=best, last=best, digests=("a",), seeds=seeds)


SEEDS = ((0, 0), (0, 1), (0, 2))


@pytest.mark.parametrize(
    ("theirs", "interval", "test"),
    [
        (SEEDS, "paired", stats.ttest_rel),
        *(
            (seeds, "Welch", partial(stats.ttest_ind, equal_var=False))
            for seeds in (((1, 0), (1, 1), (1, 2)), ((0, 0), (0, 1), (0, 3)), ())
        ),
    ],
)
def test_the_interval_is_paired_where_the_seeds_are_the_same_and_else_that_of_welch(
    theirs, interval, test
):
    ours, others = (57.0, 58.0, 56.5), (55.0, 56.5, 54.2)
    found = difference(accuracy("a", *ours, seeds=SEEDS), accuracy("b", *others, seeds=theirs))
    expected: Any = test(ours, others).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert (found.interval, found.mean) == (interval, pytest.approx(2 - 1 / 15))


def row_of(method="random", ipc=10, seed=0, best=1.0, **changes):
    return described(
        method=method, ipc=ipc, set_digest=f"{method}-{ipc}", key=f"{method}-{ipc}-{seed}",
        parameters="{}", seed=seed, top1_best=best, top1_last=best, val="v", val_identity="i",
        n_val=5, protocol="hard@1", student="resnet18", epochs=300, size=224, evaluations=100,
    ) | changes  # fmt: skip


def compared(students):
    """Comparisons of students by (method, ipc, best of each seed)."""
    rows = [
        row_of(method, ipc, seed, best)
        for method, ipc, accuracies in students
        for seed, best in enumerate(accuracies)
    ]
    return comparisons(rows, catalogue(rows))


def test_the_verdict_says_who_beats_whom_and_who_is_within_noise():
    first, second, third = compared(
        [
            ("random", 10, (44.0, 46.0, 45.0)), ("ccs-aum", 10, (57.0, 58.0, 57.5)),
            ("kmeans", 10, (57.5, 56.5, 57.0)),
            ("random", 50, (60.0, 61.0, 60.5)), ("ccs-aum", 50, (70.0,)),
            ("kmeans", 50, (65.0, 65.0, 65.0)),
            ("random", 99, (60.0, 61.0, 60.5)), ("ccs-aum", 99, (70.0, 71.0, 69.0)),
        ]
    )  # fmt: skip
    assert first.title == "d, IPC 10, hard@1, resnet18"
    assert first.sentence == (
        "ccs-aum 57.5 ± 0.5 is within noise of kmeans 57.0 ± 0.5 (-2.0 to 3.0), and beats "
        "random 45.0 ± 1.0 (by 11.3 to 13.7)"
    )
    assert first.caveat == ""
    assert second.sentence == (
        "ccs-aum 70.0 leads kmeans 65.0 ± 0.0 and random 60.5 ± 0.5: not enough students to tell"
    )
    assert second.caveat == "students: ccs-aum 1; 3 are needed to compare"
    assert third.sentence == "ccs-aum 70.0 ± 1.0 beats random 60.5 ± 0.5 (by 7.3 to 11.7)"
    assert headline([first, second, third]) == (
        "Best of 3 comparisons: ccs-aum in 1, 1 within noise, 1 with too few students to tell"
    )
    assert headline([second]) == second.sentence
    assert headline([first, first]) == (
        "No method is clearly best: the leaders are within noise of each other"
    )
    assert headline([second, second]) == "No method is clearly best: not enough students to tell"


def test_a_difference_that_two_students_each_make_is_no_victory():
    (contest,) = compared([("random", 10, (64.4, 59.0)), ("kmeans", 10, (66.9, 70.3))])
    assert contest.sentence == (
        "kmeans 68.6 ± 2.4 leads random 61.7 ± 3.8: not enough students to tell"
    )
    (row,) = accuracy_table([contest]).rows
    assert [cell.emphasis for cell in row[-2:]] == ["", ""]
    records = accuracy_records([contest])
    assert [one["within_noise_of_best"] for one in records] == [True, None]
    assert [one["interval"] for one in records] == ["", ""]
    assert records[1]["behind_best"] == pytest.approx(6.9)
    assert math.isnan(records[1]["behind_best_low"])


def test_a_lone_method_is_not_called_best_and_a_lone_student_has_no_spread():
    lone = compared([("random", 10, (44.0, 46.0))])
    assert headline(lone) == "random alone was trained: 45.0 ± 1.4 %"
    assert lone[0].sentence == "random 45.0 ± 1.4; no other method was trained"
    single = compared([("random", 10, (44.0,))])
    assert headline(single) == "random alone was trained: 44.0 %"
    (row,) = accuracy_table(single).rows
    assert (row[-1].text, row[-1].detail) == ("44.0", "last 44.0, n = 1")
    (drawn,) = accuracy_figures(single, look_of(catalogue([described(method="random")]).values()))
    figure = json.loads(drawn.json)
    assert "array" not in figure["data"][0].get("error_x", {})
    written = csv_bytes(accuracy_records(single)).decode().splitlines()
    record = dict(zip(*csv.reader(written), strict=True))
    assert {record[name] for name in record if "_std" in name} == {""}


def test_both_deviations_are_named():
    best, last = (44.0, 46.0, 47.5), (40.0, 44.0, 41.0)
    rows = [row_of(seed=n, best=top1, top1_last=last[n]) for n, top1 in enumerate(best)]
    (record,) = accuracy_records(comparisons(rows, catalogue(rows)))
    for name, values in (("top1_best", best), ("top1_last", last)):
        assert record[f"{name}_std"] == pytest.approx(stdev(values))
        assert record[f"{name}_std_population"] == pytest.approx(pstdev(values))


def test_students_of_other_length_or_validation_images_are_not_pooled():
    settings = ((10, "i"), (20, "i"), (20, "j"))
    rows = [row_of(epochs=epochs, val_identity=identity) for epochs, identity in settings]
    assert [one.best.n for one in comparisons(rows, catalogue(rows))] == [1, 1, 1]


NONE: dict[str, Any] = {"protocol_digest": "", "teachers": None}
ONE, TWO = ({"protocol_digest": digest * 8} for digest in ("1a2b3c4d", "1a2b3c5e"))
TAUGHT = {"teachers": '[["resnet18", "e"], ["mobilenet_v2", "f"]]'}
BY_BOTH = "taught by resnet18 + mobilenet_v2"
DIGESTS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], list[str]]] = {
    "of no digest": ({}, NONE, [""], [""]),
    "of one digest": (ONE, ONE, [""], ["digest 1a2b3c4d"]),
    "of a digest and of none": (
        ONE, NONE, [", no digest", ", digest 1a2b3c4d"], ["", "digest 1a2b3c4d"]
    ),
    "of two digests": (
        TWO, ONE, [", digest 1a2b3c4d", ", digest 1a2b3c5e"],
        ["digest 1a2b3c4d", "digest 1a2b3c5e"],
    ),
    "of two precisions": ({"precision": "bfloat16"}, {}, [", bfloat16", ""], ["bfloat16", ""]),
    "with and without teachers": (TAUGHT, {}, ["", f", {BY_BOTH}"], ["", BY_BOTH]),
}  # fmt: skip


@pytest.mark.parametrize(("first", "second", "titles", "details"), DIGESTS.values(), ids=DIGESTS)
def test_students_of_two_digests_never_share_a_mean_and_are_told_apart(
    first, second, titles, details
):
    rows = [row_of() | first, row_of(seed=1) | second]
    found = comparisons(rows, catalogue(rows))
    assert [one.title for one in found] == [f"d, IPC 10, hard@1, resnet18{end}" for end in titles]
    assert sum(one.best.n for one in found) == 2
    assert [row[2].detail for row in accuracy_table(found).rows] == details
    digests = {row.get("protocol_digest", "") for row in rows}
    assert {one["protocol_digest"] for one in accuracy_records(found)} == digests


def test_training_curves_are_means_by_epoch_of_the_students_that_were_evaluated_then():
    rows = [
        *(row_of("random", seed=seed) for seed in range(3)),
        row_of("kmeans", best=9.0),
        row_of("random", ipc=50),
    ]
    top1 = {
        "random-10-0": {9: 10.0, 10: None, 16: 30.0},
        "random-10-1": {9: 20.0, 16: 35.0},
        "kmeans-10-0": {16: 50.0},
        "of a student of another folder": {1: 99.0},
    }
    curves = [
        {"key": key, "epoch": epoch, "top1": value}
        for key, values in top1.items()
        for epoch, value in values.items()
    ]
    found, sets = comparisons(rows, catalogue(rows)), catalogue(rows)
    (drawn,) = training_figures(found, reversed(curves), look_of(sets.values()))
    assert drawn.title == f"Training: {found[0].title}"
    lines = {one["name"]: one for one in json.loads(drawn.json)["data"]}
    assert (lines["random"]["x"], lines["random"]["y"]) == ([9, 16], [15.0, 32.5])
    assert (lines["kmeans"]["x"], lines["kmeans"]["mode"]) == ([16], "markers")


def test_metrics_of_two_backbones_stay_apart():
    rows = [
        row_of(backbone=backbone, weights="w", metric=f"{name}@1", value=value)
        for backbone, value in (("one", 0.25), ("two", 0.75))
        for name in ("representativeness_r1", "diversity_d1")
    ]
    one, two = measurements(rows, catalogue(rows))
    assert (one.backbone, one.values["r1"], one.version) == ("one", 0.25, "1")
    assert (two.backbone, two.values["r1"], two.version) == ("two", 0.75, "1")
    assert math.isnan(one.values["r2"])


def test_markdown_escapes_what_would_break_a_table():
    table = Table("c", ("a|b",), (), [["x|y<z"]])
    assert markdown_bytes(table).decode().splitlines()[2:] == [
        "| a\\|b |",
        "| --- |",
        "| x\\|y&lt;z |",
    ]
