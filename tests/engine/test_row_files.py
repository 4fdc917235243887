"""Row files of results: appends at once, kills, folders of other versions, damage."""

import csv
import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreset.engine.artifacts.ledger import append_lines, read_ledger
from coreset.engine.evaluation import row_files
from coreset.engine.evaluation.result_tables import (
    CLASSES,
    METRICS,
    METRICS_SCHEMA,
    STUDENTS,
    STUDENTS_SCHEMA,
)
from coreset.engine.evaluation.results import Results
from coreset.shards.errors import StoreError


def columns_of(results, table, *names):
    return [tuple(row[name] for name in names) for row in results.rows(table)]


def csv_rows(results, table):
    with (results.path / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def line(number):
    return {"stage": "train", "config_digest": str(number), "started": f"t{number}"}


@pytest.mark.parametrize("table", [STUDENTS, CLASSES])
def test_appends_folds_and_repeated_keys_agree_with_a_plain_list(results, table, monkeypatch):
    monkeypatch.setattr("coreset.engine.evaluation.results.FOLD_AT", 4)
    column = "top1_last" if table == STUDENTS else "value"
    rng, plain, lines = np.random.default_rng(0), [], []
    for number in range(40):
        keys = map(str, rng.integers(30, size=rng.integers(4)))
        rows = [(key, float(rng.normal())) for key in keys]
        results.append(table, [{"key": key, column: x} for key, x in rows], [line(number)])
        known = {key for key, _ in plain}
        fresh = [row for row in rows if row[0] not in known]
        plain += dict(fresh).items() if table == STUDENTS else fresh
        lines.append(line(number))
        if rng.random() < 0.1:
            results.fold()
        assert columns_of(results, table, "key", column) == plain
        assert results.ledger() == lines
        assert len(list(results.path.glob("*.rows.jsonl"))) < 4
    results.fold()
    assert columns_of(results, table, "key", column) == plain
    assert [(row["key"], float(row[column])) for row in csv_rows(results, table)] == plain
    assert read_ledger(results.path) == lines


APPENDS = """
import sys, time
from pathlib import Path
from coreset.engine.evaluation import results

results.FOLD_AT = 5
own, folder, go = sys.argv[1], *map(Path, sys.argv[2:])
while not go.exists():
    time.sleep(0.001)
for number in range(10):
    rows = [{"key": f"{own}-{number}", "seed": number}, {"key": "shared", "seed": number}]
    line = {"stage": "train", "config_digest": f"{own}-{number}"}
    results.Results(folder).append(results.STUDENTS, rows, [line])
"""


def test_processes_that_append_at_once_keep_every_row(results, tmp_path, fork):
    def read_until(over):
        seen = []
        while not over.is_set():
            rows = columns_of(results, STUDENTS, "key", "seed")
            assert rows[: len(seen)] == seen  # what was there stays, in its order
            seen = rows

    over, go = threading.Event(), tmp_path / "go"
    with ThreadPoolExecutor(1) as pool:
        writers = [fork(APPENDS, own, results.path, go) for own in "abc"]
        reader = pool.submit(read_until, over)
        go.touch()
        codes = [writer.code for writer in writers]
        over.set()
        reader.result()
    assert codes == [0, 0, 0]
    results.fold()
    rows = columns_of(results, STUDENTS, "key", "seed")
    assert sorted(rows) == sorted([*((f"{own}-{n}", n) for own in "abc" for n in range(10)),
                                   ("shared", 0)])  # fmt: skip
    for own in "abc":
        assert [seed for key, seed in rows if key.startswith(own)] == list(range(10))
    assert len(read_ledger(results.path)) == 30
    names = {"ledger.jsonl", "students.csv", "students.parquet"}
    assert {file.name for file in results.path.iterdir()} == names


@pytest.mark.parametrize("n_read", range(3))
@pytest.mark.parametrize("n_new", range(4))
def test_a_reader_sees_no_row_without_those_before_it_whatever_happens_meanwhile(
    results, monkeypatch, n_read, n_new
):
    read, calls = row_files.read_row_file, 0

    def read_and_be_overtaken(*arguments):
        nonlocal calls
        calls += 1
        if calls == n_read + 1:
            results.fold()
            for seed in range(3, 3 + n_new):
                results.append(STUDENTS, [{"key": str(seed), "seed": seed}], [])
        return read(*arguments)

    for seed in range(3):
        results.append(STUDENTS, [{"key": str(seed), "seed": seed}], [])
    monkeypatch.setattr(row_files, "read_row_file", read_and_be_overtaken)
    seeds = [row["seed"] for row in results.rows(STUDENTS)]
    assert len(seeds) >= 3
    assert seeds == list(range(len(seeds)))
    assert [row["seed"] for row in results.rows(STUDENTS)] == list(range(3 + n_new))


# Appends and folds in forks of itself, each killed before another of its renames and removals of
# row files; a fork writes how many appends it finished.
KILLED = """
import os, signal, sys
from pathlib import Path
from coreset.engine.evaluation import results

results.FOLD_AT = 3
folder, kept = Path(sys.argv[1]), (os.rename, os.unlink)

def run_until(last):
    calls, out = 0, folder / f"killed-{last:02d}"
    def counted(function):
        def call(path, *others, **named):
            nonlocal calls
            calls += not str(path).endswith(".lock")
            if calls > last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(path, *others, **named)
        return call
    os.rename, os.unlink = map(counted, kept)
    for number in range(5):
        row = {"key": str(number), "seed": number}
        line = {"stage": "train", "config_digest": str(number), "started": f"t{number}"}
        results.Results(out).append(results.STUDENTS, [row], [line])
        (folder / f"finished-{last:02d}").write_text(str(number + 1))
    results.Results(out).fold()

last, status = 0, signal.SIGKILL
while status == signal.SIGKILL:
    child = os.fork()
    if child == 0:
        run_until(last)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    last += 1
assert status == 0
print(last - 1)
"""


def test_a_kill_anywhere_loses_no_finished_row_and_the_same_appends_end_the_same(tmp_path, fork):
    child = fork(KILLED, tmp_path)
    assert child.code == 0, child.said
    n_kills = int(child.said.splitlines()[-1])
    assert n_kills >= 5 + 2 * (2 + 2)  # appends; two folds of two tables and two row files or more
    whole = tmp_path / f"killed-{n_kills:02d}"
    for last in range(n_kills):
        results, finished = Results(tmp_path / f"killed-{last:02d}"), 0
        if (tmp_path / f"finished-{last:02d}").exists():
            finished = int((tmp_path / f"finished-{last:02d}").read_text())
        seeds = [row["seed"] for row in results.rows(STUDENTS)]
        assert seeds in (list(range(finished)), list(range(finished + 1)))
        assert [each["config_digest"] for each in results.ledger()] == list(map(str, seeds))
        for number in range(5):
            results.append(STUDENTS, [{"key": str(number), "seed": number}], [line(number)])
        results.fold()
        assert {file.name: file.read_bytes() for file in results.path.iterdir()} == {
            file.name: file.read_bytes() for file in whole.iterdir()
        }


def test_a_folder_of_before_row_files_is_read_and_goes_on(results):
    results.path.mkdir()
    old = [{"key": key, "seed": seed, "protocol": "hard@1"} for seed, key in enumerate("ab")]
    pq.write_table(pa.Table.from_pylist(old, schema=STUDENTS_SCHEMA),
                   results.path / "students.parquet", write_page_checksum=True)  # fmt: skip
    (results.path / "students.csv").write_text("key\na\nb\n")
    append_lines(results.path, [line(0), line(1)])
    assert columns_of(results, STUDENTS, "key", "seed") == [("a", 0), ("b", 1)]
    results.append(STUDENTS, [{"key": "b", "seed": 7}, {"key": "c", "seed": 2}], [line(2)])
    expected = [("a", 0), ("b", 1), ("c", 2)]
    assert columns_of(results, STUDENTS, "key", "seed") == expected
    assert results.ledger() == [line(0), line(1), line(2)]
    results.fold()
    assert columns_of(results, STUDENTS, "key", "seed") == expected
    assert [row["key"] for row in csv_rows(results, STUDENTS)] == ["a", "b", "c"]
    assert read_ledger(results.path) == [line(0), line(1), line(2)]


def write_row_file(results, rows, number=1):
    """Write a row file as of any version."""
    content = json.dumps({"rows": rows, "ledger": []}).encode()
    head = json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode()
    file = results.path / f"metrics-{number:06}.rows.jsonl"
    file.write_bytes(head + b"\n" + content)
    return file


@pytest.mark.parametrize("stored", ["parquet", "row file"])
def test_columns_that_a_file_lacks_are_null_and_unknown_ones_are_kept(results, stored):
    results.path.mkdir()
    row = {"key": "m", "value": 0.5, "spread": 0.25, "curve": [1, 2], "unused": None}
    if stored == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), results.path / "metrics.parquet")
    else:
        write_row_file(results, [row])
    results.append(METRICS, [{"key": "n", "value": 0.75}], [])
    names = [*METRICS_SCHEMA.names, "spread", "curve", "unused"]
    blank = dict.fromkeys(names)
    expected = [blank | row, blank | {"key": "n", "value": 0.75}]
    for _ in range(2):
        rows = results.rows(METRICS)
        assert rows == expected
        assert [list(each) for each in rows] == [names, names]
        results.fold()
    first, second = csv_rows(results, METRICS)
    assert (first["spread"], first["unused"], second["spread"]) == ("0.25", "", "")
    assert "curve" not in first  # a CSV has no lists
    assert pq.read_schema(results.path / "metrics.parquet").field("ipc").type == pa.int64()


