"""The demo: its digits, and (slowly) its whole tour."""

import shutil

import numpy as np
import pytest
from PIL import Image

from coreset.engine.evaluation.results import METRICS, STUDENTS, Results
from coreset.engine.stages.demo import (
    BY_CONCEPTS,
    METHODS,
    STUDENT,
    STUDENT_PIXELS,
    Demo,
    write_digits,
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "images"
    write_digits(folder)
    return folder


def pixels_of(folder):
    found = {}
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            found[int(path.stem)] = np.asarray(image), path
    return found


def test_every_digit_is_written_once_under_its_class_as_it_is(digits):
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    found = pixels_of(digits)
    assert sorted(found) == list(range(1797))
    for index, (pixels, path) in found.items():
        assert path.parent.name == f"digit-{labels[index]}"
        # 17 shades, 0 to 16, spread over 0 to 255
        assert np.abs(pixels - values[index].reshape(8, 8) * 255 / 16).max() <= 0.5
    for label in range(10):
        train, val = (
            len(list((digits / split / f"digit-{label}").iterdir())) for split in ("train", "val")
        )
        assert train == round(0.75 * (train + val))


def test_digits_of_a_killed_demo_are_written_again_and_finished_ones_are_left(tmp_path, digits):
    folder = tmp_path / "images"
    half = tmp_path / ".images.partial"
    shutil.copytree(digits / "train" / "digit-0", half / "train" / "digit-0")
    next(half.rglob("*.png")).write_bytes(b"cut")
    write_digits(folder)
    assert not half.exists()
    assert len(pixels_of(folder)) == 1797
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_digits(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


STAMP = "hard@1+short"


def lines_of(out, accuracies, repeats):
    """Lines of the demo for students of these accuracies."""
    rows = [
        {
            "key": f"{method}-{seed}-{epochs}-{stamp}-{student}", "data": "digits",
            "method": method, "ipc": 10, "set_kind": "coreset", "set_digest": method,
            "set_path": method, "set_seed": 0, "parameters": "{}", "val": "v",
            "val_identity": "i", "n_val": 450,
            "protocol": stamp, "student": student, "seed": seed,
            "top1_best": best + epochs - 30 + (student != STUDENT),
            "top1_last": best, "epochs": epochs, "evaluations": 4, "size": STUDENT_PIXELS,
        }
        for method, students in zip(METHODS, accuracies, strict=True)
        for seed, best in enumerate(students)
        for epochs, stamp, student in (
            (30, STAMP, STUDENT),
            (31, STAMP, STUDENT),
            (30, "hard@1+bfloat16+short", STUDENT),
            (30, STAMP, "resnet18"),
        )
    ]  # fmt: skip
    Results(out / "results").append(STUDENTS, rows, [])
    return Demo(out=out, repeats=repeats)._outcome(STAMP).lines[1:8]


TWO = ((62.0, 61.4), (64.4, 59.0), (61.0, 63.0), (66.9, 70.3))
THREE = ((60.5, 61.0, 61.5), (61.0, 60.0, 62.5), (59.0, 60.0, 61.0), (68.0, 69.0, 70.0))


@pytest.mark.parametrize(
    ("accuracies", "repeats", "random", "verdict"),
    [
        (TWO, 2, "61.7 +- 0.4", "not enough students to tell; take --repeats 3 or more"),
        (TWO, 1, "62.0", "not enough students to tell; take --repeats 3 or more"),
        (THREE, 3, "61.0 +- 0.5", f"(by 6.8 to 9.2) and {BY_CONCEPTS} 60.0 ± 1.0 (by 9.0 to 9.0)"),
    ],
)
def test_the_answer_follows_the_number_of_students(tmp_path, accuracies, repeats, random, verdict):
    title, _, row, *_, said = lines_of(tmp_path, accuracies, repeats)
    of = f"{repeats} students, mean +- sample deviation"
    assert title == f"10 digits per class, {STAMP}, best top-1 of {of}:"
    assert row.split() == ["random", *random.split(), "0.0"]
    assert said.endswith(verdict)


@pytest.mark.slow
def test_the_tour_ends_in_accuracies_and_a_report_and_repeats_its_answer(tmp_path, coreset):
    out = tmp_path / "demo-run"
    command = ("demo", "--out", out, "--epochs", 2)
    told = coreset(*command, "--repeats", 1)
    assert told.code == 0
    verbs = [line.split(":")[0] for line in told.err.splitlines()]
    assert list(dict.fromkeys(verbs)) == [
        "pack", "score", "select", "visual", "distill", "train", "measure", "report",
    ]  # fmt: skip
    rows = Results(out / "results").rows(STUDENTS)
    shown = dict(line.split()[:2] for line in told.out.splitlines() if line.startswith(METHODS))
    assert [row["method"] for row in rows] == list(METHODS)
    assert shown == {row["method"]: f"{row['top1_best']:.1f}" for row in rows}
    assert len(Results(out / "results").rows(METRICS)) == 4 * len(METHODS)
    assert f"the report with tables, plots and images: {out / 'report.html'}" in told.out
    assert (out / "report.html").stat().st_size > 10_000
    again = coreset(*command, "--repeats", 1)
    assert (again.code, again.out) == (0, told.out)
    # Rows of other trainings are no part of an answer.
    coreset(*command, "--repeats", 2)
    assert coreset(*command, "--repeats", 1).out == told.out
