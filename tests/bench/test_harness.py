"""Harness: order of turns, medians, wrong outputs, records, and processes that end with it."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import pytest

from coreset.bench import harness
from coreset.bench.harness import (
    Contender,
    Options,
    absent,
    commit,
    hardware,
    portable,
    race,
    ratios,
    read,
    record,
    write,
)
from coreset.bench.peers import writers
from coreset.bench.processes import open_peer, options, remote, watch
from coreset.bench.score_scale import memory_of
from coreset.engine.artifacts.provenance import versions


class Clock:
    """Seconds that pass only when a contender says so."""

    now = 0.0

    def __call__(self):
        return self.now

    def take(self, left):
        self.now += left.pop(0)


def test_contenders_take_turns_and_the_warm_up_is_not_counted(tmp_path):
    clock, order = Clock(), []

    def turn(name, *seconds):
        left = list(seconds)

        def run(out):
            order.append((name, list(out.iterdir())))
            (out / "left").touch()
            clock.take(left)

        return Contender(name=name, run=run)

    entries = [turn("slow", 100, 6, 4, 5), absent("gone", "no wheel"), turn("fast", 50, 2, 1, 3)]
    slow, fast, gone = race(entries, repeats=3, work=tmp_path, clock=clock)
    assert order == [("slow", []), ("fast", [])] * 4  # an empty folder for each
    assert list(tmp_path.iterdir()) == []
    assert (slow["seconds"], fast["seconds"]) == ([6, 4, 5], [2, 1, 3])
    assert (slow["median_seconds"], slow["min_seconds"], slow["max_seconds"]) == (5, 4, 6)
    assert gone == {"contender": "gone", "role": "peer", "absent": "no wheel"}
    assert "images_per_second" not in slow


def test_a_ratio_is_the_median_of_the_ratios_within_a_round(tmp_path):
    clock = Clock()
    # The machine slows down threefold in the second round; the ratio of medians would say 2.
    seconds = {"steady": [9, 2, 6, 2], "other": [9, 4, 18, 5]}
    steady, other = (
        Contender(name=name, run=lambda _, left=left: clock.take(left))
        for name, left in seconds.items()
    )
    pair = race(
        [steady, other], repeats=3, work=tmp_path, images=10, source_bytes=4_000_000, clock=clock
    )
    assert ratios(pair[1]["seconds"], pair[0]["seconds"]) == [4 / 2, 18 / 6, 5 / 2]
    assert pair[0]["speed_over"] == {"other": 2.5}
    assert (pair[0]["images_per_second"], pair[0]["mb_per_second"]) == (5, 2)
    assert json.loads(json.dumps(pair[0]))["images"] == 10


def test_a_wrong_output_in_any_round_is_a_failure_without_a_speed(tmp_path, capsys):
    outputs = iter(["right", "wrong", "right"])

    def check(out):
        actual = (out / "result").read_text()
        return "" if actual == "right" else f"expected right, found {actual}"

    entries = [
        Contender(
            name="wrong once",
            run=lambda out: (out / "result").write_text(next(outputs)),
            check=check,
        ),
        Contender(name="fine", run=lambda _out: None),
    ]
    failed, fine = race(entries, repeats=2, work=tmp_path, images=1, source_bytes=1)
    assert failed["failed"] == "expected right, found wrong"
    assert "images_per_second" not in failed
    assert "failed" not in fine
    assert fine["speed_over"] == {}
    assert capsys.readouterr().out.count("FAILED: expected right") == 1


def test_two_contenders_of_one_name_are_refused(tmp_path):
    twice = [Contender(name="a", run=lambda _out: None)] * 2
    with pytest.raises(ValueError, match="different names"):
        race(twice, repeats=1, work=tmp_path)


def test_a_record_says_what_was_measured_where_and_with_what():
    row = json.loads(json.dumps(record("select", {"n": 3})))
    assert (row["bench"], row["n"]) == ("select", 3)
    assert (row["versions"], row["hardware"], row["commit"]) == (versions(), hardware(), commit())
    assert date.fromisoformat(row["date"]).year >= 2026
    assert row["hardware"]["cores"] == len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert row["hardware"]["memory_gib"] == pytest.approx(total / 2**30, abs=0.05)


@pytest.mark.skipif(not (harness.ROOT / ".git").exists(), reason="no checkout")
def test_the_commit_is_the_one_of_the_checkout():
    command = ["/usr/bin/env", "git", "-C", str(harness.ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert head.startswith(commit().removesuffix("+"))


@pytest.mark.usefixtures("results")
def test_a_run_replaces_the_records_of_its_parts_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)

    def run(value, *parts, dry=False):
        rows = {part: lambda: [{"n": value}] for part in parts}
        Options(work=tmp_path / "work", dry=dry).record_parts("bench", rows)

    run(1, "first", "second")
    run(2, "second")
    run(9, "first", dry=True)
    found = [(row["bench"], row["n"]) for row in read("bench")]
    assert found == [("bench.first", 1), ("bench.second", 2)]


@pytest.mark.usefixtures("results")
def test_places_of_this_machine_are_named_not_recorded():
    message = f"{np.__file__}:7: in {os.__file__}, {harness.ROOT}/bench, {tempfile.gettempdir()}/x"
    write("said", [{"said": message}])
    (row,) = read("said")
    assert row["said"] == (
        "SITE-PACKAGES/numpy/__init__.py:7: in PYTHON/os.py, CHECKOUT/bench, TMP/x"
    )
    assert portable(row["said"]) == row["said"]


@pytest.mark.parametrize("path", sorted(harness.RESULTS.glob("*.jsonl")), ids=lambda one: one.stem)
def test_recorded_results_name_no_place_of_any_machine(path: Path):
    place = re.compile(r"(?<![\w.-])/(tmp|home|root|Users)/|/site-packages/|/lib/python3")
    assert not place.search(path.read_text())


def test_fields_become_options():
    fields = {"check": False, "short_side": 256, "store": "resized", "deep": True}
    assert options(fields) == ["--no-check", "--short-side", "256", "--store", "resized", "--deep"]


def test_a_peer_says_its_version_or_why_it_is_absent(tmp_path):
    with ExitStack() as stack:
        pillow = open_peer(stack, tmp_path, "", writers.pillow_versions)
        assert not isinstance(pillow, str)
        assert pillow[1] == {"pillow": PIL.__version__}
        assert pillow[0].submit(writers.pillow_reencode, []).result() == []
        gone = open_peer(stack, tmp_path, "img2dataset", writers.img2dataset_versions)
        assert gone == "ModuleNotFoundError: No module named 'img2dataset'"


def test_a_process_of_its_own_gets_its_environment(monkeypatch):
    monkeypatch.delenv("BENCH_TEST", raising=False)
    changed = {"BENCH_TEST": "x", "PATH": None}
    with ExitStack() as stack:
        assert remote(stack, partial, os.getenv, "BENCH_TEST", environment=changed)() == "x"
        assert remote(stack, partial, os.getenv, "PATH", environment=changed)() is None
    assert "BENCH_TEST" not in os.environ
    assert os.environ["PATH"]


PARENT = """
import os, subprocess, sys, time
from coreset.bench.processes import WITH_PARENT, pool_of
with pool_of() as pool:
    command = [*WITH_PARENT, sys.executable, "-c", "import time; time.sleep(600)"]
    print(pool.submit(os.getpid).result(), subprocess.Popen(command).pid, flush=True)
    time.sleep(600)
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_contenders_end_when_the_benchmark_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        children = parent.stdout.readline().split()
        assert [is_running(int(pid)) for pid in children] == [True, True]
        time.sleep(0.2)  # until setpriv has done its part
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 30
    while any(is_running(int(pid)) for pid in children):
        assert time.monotonic() < deadline, "a contender outlived the benchmark"
        time.sleep(0.01)


def test_a_command_that_fails_says_so():
    watched = watch([sys.executable, "-c", "raise SystemExit('no disk')"], lambda _: {}, 0.05)
    assert watched["failed"] == "exit code 1: no disk"


def test_a_command_and_its_child_are_seen_to_hold_memory():
    child = "import time; block = bytearray(b'x' * 60_000_000); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    seen = watch([sys.executable, "-c", parent], memory_of, 0.2)
    assert not seen["failed"]
    assert seen["looks"] > 1
    assert 60e6 < seen["peak_anonymous_bytes"] < seen["peak_bytes"] < 160e6