@pytest.mark.parametrize(
    "row",
    [{"key": "m", "ipc": "ten"}, {"key": "m", "ipc": 1.5}, {"key": 1}, {"ipc": 10}],
    ids=["text for a number", "a fraction for a count", "a number for a key", "no key"],
)
@pytest.mark.parametrize("stored", ["parquet", "row file"])
def test_columns_of_another_type_and_rows_without_keys_are_refused(results, row, stored):
    results.path.mkdir()
    if stored == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), results.path / "metrics.parquet")
    else:
        write_row_file(results, [row])
    fact = r"metrics.* is of another version; choose another RESULTS folder"
    for read in (results.rows, results.keys):
        with pytest.raises(StoreError, match=fact):
            read(METRICS)


def test_unknown_columns_that_disagree_are_refused_by_the_name_of_the_file(results):
    results.path.mkdir()
    write_row_file(results, [{"key": "m", "new": 1}])
    write_row_file(results, [{"key": "n", "new": 1.5}], 2)
    assert columns_of(results, METRICS, "key", "new") == [("m", 1.0), ("n", 1.5)]
    write_row_file(results, [{"key": "o", "new": "x"}], 3)
    with pytest.raises(StoreError, match=r"metrics-000003\.rows\.jsonl cannot be read"):
        results.rows(METRICS)


