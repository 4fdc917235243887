"""What a stage run cost, through copies, crashes and inheritance."""

import json
import os
from datetime import datetime

from coreset.engine.artifacts.ledger import (
    LEDGER_NAME,
    RUNNING_NAME,
    Meter,
    append_lines,
    collect_interrupted,
    inherited_lines,
    read_ledger,
    several_stages,
)


def line(stage="score", started="t0"):
    return {"stage": stage, "config_digest": "c", "started": started, "host": "h"}


def test_a_line_says_what_ran_where_and_how_much():
    meter = Meter("score", "digest", device="cpu", images=500)
    meter.notes["seconds_decoding"] = 1.5
    measured = meter.line()
    assert measured.items() >= {
        ("stage", "score"), ("config_digest", "digest"), ("images", 500), ("device", "cpu"),
        ("interrupted", False), ("seconds_decoding", 1.5),
        ("cores", len(os.sched_getaffinity(0))),
    }  # fmt: skip
    assert measured["peak_rss_bytes"] > 10 * 2**20  # the interpreter alone takes more
    assert datetime.fromisoformat(measured["started"]).utcoffset() is not None
    with several_stages():  # that share a process do not pass its peak off as their own
        assert meter.line()["peak_rss_bytes"] is None


def test_lines_are_appended_in_order_and_a_run_once(tmp_path):
    assert read_ledger(tmp_path) == []
    append_lines(tmp_path, [line(), line(), line(stage="pack")])
    append_lines(tmp_path, [line(), line(started="t1")])
    lines = [(entry["stage"], entry["started"]) for entry in read_ledger(tmp_path)]
    assert lines == [("score", "t0"), ("pack", "t0"), ("score", "t1")]


def test_a_line_that_a_crash_cut_is_left_out_and_swallows_no_other(tmp_path):
    whole = json.dumps(line(started="t0"))
    (tmp_path / LEDGER_NAME).write_text(f"{whole}\n{whole[:20]}")
    assert [entry["started"] for entry in read_ledger(tmp_path)] == ["t0"]
    append_lines(tmp_path, [line(started="t1")])
    assert [entry["started"] for entry in read_ledger(tmp_path)] == ["t0", "t1"]


def test_a_line_is_on_the_disk_when_it_is_appended(tmp_path, disk):
    (tmp_path / LEDGER_NAME).touch()
    disk.settle()
    append_lines(tmp_path, [line()])
    assert disk.survivors()[LEDGER_NAME] == (tmp_path / LEDGER_NAME).read_bytes()


def test_inherited_lines_name_the_artifact_that_they_paid_for(tmp_path):
    data, scores = tmp_path / "data", tmp_path / "scores"
    for folder in (data, scores):
        folder.mkdir()
    append_lines(data, [line("pack")])
    append_lines(scores, [*inherited_lines(data, "digest of data"), line("score")])
    inherited = inherited_lines(scores, "digest of scores")
    by_stage = {entry["stage"]: entry["artifact"] for entry in inherited}
    assert by_stage == {"pack": "digest of data", "score": "digest of scores"}


def test_the_cost_of_a_killed_run_becomes_a_line_once_wherever_it_is_killed_again(tmp_path):
    Meter("score", "digest", images=7).checkpoint(tmp_path)
    left = (tmp_path / RUNNING_NAME).read_bytes()
    collect_interrupted(tmp_path)
    collect_interrupted(tmp_path)
    assert not (tmp_path / RUNNING_NAME).exists()
    (tmp_path / RUNNING_NAME).write_bytes(left)  # killed between the line and the removal
    collect_interrupted(tmp_path)
    (collected,) = read_ledger(tmp_path)
    assert (collected["interrupted"], collected["images"]) == (True, 7)
