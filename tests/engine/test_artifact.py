"""Making an artifact: the same command again, a changed one, two at once, a killed one."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from coreset.engine.artifacts.ledger import LEDGER_NAME, RUNNING_NAME, read_ledger
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import create_artifact, lock, output_digest
from coreset.shards.errors import LockedError, UsageError
from coreset.shards.format.files import temporary_name, tree_digests

SCORES = Provenance(kind="scores", stage="score", config={"epochs": 60}, runtime={"threads": 2})
# Makes an artifact slowly: says when it is in the middle and waits there to be killed.
SLOW_CHILD = """
import sys, time
from pathlib import Path
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.artifacts.provenance import Provenance

provenance = Provenance(kind="scores", stage="score", config={"epochs": 60}, runtime={"threads": 2})
with create_artifact(Path(sys.argv[1]), provenance, resumable=True) as work:
    (work.scratch / "half").write_text("half")
    work.meter.images = 30
    work.meter.checkpoint(work.scratch)
    print("in the middle", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def out(tmp_path):
    return tmp_path / "scores"


def make(out, provenance=SCORES, **options):
    with create_artifact(out, provenance, **options) as work:
        if not work.done:
            (work.scratch / "file").write_text("content")
    return work


def make_half(out, **options):
    with create_artifact(out, SCORES, **options) as work:
        work.meter.images = 30
        (work.scratch / "half").write_text("half")
        raise RuntimeError("on purpose")


@contextmanager
def child_in_the_middle(out):
    """A process that is making ``out``; killed at the end of the block."""
    command = [sys.executable, "-c", SLOW_CHILD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in the middle\n"
        try:
            yield child
        finally:
            child.kill()


def test_an_artifact_appears_whole_with_provenance_digest_and_ledger(tmp_path):
    out = tmp_path / "deep" / "scores"
    work = make(out)
    assert {file.name for file in out.iterdir()} == {"file", PROVENANCE_NAME, LEDGER_NAME}
    assert Provenance.read(out).digest == work.provenance.digest == output_digest(out)
    assert [line["stage"] for line in read_ledger(out)] == ["score"]
    assert list(out.parent.iterdir()) == [out]


def test_an_artifact_is_whole_on_the_disk_before_it_has_its_name(out, disk):
    make(out)
    names = {"file", PROVENANCE_NAME, LEDGER_NAME}
    written = {name: (out / name).read_bytes() for name in names}
    before = disk.naming("scores").survivors
    assert {name: before[f".scores.partial/{name}"] for name in names} == written
    assert {name: disk.survivors()[f"scores/{name}"] for name in names} == written


def test_the_same_command_again_has_nothing_to_do_on_any_machine(tmp_path, out):
    make(out)
    before = tree_digests(tmp_path)
    assert make(out).done
    assert make(out, replace(SCORES, runtime={"threads": 8})).done
    assert tree_digests(tmp_path) == before
    again = tree_digests(make(tmp_path / "again").out)
    assert again | {LEDGER_NAME: ""} == tree_digests(out) | {LEDGER_NAME: ""}


def test_a_changed_configuration_or_input_is_refused_with_the_difference(tmp_path, out):
    data = tmp_path / "data"
    make(data, replace(SCORES, kind="dataset"))
    made = replace(SCORES, inputs=(Provenance.read(data).as_input("data", data, out),))
    make(out, made, inputs=[data])
    before = tree_digests(tmp_path)
    with pytest.raises(UsageError, match=r"\(config\.epochs: 60 there, 30 here\); repeat that"):
        make(out, replace(made, config={"epochs": 30}), inputs=[data])
    changed = replace(made, inputs=({**made.inputs[0], "digest": "another"},))
    with pytest.raises(UsageError, match=r"inputs\.data: [0-9a-f]+ there, another here"):
        make(out, changed, inputs=[data])
    assert tree_digests(tmp_path) == before


def test_a_folder_that_no_command_made_is_never_written_into(out):
    out.mkdir()
    with pytest.raises(UsageError, match=r"has no provenance\.json"):
        make(out)
    assert list(out.iterdir()) == []


def test_an_error_removes_what_a_stage_begins_anew(tmp_path, out):
    with pytest.raises(RuntimeError, match="on purpose"):
        make_half(out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"config": {"epochs": 30}}, r"config\.epochs: 60 there, 30 here"),
        ({"runtime": {"threads": 8}}, r"runtime\.threads: 2 there, 8 here"),
    ],
)
def test_an_interrupted_run_continues_only_as_it_began(out, change, difference):
    with pytest.raises(RuntimeError, match="on purpose"):
        make_half(out, resumable=True)
    with pytest.raises(UsageError, match=rf"is an interrupted run .*{difference}"):
        make(out, replace(SCORES, **change), resumable=True)
    assert (temporary_name(out) / "half").read_text() == "half"
    make(out)  # a stage that cannot continue starts from an empty folder
    assert not (out / "half").exists()


@pytest.mark.parametrize("end", ["error", "kill"])
def test_what_a_stopped_run_committed_and_cost_is_in_the_next_one(tmp_path, out, end):
    if end == "error":
        with pytest.raises(RuntimeError, match="on purpose"):
            make_half(out, resumable=True)
    else:
        with child_in_the_middle(out) as child:
            message = rf"is being written by process {child.pid} on "
            with pytest.raises(LockedError, match=message):
                make(out)
            make(tmp_path / "another").out.rename(tmp_path / "elsewhere")
    assert not out.exists()
    assert make(out, resumable=True).resumed
    assert (out / "half").read_text() == "half"
    paid = [(line["interrupted"], line["images"]) for line in read_ledger(out)]
    assert paid == [(True, 30), (False, 0)]
    assert not (out / RUNNING_NAME).exists()
    assert not list(tmp_path.glob(".*"))


def test_what_is_finished_is_found_by_any_number_at_once(out):
    make(out)
    with lock(out), create_artifact(out, SCORES) as first, create_artifact(out, SCORES) as second:
        assert (first.done, second.done) == (True, True)


def test_the_lock_is_free_after_an_error(tmp_path, out):
    with pytest.raises(RuntimeError), lock(out):
        raise RuntimeError
    with lock(out):
        assert [file.name for file in tmp_path.iterdir()] == [".scores.lock"]
    assert list(tmp_path.iterdir()) == []


def test_writers_that_wait_for_each_other_lose_no_line(tmp_path):
    table = tmp_path / "table"
    table.write_text("")

    def add_lines(name):
        for _ in range(20):
            with lock(table, wait=True):
                before = table.read_text()
                table.write_text(f"{before}{name}\n")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_lines, "abcd"))
    assert sorted(table.read_text().split()) == sorted("abcd" * 20)
    assert list(tmp_path.iterdir()) == [table]


def test_a_ledger_inherits_each_ancestor_once_however_many_ways_lead_there(tmp_path):
    data, scores, chosen = (tmp_path / name for name in ("data", "scores", "set"))
    make(data, Provenance(kind="dataset", stage="pack", config={}))
    of_data = Provenance.read(data).as_input("data", data, scores)
    make(scores, replace(SCORES, inputs=(of_data,)), inputs=[data])
    of_scores = Provenance.read(scores).as_input("scores", scores, chosen)
    select = Provenance(kind="set", stage="select", config={}, inputs=(of_data, of_scores))
    make(chosen, select, inputs=[data, scores])
    lines = read_ledger(chosen)
    assert [line["stage"] for line in lines] == ["pack", "score", "select"]
    digests = [line.get("artifact") for line in lines]
    assert digests == [of_data["digest"], of_scores["digest"], None]