DAMAGES = {
    "empty": lambda data: data[:0],
    "cut": lambda data: data[: len(data) // 2],
    "no line end": lambda data: data.replace(b"\n", b""),
    "another number": lambda data: data.replace(b"57.2", b"58.2"),
    "no sha256": lambda data: data.partition(b"\n")[2],
    "no JSON": lambda data: data.replace(b"{", b"\xff"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_row_file_is_one_line_with_its_name_and_the_remedy(
    results, name, refused, tmp_path
):
    for key in "abc":
        results.append(STUDENTS, [{"key": key, "top1_best": 57.2}], [])
    file = results.path / "students-000002.rows.jsonl"
    true, damaged = file.read_bytes(), DAMAGES[name](file.read_bytes())
    assert damaged != true
    file.write_bytes(damaged)
    said = refused(tmp_path, "report", results.path, tmp_path / "report.html", code=3)
    assert f"{file} cannot be read (" in said
    assert said.endswith("; restore it or move it away")
    with pytest.raises(StoreError):
        results.fold()
    assert file.read_bytes() == damaged
    file.rename(tmp_path / "moved away")
    results.fold()
    assert [row["key"] for row in results.rows(STUDENTS)] == ["a", "c"]


FORGED = [3, [3], "rows", {"key": "a"}, None, [[]], [{"key": 2**70}], [{"key": "a", "ipc": 2**70}],
          [{"key": "\ud800"}], [{"key": "a", "x": 1}, {"key": "b", "x": "y"}]]  # fmt: skip


@pytest.mark.parametrize("rows", FORGED, ids=str)
def test_a_forged_row_file_is_refused(results, rows):
    results.path.mkdir()
    write_row_file(results, rows)
    with pytest.raises(StoreError, match=r"metrics-000001\.rows\.jsonl"):
        results.rows(METRICS)


def test_ls_lists_results_that_hold_row_files_alone(results, tmp_path, done):
    results.append(METRICS, [{"key": "m"}], [])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "metrics-1.json").touch()
    (artifact,) = json.loads(done("ls", tmp_path, "--json")[0])["artifacts"]
    assert (artifact["name"], artifact["made_by"]) == ("RESULTS", "measure")
