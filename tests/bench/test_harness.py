"""Harness: order of turns, medians, wrong outputs, records, and processes that end with it."""

import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import PIL
import pytest

from coreset.bench import harness
from coreset.bench.decode_start import memory_bytes
from coreset.bench.harness import (
    Absent,
    Contender,
    commit,
    hardware,
    interleave,
    measurements,
    portable,
    read,
    record,
    run_parts,
    write,
)
from coreset.bench.pack import memory_and_processes
from coreset.bench.peers import img2dataset_resize, pillow_resize
from coreset.bench.processes import (
    MissingPeerError,
    environment_of,
    memory_in,
    options,
    pool_of,
    tree_bytes,
    watch,
)
from coreset.bench.score_scale import memory_and_scratch
from coreset.engine.artifacts.provenance import versions


class Clock:
    """Seconds that pass only when a contender says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def taking(self, *seconds):
        left = iter(seconds)

        def run(_out):
            self.now += next(left)

        return run


def quiet(_line):
    return None


def test_contenders_take_turns_and_the_warm_up_is_not_counted(tmp_path):
    clock, order = Clock(), []

    def turn(name, *seconds):
        take = clock.taking(*seconds)

        def run(out):
            order.append(name)
            take(out)

        return Contender(name=name, run=run)

    slow, fast = turn("slow", 100, 6, 4, 5), turn("fast", 50, 2, 1, 3)
    measured = interleave([slow, fast], repeats=3, work=tmp_path, clock=clock, tell=quiet)
    assert order == ["slow", "fast"] * 4
    assert [each.seconds for each in measured] == [(6, 4, 5), (2, 1, 3)]
    assert [each.median_seconds for each in measured] == [5, 2]


def test_a_ratio_is_the_median_of_the_ratios_within_a_round(tmp_path):
    clock = Clock()
    # The machine slows down threefold in the second round; the ratio of medians would say 2.5.
    steady = Contender(name="steady", run=clock.taking(9, 2, 6, 2))
    other = Contender(name="other", run=clock.taking(9, 4, 18, 5))
    pair = interleave([steady, other], repeats=3, work=tmp_path, clock=clock, tell=quiet)
    assert median(pair[0].ratios_over(pair[1])) == median([4 / 2, 18 / 6, 5 / 2]) == 2.5
    row = measurements(pair, images=10, source_bytes=4_000_000)[0]
    assert row["speed_over"] == {"other": 2.5}
    assert (row["seconds"], row["median_seconds"]) == ([2, 6, 2], 2)
    assert (row["min_seconds"], row["max_seconds"]) == (2, 6)
    assert (row["images_per_second"], row["mb_per_second"]) == (5, 2)
    assert json.loads(json.dumps(row))["images"] == 10
    (without, _) = measurements(pair, images=0, source_bytes=0)
    assert without["median_seconds"] == 2
    assert "images_per_second" not in without


def test_every_run_gets_an_empty_folder_that_is_removed(tmp_path):
    seen = []

    def run(out):
        seen.append(list(out.iterdir()))
        (out / "left").touch()

    interleave([Contender(name="a", run=run)], repeats=2, work=tmp_path, tell=quiet)
    assert seen == [[], [], []]
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_output_in_any_round_is_a_failure_without_a_speed(tmp_path):
    outputs, printed = iter(["right", "right", "wrong"]), []

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
    measured = interleave(entries, repeats=2, work=tmp_path, tell=printed.append)
    failed, fine = measurements(measured, images=1, source_bytes=1)
    assert failed["failed"] == "expected right, found wrong"
    assert "images_per_second" not in failed
    assert "failed" not in fine
    assert fine["speed_over"] == {}
    assert sum("FAILED: expected right" in line for line in printed) == 1


def test_two_contenders_of_one_name_are_refused(tmp_path):
    twice = [Contender(name="a", run=lambda _out: None)] * 2
    with pytest.raises(ValueError, match="different names"):
        interleave(twice, repeats=1, work=tmp_path, tell=quiet)


def test_a_record_says_what_was_measured_where_and_with_what():
    row = record("select", {"n": 3, "median_s": 0.03})
    assert (row["bench"], row["n"], row["median_s"]) == ("select", 3, 0.03)
    assert row["versions"] == versions()
    assert row["hardware"] == hardware()
    assert row["commit"] == commit()
    assert date.fromisoformat(row["date"]).year >= 2026


def test_the_hardware_is_this_one():
    import torch

    here = hardware()
    assert here["cores"] == len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert here["memory_gib"] == pytest.approx(total / 2**30, abs=0.05)
    assert here["processor"]
    assert json.loads(json.dumps(here)) == here
    if torch.cuda.is_available():
        assert here["gpu"]["name"] == torch.cuda.get_device_name(0)
    else:
        assert here["gpu"] is None or set(here["gpu"]) == {"driver"}


def test_the_commit_is_the_one_of_the_checkout():
    git = shutil.which("git")
    if git is None or not (harness.ROOT / ".git").exists():
        assert commit() == "unknown"
        return
    name = re.fullmatch(r"([0-9a-f]{7,40})\+?", commit())
    assert name is not None
    command = [git, "-C", str(harness.ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, check=True)
    assert head.stdout.decode().startswith(name[1])


def test_records_come_back_and_replace_those_before(results):
    write("select", [{"n": 1}, {"n": 2}])
    assert read("select") == [{"n": 1}, {"n": 2}]
    path = write("select", [{"n": 3, "name": "ü"}])
    assert path == results / "select.jsonl"
    assert read("select") == [{"n": 3, "name": "ü"}]
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.usefixtures("results")
def test_a_run_replaces_the_records_of_its_parts_alone():
    def run(value, *parts, **options):
        rows = {part: lambda: [{"input": "a", "n": value}] for part in parts}
        run_parts("bench", rows, dry=False, **options)

    run(1, "first", "second")
    run(2, "second")
    run(3, "second", replaces=lambda row: row["input"] == "b")
    run_parts("bench", {"first": lambda: [{"n": 9}]}, dry=True)
    found = [(row["bench"], row["n"]) for row in read("bench")]
    assert found == [("bench.first", 1), ("bench.second", 2), ("bench.second", 3)]


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


def test_a_peer_that_cannot_be_imported_is_absent_with_the_reason(tmp_path):
    opened = pool_of(tmp_path, 1, img2dataset_resize.versions)
    with pytest.raises(MissingPeerError, match="No module named 'img2dataset'") as raised, opened:
        pytest.fail("the pool opened without the peer")
    row = Absent(name="img2dataset", reason=str(raised.value)).row()
    assert "No module named 'img2dataset'" in row["absent"]


def test_a_peer_says_its_version_and_gets_its_environment():
    changed = {"BENCH_TEST": "x", "PATH": None}
    with pool_of(None, 1, pillow_resize.versions, changed) as (pool, versions_):
        assert versions_ == {"pillow": PIL.__version__}
        assert pool.submit(pillow_resize.reencode, [], 256, 90).result() == []
        assert pool.submit(os.getenv, "BENCH_TEST").result() == "x"
        assert pool.submit(os.getenv, "PATH").result() is None
    assert "BENCH_TEST" not in os.environ
    assert os.environ["PATH"]


PARENT = """
import os, subprocess, sys, time
from coreset.bench.processes import WITH_PARENT, pool_of
with pool_of(None) as (pool, _):
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


