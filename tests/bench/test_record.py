"""Records of measurements: what a reader needs to judge a number."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from coreset.bench import record as recording
from coreset.bench.record import commit, hardware, portable, read, record, write
from coreset.engine.artifacts.provenance import versions


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_record_says_what_was_measured_where_and_with_what():
    one = record("select", {"n": 3, "median_s": 0.03})
    assert (one["bench"], one["n"], one["median_s"]) == ("select", 3, 0.03)
    assert one["versions"] == versions()
    assert one["hardware"] == hardware()
    assert one["commit"] == commit()
    assert date.fromisoformat(one["date"]).year >= 2026


def test_the_hardware_is_this_one():
    here = hardware()
    assert here["cores"] == len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert here["memory_gib"] == pytest.approx(total / 2**30, abs=0.05)
    assert here["processor"]
    assert json.loads(json.dumps(here)) == here


def test_a_gpu_is_named_where_there_is_one():
    import torch

    gpu = hardware()["gpu"]
    if torch.cuda.is_available():
        assert gpu["name"] == torch.cuda.get_device_name(0)
    else:
        assert gpu is None or set(gpu) == {"driver"}


def test_the_commit_is_the_one_of_the_checkout():
    git, root = shutil.which("git"), recording.RESULTS.parent
    if git is None or not (root.parent / ".git").exists():
        assert commit() == "unknown"
        return
    found = re.fullmatch(r"([0-9a-f]{7,40})\+?", commit())
    assert found is not None
    head = subprocess.run(
        [git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, check=True
    )
    assert head.stdout.decode().startswith(found[1])


def test_records_come_back_and_replace_those_before(results):
    write("select", [{"n": 1}, {"n": 2}])
    assert read("select") == [{"n": 1}, {"n": 2}]
    path = write("select", [{"n": 3, "name": "ü"}])
    assert path == results / "select.jsonl"
    assert read("select") == [{"n": 3, "name": "ü"}]
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.usefixtures("results")
def test_places_of_this_machine_are_named_not_recorded():
    checkout = Path(recording.__file__).resolve().parents[1]
    said = f"{np.__file__}:7: in {os.__file__}, {checkout}/bench and {tempfile.gettempdir()}/x/DATA"
    write("said", [{"said": said}])
    (one,) = read("said")
    assert one["said"] == (
        "SITE-PACKAGES/numpy/__init__.py:7: in PYTHON/os.py, CHECKOUT/bench and TMP/x/DATA"
    )
    assert portable(one["said"]) == one["said"]


@pytest.mark.parametrize(
    "path", sorted(recording.RESULTS.glob("*.jsonl")), ids=lambda one: one.stem
)
def test_recorded_results_name_no_place_of_any_machine(path: Path):
    place = re.compile(r"(?<![\w.-])/(tmp|home|root|Users)/|/site-packages/|/lib/python3")
    assert not place.search(path.read_text())
