"""What a stage run cost, through copies, crashes and inheritance; ``cost`` and ``ls``."""

import json
import os
from dataclasses import replace
from datetime import datetime

import pytest

from coreset.engine.artifacts.ledger import (
    LEDGER_NAME,
    RUNNING_NAME,
    Meter,
    append_lines,
    collect_interrupted,
    construction_cost,
    read_ledger,
    several_stages,
    total_wall_seconds,
)
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.runtime.text import aligned, readable_bytes, readable_seconds

SCORES = Provenance(kind="scores", stage="score", config={})


def line(stage="score", wall_seconds=1.0, **more):
    return {
        "stage": stage,
        "config_digest": "c",
        "started": f"{stage} {wall_seconds}",
        "host": "h",
        "wall_seconds": wall_seconds,
        "cpu_seconds": 2 * wall_seconds,
        "images": 100,
        "peak_rss_bytes": 2**30,
        "device": "cpu",
        "interrupted": False,
        **more,
    }


# A set chosen from scores whose run was interrupted once; sums by hand below.
SET_LINES = [
    line("pack", 10.0, artifact="d1"),
    line("score", 20.0, artifact="d2", interrupted=True, device="H100"),
    line("score", 40.0, artifact="d2", peak_rss_bytes=2**31),
    line("select", 0.5, images=0, peak_rss_bytes=None),
]


def test_distinct_runs_of_one_stage_of_one_artifact_are_summed():
    costs = construction_cost([*SET_LINES, *SET_LINES])
    assert [cost.stage for cost in costs] == ["pack", "score", "select"]
    _, score, select = costs
    assert (score.runs, score.interrupted, score.images) == (2, 1, 200)
    assert (score.wall_seconds, score.cpu_seconds) == (60.0, 120.0)
    assert score.images_per_second == 200 / 60
    assert (score.peak_rss_bytes, select.peak_rss_bytes) == (2**31, None)
    assert (score.artifact, score.device, select.artifact) == ("d2", "H100, cpu", "")
    assert total_wall_seconds(costs) == 10.0 + 20.0 + 40.0 + 0.5
    two = [line("pack", 0.0, artifact="train"), line("pack", 2.0, artifact="val")]
    assert [cost.images_per_second for cost in construction_cost(two)] == [0.0, 50.0]


def test_cost_prints_a_row_per_stage_and_the_sum(tmp_path, done):
    append_lines(tmp_path, SET_LINES)
    _, pack, score, select, parts, total = done("cost", tmp_path)
    assert pack.split()[:2] == ["pack", "1"]
    for text in ("2 (1 interrupted)", "1 min 00 s", "2.0 GiB"):
        assert text in score
    assert (select.split()[0], select.split()[-2:]) == ("select", ["-", "cpu"])
    assert parts == "by part: assets 10.0 s, passes 1 min 00 s, classes 0.50 s, images 0.00 s"
    assert total == f"construction cost of {tmp_path}: 1 min 10 s wall time"
    record = json.loads(done("cost", tmp_path, "--json")[0])
    assert record["wall_seconds"] == 70.5
    assert [stage["runs"] for stage in record["stages"]] == [1, 2, 1]


@pytest.fixture
def listed(done):
    """``listed(folder)``: what ``ls`` says for machines."""
    return lambda folder: json.loads(done("ls", folder, "--json")[0])["artifacts"]


def test_ls_lists_artifacts_two_levels_deep_by_name(tmp_path, listed, done):
    for name in ("b", "a", "runs/c", "runs/too/deep"):
        with create_artifact(tmp_path / name, replace(SCORES, config={"name": name})) as work:
            (work.scratch / "file").write_bytes(bytes(1000))
    with pytest.raises(RuntimeError), create_artifact(tmp_path / "d", SCORES, resumable=True):
        raise RuntimeError
    artifacts, digest = listed(tmp_path), Provenance.read(tmp_path / "a").digest
    assert [artifact["name"] for artifact in artifacts] == ["a", "b", "runs/c"]
    assert {(artifact["kind"], artifact["made_by"]) for artifact in artifacts} == {
        ("scores", "score")
    }
    sizes = [file.stat().st_size for file in (tmp_path / "a").iterdir()]
    assert (artifacts[0]["digest"], artifacts[0]["size_bytes"]) == (digest, sum(sizes))
    header, row, *_ = done("ls", tmp_path)
    assert header.split() == ["kind", "name", "made", "by", "size", "digest"]
    assert row.split()[-1] == digest[:12]


def test_ls_knows_results_by_their_tables_and_what_is_damaged(tmp_path, listed):
    for name, size in (
        ("results/metrics.parquet", 10),
        ("results/students.parquet", 20),
        (f"a/{PROVENANCE_NAME}", 1),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert [list(artifact.values()) for artifact in listed(tmp_path)] == [
        ["damaged", "a", "?", 1, ""],
        ["results", "results", "train, measure", 30, ""],
    ]


def test_ls_of_a_folder_without_artifacts_says_so(tmp_path, done, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert done("ls") == ["no artifacts in .; `coreset demo` makes some"]


def test_a_table_is_aligned_with_numbers_to_the_right():
    rows = [("pack", "5", "cpu"), ("select", "1,000", "")]
    assert aligned(("stage", "images", "device"), rows) == (
        "stage   images  device",
        "pack         5  cpu",
        "select   1,000",
    )
    assert aligned(("stage", "runs"), []) == ("stage  runs",)


@pytest.mark.parametrize(
    ("readable", "number", "text"),
    [
        (readable_bytes, 0, "0 B"),
        (readable_bytes, 1023, "1023 B"),
        (readable_bytes, 1536, "1.5 KiB"),
        (readable_bytes, 2**30, "1.0 GiB"),
        (readable_bytes, 2**52, "4096.0 TiB"),
        (readable_seconds, 0.423, "0.42 s"),
        (readable_seconds, 9.999, "10.0 s"),
        (readable_seconds, 12.34, "12.3 s"),
        (readable_seconds, 59.99, "1 min 00 s"),
        (readable_seconds, 185.2, "3 min 05 s"),
        (readable_seconds, 3599.9, "1 h 00 min"),
        (readable_seconds, 7619, "2 h 07 min"),
    ],
)
def test_sizes_and_durations_are_readable(readable, number, text):
    assert readable(number) == text


# ledgers as files


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
    assert lines == [("score", "score 1.0"), ("pack", "pack 1.0"), ("score", "t1")]


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
