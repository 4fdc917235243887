"""The whole path in one folder: every verb's output is the next one's input, wherever it lies."""

import json
import shutil

import pytest

from coreset.engine.artifacts.ledger import read_ledger

BACKBONE = ("--backbone", "tf_efficientnet_lite0", "--size", 64)
TINY = ("--size", 33, "--epochs", 1, "--evaluations", 1, "--repeats", 1)
SETS = ("random", "ccs", "kmeans")
PATH = (
    ("pack", "photos/train", "DATA"),
    ("pack", "photos/val", "VAL"),
    ("score", "DATA", "SCORES", "--size", 17, "--epochs", 2, "--batch", 30, "--lr", 0.01),
    ("select", "DATA", "random", "--ipc", 2),
    ("select", "SCORES", "ccs", "--ipc", 2, "--misratio", 0.3),
    ("distill", "DATA", "kmeans", "--ipc", 2, "--size", 16),
    *(("train", name, "VAL", "RESULTS", *TINY) for name in SETS),
    *(("measure", name, "VAL", "RESULTS", *BACKBONE) for name in SETS),
    ("report", "RESULTS", "report.html"),
)


@pytest.fixture(scope="module")
def walked(make_photos, tmp_path_factory, one_thread):  # noqa: ARG001 - a fixture for its effect
    """A folder in which every verb has run once, with relative paths; read only."""
    from coreset.engine.cli import main

    folder = tmp_path_factory.mktemp("path")
    make_photos(folder / "photos" / "train", per_class=10)
    make_photos(folder / "photos" / "val", per_class=4, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in PATH:
            assert main([str(word) for word in command]) == 0, command
    return folder


def test_nothing_but_the_artifacts_is_left(walked):
    assert {path.name for path in walked.iterdir() if path.suffix == ""} == {
        "photos", "DATA", "VAL", "SCORES", "RESULTS", *SETS,
    }  # fmt: skip
    assert not list(walked.rglob(".*"))


def test_the_cost_of_a_set_is_what_the_steps_on_its_way_took(walked, coreset):
    ways = {
        "random": ("DATA", "random"),
        "ccs": ("DATA", "SCORES", "ccs"),
        "kmeans": ("DATA", "kmeans"),
    }
    for name, way in ways.items():
        facts = json.loads(coreset("cost", walked / name, "--json").out)
        own = [read_ledger(walked / artifact)[-1] for artifact in way]
        assert [stage["stage"] for stage in facts["stages"]] == [line["stage"] for line in own]
        assert facts["wall_seconds"] == pytest.approx(sum(line["wall_seconds"] for line in own))


def test_a_folder_that_moved_as_a_whole_still_works(walked, tmp_path, done, monkeypatch):
    moved = tmp_path / "some" / "where" / "else"
    shutil.copytree(walked, moved)
    shutil.rmtree(moved / "SCORES")  # its costs and its place on the way are known without it
    monkeypatch.chdir(moved)
    for name in SETS:
        told, _ = done("train", name, "VAL", "RESULTS", *TINY)
        assert "(1 students, 0 of them new)" in told
    told, _ = done("train", "ccs", "VAL", "RESULTS", *TINY, "--seed", 1)
    assert "(1 students, 1 of them new)" in told
    assert "construction cost of ccs" in done("cost", "ccs")[-1]


def test_the_packed_sets_verify_and_everything_is_listed(walked, done):
    for name in ("DATA", "VAL", "kmeans"):
        done("verify", walked / name, "--deep")
    kinds = {name: kind for kind, name, *_ in (line.split() for line in done("ls", walked)[1:])}
    assert kinds == {
        "DATA": "dataset", "VAL": "dataset", "SCORES": "scores", "RESULTS": "results",
        "random": "set", "ccs": "set", "kmeans": "set",
    }  # fmt: skip