def test_the_environment_changes_only_for_a_while(monkeypatch):
    monkeypatch.delenv("BENCH_TEST", raising=False)
    with environment_of({"BENCH_TEST": "inside"}):
        assert os.environ["BENCH_TEST"] == "inside"
    assert "BENCH_TEST" not in os.environ
    monkeypatch.setenv("BENCH_TEST", "before")
    with environment_of({"BENCH_TEST": None}):
        assert "BENCH_TEST" not in os.environ
    assert os.environ["BENCH_TEST"] == "before"


def test_the_memory_of_a_command_counts_its_children():
    child = "import time; block = bytearray(b'x' * 60_000_000); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    watched = watch([sys.executable, "-c", parent], memory_and_processes, 0.05)
    assert watched["failed"] == ""
    assert watched["most_processes"] == 2
    assert 60e6 < watched["peak_pss_bytes"] < 160e6


def test_a_command_that_fails_says_so():
    watched = watch([sys.executable, "-c", "raise SystemExit('no disk')"], lambda _: {}, 0.05)
    assert watched["failed"] == "exit code 1: no disk"


def test_memory_of_this_process_grows_by_what_it_writes():
    before = memory_bytes([os.getpid()])
    # Never memory that was freed before.
    with mmap.mmap(-1, 64_000_000, flags=mmap.MAP_PRIVATE) as fresh:
        fresh[:: mmap.PAGESIZE] = bytes(len(range(0, len(fresh), mmap.PAGESIZE)))
        assert memory_bytes([os.getpid()]) - before == pytest.approx(64_000_000, rel=0.05)


