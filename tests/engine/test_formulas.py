"""Class names that a spreadsheet would run, through every table that is written."""

import csv

import numpy as np
import pytest

from coreset.engine.evaluation.results import STUDENTS, Results
from coreset.engine.report.tables import csv_bytes
from coreset.shards.format.dataset import Dataset

NAMES = ("=HYPERLINK(1)", "@SUM", "-x")


def require_harmless(path):
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert any(cell.startswith("'") for cell in cells), path
    texts = [cell for cell in cells if cell != "-1"]  # a number
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in texts), path


@pytest.fixture
def hostile(make_photos, tmp_path, done):
    """A packed data set of such classes, one of whose images is damaged."""
    src = make_photos(tmp_path / "src", per_class=4)
    for folder, name in zip(sorted(src.iterdir()), NAMES, strict=True):
        folder.rename(src / name)
    damaged = next((src / NAMES[0]).glob("*.jpg"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    done("pack", src, tmp_path / "DATA")
    return tmp_path / "DATA"


def test_no_table_holds_a_formula(hostile, tmp_path, done):
    done("quarantine", "show", hostile, "--csv", tmp_path / "refused.csv")
    done("select", hostile, tmp_path / "SET", "--ipc", 2)
    done("export", tmp_path / "SET", tmp_path / "paths.csv", "--to", "paths")
    done("verify", hostile, "--against", hostile, "--pairs", tmp_path / "pairs.csv")
    rows = [{"key": "k", "data": NAMES[0], "seed": -1}]
    Results(tmp_path / "RESULTS").append(STUDENTS, rows, [])
    (tmp_path / "report.csv").write_bytes(csv_bytes([{"data": NAMES[2], "r1": 0.5}]))
    tables = ("refused.csv", "paths.csv", "pairs.csv", "RESULTS/students.csv", "report.csv")
    for name in tables:
        require_harmless(tmp_path / name)
    assert Results(tmp_path / "RESULTS").rows(STUDENTS)[0]["data"] == NAMES[0]
    done("ingest", tmp_path / "paths.csv", tmp_path / "BACK", "--data", hostile)
    np.testing.assert_array_equal(
        np.load(tmp_path / "BACK" / "ids.npy"), np.load(tmp_path / "SET" / "ids.npy")
    )


def test_labels_are_read_as_they_were_before_the_apostrophe(hostile, tmp_path, done):
    dataset = Dataset.open(hostile)
    other = {"=HYPERLINK(1)": "@SUM", "@SUM": "-x", "-x": "=HYPERLINK(1)"}
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for key, label in zip(dataset.keys, dataset.labels, strict=True):
            writer.writerow([f"'{key}", f"'{other[dataset.classes[label]]}"])
    table = ("--labels", tmp_path / "labels.csv", "--column", "label")
    done("pack", tmp_path / "src", tmp_path / "OTHER", *table)
    changed = Dataset.open(tmp_path / "OTHER")
    assert changed.keys == dataset.keys
    assert [changed.classes[c] for c in changed.labels] == [
        other[dataset.classes[c]] for c in dataset.labels
    ]
