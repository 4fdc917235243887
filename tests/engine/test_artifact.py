"""Making an artifact: again, changed, two at once, killed; what it knows about its making."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from coreset.engine.artifacts.ledger import LEDGER_NAME, RUNNING_NAME, read_ledger
from coreset.engine.artifacts.provenance import (
    FORMAT_VERSION,
    PROVENANCE_NAME,
    Provenance,
    readable_difference,
)
from coreset.engine.artifacts.writer import create_artifact, lock, output_digest
from coreset.shards.errors import LockedError, StoreError, UsageError
from coreset.shards.format.files import json_bytes, temporary_name, tree_digests

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


def test_an_artifact_is_whole_on_the_disk_before_it_has_its_name(tmp_path, disk):
    out = tmp_path / "scores"
    work = make(out)
    names = {"file", PROVENANCE_NAME, LEDGER_NAME}
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert written.keys() == names
    before = disk.naming("scores").survivors
    assert {name: before[f".scores.partial/{name}"] for name in names} == written
    assert {name: disk.survivors()[f"scores/{name}"] for name in names} == written
    assert Provenance.read(out).digest == work.provenance.digest == output_digest(out)
    assert [line["stage"] for line in read_ledger(out)] == ["score"]
    assert make(tmp_path / "deep" / "scores").out.parent.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "scores"]


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


# provenance

PACKED = Provenance(
    kind="dataset",
    stage="pack",
    config={"order": "shuffled", "sizes": (64, 32)},
    binds={"identity": "1d", "content": "c0"},
    digest="d1",
)


def child_of(kind, digest, tmp_path, *parents):
    links = [
        parent.as_input(parent.kind, tmp_path / parent.kind, tmp_path / kind) for parent in parents
    ]
    return Provenance(kind=kind, stage="make", config={}, inputs=tuple(links), digest=digest)


def test_what_is_written_is_read_back_and_names_no_absolute_path(tmp_path):
    scores = child_of("scores", "d2", tmp_path, PACKED)
    written = json_bytes(scores.document())
    (tmp_path / PROVENANCE_NAME).write_bytes(written)
    read = Provenance.read(tmp_path)
    assert (json_bytes(read.document()), read.config_digest) == (written, scores.config_digest)
    assert str(tmp_path).encode() not in written


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"config": {"order": "source", "sizes": (64, 32)}}, False),
        ({"stage": "import"}, False),
        ({"inputs": ({"role": "data", "digest": "other"},)}, False),
        ({"versions": {"torch": "another"}}, True),
        ({"runtime": {"device": "another"}}, True),
        ({"digest": "another"}, True),
    ],
)
def test_the_digest_covers_stage_configuration_and_inputs_alone(change, same):
    assert (replace(PACKED, **change).config_digest == PACKED.config_digest) is same


def test_a_folder_without_provenance_and_a_missing_one_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match=r"has no provenance\.json; name the output"):
        Provenance.read(tmp_path)
    with pytest.raises(UsageError, match="does not exist; name the output"):
        Provenance.read(tmp_path / "nothing")


NEWER = json_bytes(PACKED.document() | {"format_version": FORMAT_VERSION + 1})


@pytest.mark.parametrize(
    ("content", "fact"), [(b"{", "cannot be read"), (NEWER, "is of another version")]
)
def test_damaged_provenance_or_that_of_another_version_is_refused(tmp_path, content, fact):
    (tmp_path / PROVENANCE_NAME).write_bytes(content)
    with pytest.raises(StoreError, match=f"{fact}.*make the artifact again"):
        Provenance.read(tmp_path)


def test_the_lineage_goes_through_all_inputs_nearest_first(tmp_path):
    scores = child_of("scores", "d2", tmp_path, PACKED)
    other = replace(PACKED, kind="other", digest="d0")
    chosen = child_of("set", "d3", tmp_path, scores, other)
    lineage = [(path.name, entry["digest"]) for path, entry in chosen.lineage(tmp_path / "set")]
    assert lineage == [("scores", "d2"), ("other", "d0"), ("dataset", "d1")]
    assert (chosen.ancestor("dataset") or {})["binds"] == PACKED.binds
    assert chosen.ancestor("features") is None


def test_a_difference_names_every_leaf_that_changed():
    old = {"config": {"epochs": 60, "seed": 0}, "inputs": {"data": "a"}}
    new = {"config": {"epochs": 30, "seed": 0, "lr": 0.1}, "inputs": {"data": "b"}}
    assert readable_difference(old, new) == (
        "config.epochs: 60 there, 30 here; config.lr: absent there, 0.1 here; "
        "inputs.data: a there, b here"
    )
    tuples = {"config": {"sizes": ((64, 1), (32, 2))}}
    assert readable_difference({"config": {"sizes": [[64, 1], [32, 2]]}}, tuples) == ""
