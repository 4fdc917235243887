"""The whole path in one folder: every verb's output is the next one's input, wherever it lies."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coreset.engine.artifacts.ledger import read_ledger

CHECKOUT = Path(__file__).parents[2]
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
def walked(make_photos, tmp_path_factory, made):
    """A folder in which every verb has run once, with relative paths; read only."""
    folder = tmp_path_factory.mktemp("path")
    make_photos(folder / "photos" / "train", per_class=10)
    make_photos(folder / "photos" / "val", per_class=4, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in PATH:
            made(folder, *command)
    return folder


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


def test_the_packed_sets_verify_and_everything_is_listed_and_nothing_else_left(walked, done):
    for name in ("DATA", "VAL", "kmeans"):
        done("verify", walked / name, "--deep")
    kinds = {name: kind for kind, name, *_ in (line.split() for line in done("ls", walked)[1:])}
    assert kinds == {
        "DATA": "dataset", "VAL": "dataset", "SCORES": "scores", "RESULTS": "results",
        "random": "set", "ccs": "set", "kmeans": "set",
    }  # fmt: skip
    assert {path.name for path in walked.iterdir() if path.suffix == ""} == {"photos", *kinds}
    assert not list(walked.rglob(".*"))


WITHOUT_TORCH = """
import sys
from coreset.engine.cli import main

out = sys.argv[1]
for words in (
    f"pack photos/val {out}/DATA",
    f"select SCORES {out}/CCS --ipc 2 --misratio 0.1",
    f"select DATA {out}/RANDOM --ipc 2",
    f"scores suspects SCORES --csv {out}/list.csv",
    "scores show SCORES",
    "scores compare SCORES SCORES --ipc 2 --misratio 0.1",
    *(f"export ccs {out}/{to} --to {to}" for to in ("imagefolder", "webdataset", "parquet", "ids")),
    f"report RESULTS {out}/report.html",
    "verify DATA --deep",
    "cost ccs",
    "ls",
    *(f"{verb} --help" for verb in ("pack", "score", "train", "measure", "report", "demo")),
):
    assert main(words.split()) == 0, words
    assert not {"torch", "sklearn", "webdataset", "timm"} & set(sys.modules), words
"""


def test_what_trains_nothing_imports_no_torch(walked, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *sys.path])}
    subprocess.run(command, cwd=walked, env=environment, check=True, stdout=subprocess.DEVNULL)
