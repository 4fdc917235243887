"""Results folders: one row per key whoever appends, and a CSV that says the same."""

import csv
import math
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreset.engine.artifacts.ledger import Meter, read_ledger
from coreset.engine.condensed.condensed_set import open_set
from coreset.engine.evaluation.result_tables import (
    CURVES,
    METRICS,
    PER_CLASS,
    STUDENTS,
    STUDENTS_SCHEMA,
)
from coreset.shards.errors import StoreError


def student(key, **values):
    plain = {
        "method": "ccs-aum",
        "ipc": 10,
        "parameters": '{"misratio": 0.3, "name": "a, b"}',
        "protocol": "hard@1+short",
        "top1_best": 57.2,
        "steps": 4000,
    }
    return plain | {"key": key} | values


def keys_of(results):
    return [row["key"] for row in results.rows(STUDENTS)]


def test_rows_come_back_in_the_order_of_their_appending_and_a_key_once(results):
    assert results.rows(STUDENTS) == []
    assert results.keys(METRICS) == set()
    assert not results.path.exists()
    line = Meter("train", "key").line()
    results.append(STUDENTS, [student("a", top1_best=50.0), student("a", top1_best=51.0)], [line])
    results.append(STUDENTS, [student("b", seed=1), student("a", top1_best=60.0)], [line])
    results.append(METRICS, [{"key": "m", "metric": "diversity_d1@1", "value": 0.5}], [])
    rows = results.rows(STUDENTS)
    assert [(row["key"], row["seed"]) for row in rows] == [("a", None), ("b", 1)]
    assert rows[0]["top1_best"] < 60
    assert set(rows[0]) == set(STUDENTS_SCHEMA.names)
    assert (results.keys(STUDENTS), results.keys(METRICS)) == ({"a", "b"}, {"m"})
    assert results.ledger() == [line]
    results.fold()
    assert (results.rows(STUDENTS), read_ledger(results.path)) == (rows, [line])
    assert results.ledger() == [line]


def test_the_csv_equals_the_parquet(results):
    results.append(STUDENTS, [student("a", seed=0, top1_last=100 / 3, method='the "best", so')], [])
    results.append(STUDENTS, [student("b", top1_last=math.nan, data="two\nlines")], [])
    results.fold()
    with (results.path / "students.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == STUDENTS_SCHEMA.names
    for written, row in zip(rows, results.rows(STUDENTS), strict=True):
        for name, value in row.items():
            match value:
                case None:
                    assert written[name] == ""
                case float():
                    assert float(written[name]) == pytest.approx(value, rel=1e-15, nan_ok=True)
                case _:
                    assert written[name] == str(value)


BF16, FLOAT32 = '{"precision": "bfloat16"}', '{"precision": "float32"}'
STAMPS = {
    "published": ("hard@1", FLOAT32, "hard@1", "float32"),
    "without a runtime": ("hard@1+short", None, "hard@1+short", "float32"),
    "before it was stamped": ("hard@1+timm+short", BF16, "hard@1+bf16+timm+short", "bfloat16"),
    "stamped in full": ("hard@1+bfloat16+short", BF16, "hard@1+bf16+short", "bfloat16"),
    "in the stamp alone": ("hard@1+bfloat16", None, "hard@1+bf16", "bfloat16"),
    "of a damaged runtime": ("hard@1", "x", "hard@1", "float32"),
    "without a stamp": (None, BF16, None, "bfloat16"),
}
ADDED = ("protocol_digest", "precision", "teachers", "epoch_best", "top5_best")


def write_old_students(results, rows):
    """Write a table as it was before students had a column of their precision."""
    schema = pa.schema([field for field in STUDENTS_SCHEMA if field.name not in ADDED])
    results.path.mkdir()
    file = results.path / "students.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, write_page_checksum=True)


def test_old_rows_get_their_precision_once_and_go_on_beside_new_ones(results):
    old = [student(k, protocol=s, runtime=r) for k, (s, r, *_) in STAMPS.items()]
    write_old_students(results, old)
    new = {"protocol": "edc@1", "precision": "float32", "protocol_digest": "d" * 64,
           "teachers": '[["resnet18", "e"]]', "epoch_best": 30, "top5_best": 80.0}  # fmt: skip
    results.append(STUDENTS, [student("new", runtime=BF16, **new)], [])
    for _ in range(2):  # a fold writes what was read
        *rows, last = results.rows(STUDENTS)
        shown = [(row["key"], row["protocol"], row["precision"]) for row in rows]
        assert shown == [(key, *expected) for key, (_, _, *expected) in STAMPS.items()]
        assert {row["protocol_digest"] for row in rows} == {""}
        assert {row[name] for row in rows for name in ADDED[2:]} == {None}
        assert last.items() >= new.items()
        results.fold()


CURVE = [{"epoch": 1, "loss": 2.5, "top1": None, "lr": 0.01},
         {"epoch": 2, "loss": 2.0, "top1": 40.0, "lr": 0.01}]  # fmt: skip
BY_CLASS = [{"class": name, "top1": top1, "n": 50} for name, top1 in (("dog", 30.0), ("cat", 50.0))]


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "not folded"])
def test_a_curve_is_there_before_its_student_and_once_after_a_kill(*, results, folded):
    def killed():
        yield BY_CLASS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.append_student(student("a"), curve=CURVE[:1], per_class=killed(), ledger=[])
    assert (results.keys(CURVES), results.keys(STUDENTS)) == ({"a"}, set())
    if folded:
        results.fold()
    for key in "abb":
        again = [{**row, "loss": 1.0} for row in CURVE]
        results.append_student(student(key), curve=again, per_class=BY_CLASS, ledger=[])
    for _ in range(2):
        assert keys_of(results) == ["a", "b"]
        assert results.complete_rows(CURVES) == [
            {"key": "a", **CURVE[0]},
            *({"key": "b", **row, "loss": 1.0} for row in CURVE),
        ]
        assert results.rows(PER_CLASS) == [{"key": k, **row} for k in "ab" for row in BY_CLASS]
        results.fold()


