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


def line(stage="score", started="t0", **more):
    return {"stage": stage, "config_digest": "c", "started": started, "host": "h", **more}


def test_a_line_says_what_ran_where_and_how_much():
    meter = Meter("score", "digest", device="cpu", images=500)
    meter.notes["seconds_decoding"] = 1.5
    measured = meter.line()
    assert (measured["stage"], measured["config_digest"]) == ("score", "digest")
    assert (measured["images"], measured["device"]) == (500, "cpu")
    assert measured["interrupted"] is False
    assert measured["seconds_decoding"] == 1.5
    assert measured["cores"] == len(os.sched_getaffinity(0))
    assert measured["peak_rss_bytes"] > 10 * 2**20  # the interpreter alone takes more
    assert datetime.fromisoformat(measured["started"]).utcoffset() is not None


def test_stages_that_share_a_process_do_not_pass_its_peak_off_as_their_own():
    with several_stages():
        assert Meter("select", "digest").line()["peak_rss_bytes"] is None
    assert Meter("select", "digest").line()["peak_rss_bytes"] > 0


def test_lines_are_appended_in_order(tmp_path):
    append_lines(tmp_path, [line(started="t0")])
    append_lines(tmp_path, [line(started="t1")])
    assert [one["started"] for one in read_ledger(tmp_path)] == ["t0", "t1"]


def test_the_same_run_is_written_once(tmp_path):
    append_lines(tmp_path, [line(), line(), line(stage="pack")])
    append_lines(tmp_path, [line()])
    assert [one["stage"] for one in read_ledger(tmp_path)] == ["score", "pack"]


def test_a_folder_without_a_ledger_cost_nothing(tmp_path):
    assert read_ledger(tmp_path) == []


def test_a_line_that_a_crash_cut_is_left_out_and_swallows_no_other(tmp_path):
    whole = json.dumps(line(started="t0"))
    (tmp_path / LEDGER_NAME).write_text(f"{whole}\n{whole[:20]}")
    assert [one["started"] for one in read_ledger(tmp_path)] == ["t0"]
    append_lines(tmp_path, [line(started="t1")])
    assert [one["started"] for one in read_ledger(tmp_path)] == ["t0", "t1"]


def test_inherited_lines_name_the_artifact_that_they_paid_for(tmp_path):
    data, scores = tmp_path / "data", tmp_path / "scores"
    for folder in (data, scores):
        folder.mkdir()
    append_lines(data, [line("pack")])
    append_lines(scores, [*inherited_lines(data, "digest of data"), line("score")])
    by_stage = {
        one["stage"]: one["artifact"] for one in inherited_lines(scores, "digest of scores")
    }
    assert by_stage == {"pack": "digest of data", "score": "digest of scores"}


def test_the_cost_of_a_killed_run_becomes_a_line_once(tmp_path):
    Meter("score", "digest", images=7).checkpoint(tmp_path)
    collect_interrupted(tmp_path)
    collect_interrupted(tmp_path)
    (collected,) = read_ledger(tmp_path)
    assert (collected["interrupted"], collected["images"]) == (True, 7)
    assert not (tmp_path / RUNNING_NAME).exists()


def test_a_kill_between_the_line_and_the_removal_does_not_pay_twice(tmp_path):
    meter = Meter("score", "digest")
    meter.checkpoint(tmp_path)
    left = (tmp_path / RUNNING_NAME).read_bytes()
    collect_interrupted(tmp_path)
    (tmp_path / RUNNING_NAME).write_bytes(left)
    collect_interrupted(tmp_path)
    assert len(read_ledger(tmp_path)) == 1
