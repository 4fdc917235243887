"""Making an artifact: the same command again, a changed one, two at once, a killed one."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from coreset.engine.artifacts.ledger import LEDGER_NAME, RUNNING_NAME, read_ledger
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import create_artifact, lock, output_digest
from coreset.shards.errors import LockedError, UsageError
from coreset.shards.format.files import temporary_name, tree_digests

CHECKOUT = Path(__file__).parents[2]
SCORES = Provenance(kind="scores", stage="score", config={"epochs": 60}, runtime={"threads": 2})
# Makes an artifact slowly: says when it is in the middle and waits there to be killed.
SLOW_CHILD = """
import sys, time
from pathlib import Path
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.artifacts.provenance import Provenance

provenance = Provenance(kind="scores", stage="score", config={"epochs": 60}, runtime={"threads": 2})
with create_artifact(Path(sys.argv[1]), provenance, resumable=sys.argv[2] == "resumable") as work:
    (work.scratch / "half").write_text("from the killed run")
    work.meter.images = 30
    work.meter.checkpoint(work.scratch)
    print("in the middle", flush=True)
    time.sleep(60)
"""


def make(out, provenance=SCORES, content="content", **options):
    with create_artifact(out, provenance, **options) as work:
        if not work.done:
            (work.scratch / "file").write_text(content)
    return work


def fail_after_writing(out, **options):
    with pytest.raises(RuntimeError, match="on purpose"):
        make_half(out, **options)


def make_half(out, **options):
    with create_artifact(out, SCORES, **options) as work:
        (work.scratch / "half").write_text("half")
        raise RuntimeError("on purpose")


@contextmanager
def child_in_the_middle(out, resumable="resumable"):
    """A process that is making ``out``; killed at the latest at the end of the block."""
    command = [sys.executable, "-c", SLOW_CHILD, str(out), resumable]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in the middle\n"
        try:
            yield child
        finally:
            child.send_signal(signal.SIGKILL)


def test_an_artifact_appears_whole_with_provenance_digest_and_ledger(tmp_path):
    out = tmp_path / "deep" / "scores"
    work = make(out)
    assert {file.name for file in out.iterdir()} == {"file", PROVENANCE_NAME, LEDGER_NAME}
    assert Provenance.read(out).digest == work.provenance.digest == output_digest(out)
    assert [line["stage"] for line in read_ledger(out)] == ["score"]
    assert list(out.parent.iterdir()) == [out]


def test_an_artifact_is_whole_on_the_disk_before_it_has_its_name(tmp_path, disk):
    make(tmp_path / "scores")
    names = {"file", PROVENANCE_NAME, LEDGER_NAME}
    written = {name: (tmp_path / "scores" / name).read_bytes() for name in names}
    before = disk.naming("scores").survivors
    assert {name: before[f".scores.partial/{name}"] for name in names} == written
    assert {name: disk.survivors()[f"scores/{name}"] for name in names} == written


def test_the_same_command_again_has_nothing_to_do(tmp_path):
    make(tmp_path / "scores")
    before = tree_digests(tmp_path)
    assert make(tmp_path / "scores").done
    assert tree_digests(tmp_path) == before


def test_a_finished_artifact_does_not_mind_another_machine(tmp_path):
    make(tmp_path / "scores")
    assert make(tmp_path / "scores", replace(SCORES, runtime={"threads": 8})).done


def test_two_runs_of_one_configuration_differ_in_the_ledger_alone(tmp_path):
    first, second = (tree_digests(make(tmp_path / name).out) for name in ("a", "b"))
    first.pop(LEDGER_NAME)
    second.pop(LEDGER_NAME)
    assert first == second


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path):
    out = tmp_path / "scores"
    make(out)
    before = tree_digests(tmp_path)
    with pytest.raises(UsageError, match=r"\(config\.epochs: 60 there, 30 here\); repeat that"):
        make(out, replace(SCORES, config={"epochs": 30}))
    assert tree_digests(tmp_path) == before


def test_a_changed_input_is_refused_with_the_difference(tmp_path):
    data = tmp_path / "data"
    make(data, replace(SCORES, kind="dataset"))
    link = Provenance.read(data).as_input("data", data, tmp_path / "scores")
    make(tmp_path / "scores", replace(SCORES, inputs=(link,)), inputs=[data])
    changed = replace(SCORES, inputs=({**link, "digest": "another"},))
    with pytest.raises(UsageError, match=r"inputs\.data: [0-9a-f]+ there, another here"):
        make(tmp_path / "scores", changed, inputs=[data])


def test_a_folder_that_no_command_made_is_never_written_into(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match=r"has no provenance\.json"):
        make(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_an_error_removes_the_scratch_of_a_stage_that_starts_again(tmp_path):
    fail_after_writing(tmp_path / "scores")
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_the_scratch_of_a_resumable_stage_and_its_cost(tmp_path):
    out = tmp_path / "scores"
    fail_after_writing(out, resumable=True)
    assert not out.exists()
    with create_artifact(out, SCORES, resumable=True) as work:
        assert work.resumed
        assert (work.scratch / "half").read_text() == "half"
    assert [line["interrupted"] for line in read_ledger(out)] == [True, False]
    assert not (out / RUNNING_NAME).exists()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"config": {"epochs": 30}}, r"config\.epochs: 60 there, 30 here"),
        ({"runtime": {"threads": 8}}, r"runtime\.threads: 2 there, 8 here"),
    ],
)
def test_an_interrupted_run_continues_only_as_it_began(tmp_path, change, difference):
    out = tmp_path / "scores"
    fail_after_writing(out, resumable=True)
    with pytest.raises(UsageError, match=rf"is an interrupted run .*{difference}"):
        make(out, replace(SCORES, **change), resumable=True)
    assert (temporary_name(out) / "half").read_text() == "half"


def test_a_stage_that_cannot_resume_starts_from_an_empty_scratch(tmp_path):
    out = tmp_path / "scores"
    fail_after_writing(out, resumable=True)
    make(out)
    assert not (out / "half").exists()


def test_a_second_process_is_refused_and_told_the_first(tmp_path):
    out = tmp_path / "scores"
    with child_in_the_middle(out) as child:
        with pytest.raises(LockedError, match=rf"is being written by process {child.pid} on "):
            make(out)
        make(tmp_path / "another")


def test_what_is_finished_is_found_by_any_number_at_once(tmp_path):
    out = tmp_path / "scores"
    make(out)
    with lock(out):
        assert make(out).done
    with create_artifact(out, SCORES) as first, create_artifact(out, SCORES) as second:
        assert (first.done, second.done) == (True, True)


def test_a_killed_run_publishes_nothing_and_the_next_one_continues(tmp_path):
    out = tmp_path / "scores"
    with child_in_the_middle(out):
        pass
    assert not out.exists()
    work = make(out, resumable=True)
    assert work.resumed
    assert (out / "half").read_text() == "from the killed run"
    paid = [(line["interrupted"], line["images"]) for line in read_ledger(out)]
    assert paid == [(True, 30), (False, 0)]
    assert list(tmp_path.iterdir()) == [out]


def test_a_killed_run_that_cannot_resume_leaves_no_trace_in_the_next(tmp_path):
    out = tmp_path / "scores"
    with child_in_the_middle(out, "not resumable"):
        pass
    assert not out.exists()
    assert not make(out).resumed
    assert not (out / "half").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_the_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), lock(tmp_path / "scores"):
        raise RuntimeError
    with lock(tmp_path / "scores"):
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
