"""``cost``, ``ls`` and the tables that they print."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.engine.artifacts.ledger import append_lines, construction_cost, total_wall_seconds
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.cli import main
from coreset.engine.runtime.text import aligned, readable_bytes, readable_seconds

SCORES = Provenance(kind="scores", stage="score", config={})


def line(stage, wall_seconds, **more):
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
    line("select", 0.5, images=0),
]


def test_runs_of_one_stage_of_one_artifact_are_summed():
    pack, score, select = construction_cost(SET_LINES)
    assert [one.stage for one in (pack, score, select)] == ["pack", "score", "select"]
    assert (score.runs, score.interrupted, score.images) == (2, 1, 200)
    assert (score.wall_seconds, score.cpu_seconds) == (60.0, 120.0)
    assert score.images_per_second == 200 / 60
    assert (score.peak_rss_bytes, score.device) == (2**31, "H100, cpu")
    assert (score.artifact, select.artifact) == ("d2", "")


def test_a_peak_that_was_not_measured_counts_for_nothing(tmp_path, capsys):
    unknown = line("select", 0.5, peak_rss_bytes=None)
    (both,) = construction_cost([unknown, line("select", 0.6)])
    assert both.peak_rss_bytes == 2**30
    assert construction_cost([unknown])[0].peak_rss_bytes is None
    append_lines(tmp_path, [unknown])
    assert main(["cost", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["-", "cpu"]


def test_the_construction_cost_is_the_wall_time_of_the_distinct_lines():
    twice = [*SET_LINES, *SET_LINES]
    assert total_wall_seconds(construction_cost(twice)) == 10.0 + 20.0 + 40.0 + 0.5
    assert construction_cost(twice) == construction_cost(SET_LINES)


def test_one_stage_of_two_artifacts_stays_two():
    two = [line("pack", 1.0, artifact="train"), line("pack", 2.0, artifact="val")]
    assert [cost.wall_seconds for cost in construction_cost(two)] == [1.0, 2.0]


def test_a_stage_that_took_no_time_has_no_rate():
    (cost,) = construction_cost([line("select", 0.0)])
    assert cost.images_per_second == 0.0


def test_cost_prints_a_row_per_stage_and_the_sum(tmp_path, capsys):
    append_lines(tmp_path, SET_LINES)
    assert main(["cost", str(tmp_path)]) == 0
    _, pack, score, select, total = capsys.readouterr().out.splitlines()
    assert pack.split()[:2] == ["pack", "1"]
    assert "2 (1 interrupted)" in score
    assert "1 min 00 s" in score
    assert "2.0 GiB" in score
    assert select.startswith("select")
    assert total == f"construction cost of {tmp_path}: 1 min 10 s wall time"


def test_cost_gives_machines_the_same_numbers(tmp_path, capsys):
    append_lines(tmp_path, SET_LINES)
    main(["cost", str(tmp_path), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["wall_seconds"] == 70.5
    assert [stage["runs"] for stage in record["stages"]] == [1, 2, 1]


def test_cost_of_an_artifact_that_was_just_made_is_its_own_run(tmp_path, capsys):
    with create_artifact(tmp_path / "scores", SCORES) as work:
        work.meter.images = 12
    assert main(["cost", str(tmp_path / "scores")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "score"


@pytest.mark.parametrize(("name", "fact"), [("", "has no ledger"), ("no", "does not exist")])
def test_cost_without_a_ledger_is_a_wrong_argument(name, fact, tmp_path, capsys):
    assert main(["cost", str(tmp_path / name)]) == 2
    assert f"{fact}; name the output of a finished coreset command" in capsys.readouterr().err


def listing(folder, capsys):
    assert main(["ls", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["artifacts"]


def test_ls_lists_artifacts_two_levels_deep_by_name(tmp_path, capsys):
    for name in ("b", "a", "runs/c", "runs/too/deep"):
        with create_artifact(tmp_path / name, replace(SCORES, config={"name": name})) as work:
            (work.scratch / "file").write_bytes(bytes(1000))
    found = listing(tmp_path, capsys)
    assert [one["name"] for one in found] == ["a", "b", "runs/c"]
    assert {(one["kind"], one["made_by"]) for one in found} == {("scores", "score")}
    assert found[0]["digest"] == Provenance.read(tmp_path / "a").digest
    files = [file for file in (tmp_path / "a").iterdir() if file.is_file()]
    assert found[0]["size_bytes"] == sum(len(file.read_bytes()) for file in files) > 1000


def test_ls_prints_the_first_12_digits_of_a_digest(tmp_path, capsys):
    with create_artifact(tmp_path / "a", SCORES):
        pass
    assert main(["ls", str(tmp_path)]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["kind", "name", "made", "by", "size", "digest"]
    assert row.split()[-1] == Provenance.read(tmp_path / "a").digest[:12]


def test_ls_knows_results_by_their_tables(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "metrics.parquet").write_bytes(bytes(10))
    (tmp_path / "results" / "students.parquet").write_bytes(bytes(20))
    (found,) = listing(tmp_path, capsys)
    assert (found["kind"], found["made_by"], found["size_bytes"]) == (
        "results",
        "train, measure",
        30,
    )


def test_ls_leaves_out_runs_in_the_making(tmp_path, capsys):
    with pytest.raises(RuntimeError), create_artifact(tmp_path / "a", SCORES, resumable=True):
        raise RuntimeError
    assert listing(tmp_path, capsys) == []


def test_ls_shows_a_damaged_artifact_instead_of_failing(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / PROVENANCE_NAME).write_text("{")
    (found,) = listing(tmp_path, capsys)
    assert found["kind"] == "damaged"


def test_ls_of_an_empty_folder_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 0
    assert capsys.readouterr().out.startswith("no artifacts in .;")


def test_ls_of_no_folder_is_a_wrong_argument(tmp_path, capsys):
    assert main(["ls", str(tmp_path / "no")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_table_is_aligned_with_numbers_to_the_right():
    rows = [("pack", "5", "cpu"), ("select", "1,000", "")]
    assert aligned(("stage", "images", "device"), rows) == (
        "stage   images  device",
        "pack         5  cpu",
        "select   1,000",
    )


def test_a_table_without_rows_is_its_header():
    assert aligned(("stage", "runs"), []) == ("stage  runs",)


@given(st.lists(st.tuples(*[st.text("ab1 ", max_size=6)] * 3), max_size=5))
def test_columns_of_a_table_begin_at_the_same_place(rows):
    header = ("a", "bb", "ccc")
    ends = [max(len(row[column]) for row in (header, *rows)) for column in range(3)]
    for text in aligned(header, rows):
        assert text[ends[0] : ends[0] + 2].strip() == ""
        assert len(text) <= sum(ends) + 4


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_sizes_are_readable(n_bytes, text):
    assert readable_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.423, "0.42 s"),
        (9.999, "10.0 s"),
        (12.34, "12.3 s"),
        (59.99, "1 min 00 s"),
        (185.2, "3 min 05 s"),
        (3599.9, "1 h 00 min"),
        (7619, "2 h 07 min"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert readable_seconds(seconds) == text