def test_a_curve_without_an_epoch_is_refused(results):
    results.append(CURVES, [{"key": "a", "loss": 1.0}], [])
    with pytest.raises(StoreError, match=r"curves.* has no epoch in the row a; restore it"):
        results.complete_rows(CURVES)


@pytest.mark.parametrize("damage", ["empty", "cut", "no parquet", "page header"])
def test_a_damaged_table_is_an_error_and_stays_as_it_is(results, damage):
    results.append(STUDENTS, [student("a"), student("b")], [])
    results.fold()
    file = results.path / "students.parquet"
    data = file.read_bytes()
    position = data.index(b"\x15")  # in the header of the first page
    file.write_bytes(
        {
            "empty": b"",
            "cut": data[: len(data) // 2],
            "no parquet": b"key,method\n",
            "page header": data[:position] + b"\xff\xff\xff" + data[position + 3 :],
        }[damage]
    )
    damaged = file.read_bytes()
    fact = r"students\.parquet cannot be read .*restore it or move it away"
    with pytest.raises(StoreError, match=fact):
        results.rows(STUDENTS)
    results.append(STUDENTS, [student("c")], [])
    with pytest.raises(StoreError, match=fact):
        results.fold()
    assert file.read_bytes() == damaged
    file.write_bytes(data)
    assert keys_of(results) == ["a", "b", "c"]


@pytest.mark.parametrize("folded", [True, False], ids=["parquet", "row file"])
def test_a_flipped_bit_never_changes_an_accuracy(*, results, folded):
    results.append(STUDENTS, [student("a"), student("b")], [])
    if folded:
        results.fold()
    (file,) = {*results.path.glob("students*")} - {results.path / "students.csv"}
    true = results.rows(STUDENTS)
    data, found = file.read_bytes(), 0
    for position in range(0, len(data), 41):
        file.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        try:
            assert results.rows(STUDENTS) == true
        except StoreError:
            found += 1
    assert found > 50 if folded else found == len(range(0, len(data), 41))


def test_a_fold_that_fails_midway_loses_no_row_and_can_be_repeated(results):
    results.append(STUDENTS, [student("a")], [])
    results.fold()
    csv_file, parquet = (results.path / f"students.{end}" for end in ("csv", "parquet"))
    csv_file.unlink()
    (csv_file / "in the way").mkdir(parents=True)
    line, before = Meter("train", "b").line(), parquet.read_bytes()
    results.append(STUDENTS, [student("b")], [line])
    with pytest.raises(OSError, match=r"students\.csv"):
        results.fold()
    assert parquet.read_bytes() == before, "a row that the CSV lacks would never get there"
    assert keys_of(results) == ["a", "b"]
    (csv_file / "in the way").rmdir()
    csv_file.rmdir()
    results.append(STUDENTS, [student("b")], [line])
    results.fold()
    assert keys_of(results) == ["a", "b"]
    assert len(csv_file.read_text().splitlines()) == 3
    assert len(read_ledger(results.path)) == 1


def contents_of(results):
    return {f"RESULTS/{file.name}": file.read_bytes() for file in results.path.iterdir()}


def test_a_row_is_on_the_disk_when_it_is_appended(results, disk):
    results.append(STUDENTS, [student("a")], [Meter("train", "a").line()])
    written = contents_of(results)
    assert set(written) == {"RESULTS/students-000001.rows.jsonl"}
    assert disk.survivors().items() >= written.items()
    assert None not in disk.naming("students-000001.rows.jsonl").beside.values()


def test_folded_rows_are_committed_by_the_parquet_when_all_else_is_on_the_disk(results, disk):
    for key in "ab":
        results.append(STUDENTS, [student(key)], [Meter("train", key).line()])
        row_file = contents_of(results)["RESULTS/students-000001.rows.jsonl"]
        results.fold()
        written = contents_of(results)
        assert set(written) == {
            "RESULTS/ledger.jsonl", "RESULTS/students.csv", "RESULTS/students.parquet"
        }  # fmt: skip
        assert disk.survivors().items() >= written.items()
        naming = disk.naming("students.parquet")
        assert naming.beside["students.parquet"] == written.pop("RESULTS/students.parquet")
        written["RESULTS/students-000001.rows.jsonl"] = row_file
        assert naming.survivors.items() >= written.items()


def test_threads_that_append_at_once_keep_every_row_and_a_lineage(results, random_set):
    condensed = open_set(random_set)

    def append(number):
        lines = [Meter("train", str(number)).line()]
        results.append(STUDENTS, [student(str(number)), student("shared")], lines)
        results.record_lineage(condensed)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(16)))
    assert sorted(keys_of(results)) == sorted([*map(str, range(16)), "shared"])
    assert len(results.ledger()) == 16
    assert results.lineage(condensed.provenance.digest) is not None