SMAPS = b"""\
5600-5700 r-xp 00002000 fe:00 11                         /usr/lib/lib with spaces.so
Size:                 90 kB
Pss:                  30 kB
Pss_Dirty:            10 kB
Anonymous:            10 kB
7000-7100 r--p 00000000 fe:00 12                         /data/one/rows.f16
Pss:                 500 kB
Anonymous:             0 kB
7100-7200 rw-p 00000000 fe:00 13                         /data/one/changed rows
Pss:                  70 kB
Anonymous:            20 kB
7200-7300 r--p 00000000 fe:00 14                         /data/other/rows.f16
Pss:                   8 kB
Anonymous:             0 kB
7f00-7f10 rw-p 00000000 00:00 0
Pss:                   4 kB
Anonymous:             4 kB
7f10-7f20 rw-p 00000000 00:00 0                          [heap]
Pss:                   2 kB
Anonymous:             4 kB
"""


def test_pages_of_data_files_are_told_from_all_other_memory():
    memory = memory_in(SMAPS, Path("/data/one"))
    assert memory.total == 614 * 1024
    assert memory.data == (500 + 50) * 1024
    assert memory.anonymous == (10 + 20 + 4 + 2) * 1024


def test_a_command_is_seen_to_hold_memory_of_its_own_mapped_data_and_files(tmp_path):
    rows, scratch = tmp_path / "data" / "rows", tmp_path / "scratch"
    rows.parent.mkdir()
    scratch.mkdir()
    rows.write_bytes(bytes(50_000_000))
    code = f"""
import mmap, time
from pathlib import Path
file = open({str(rows)!r}, "rb")
rows = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(rows[::4096])
block = bytearray(b"x" * 30_000_000)
Path({str(scratch)!r}, "half").write_bytes(bytes(1234))
time.sleep(1)
"""
    seen = watch(
        [sys.executable, "-c", code],
        lambda pids: memory_and_scratch(rows.parent, scratch, pids),
        0.2,
    )
    assert not seen["failed"]
    assert seen["looks"] > 1
    # A page cache in large folios may map a little more than was touched, never more than the file.
    assert 49e6 < seen["peak_data_bytes"] < 51e6
    assert 30e6 < seen["peak_anonymous_bytes"] <= seen["peak_above_bytes"] < 90e6
    assert seen["peak_scratch_bytes"] == 1234
    assert seen["peak_bytes"] <= seen["peak_above_bytes"] + seen["peak_data_bytes"]


def test_bytes_of_a_folder_are_those_of_all_its_files(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "one").write_bytes(bytes(10))
    (tmp_path / "deeper" / "two").write_bytes(bytes(5))
    assert tree_bytes(tmp_path) == 15
    assert tree_bytes(tmp_path / "absent") == 0
