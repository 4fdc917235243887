"""Tables made elsewhere: bytes of any kind, names of samples, cells that no spreadsheet runs."""

import csv
import io
import string
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coreset.shards.errors import CoresetError, UsageError
from coreset.shards.export.lists import read_list
from coreset.shards.format.classes import class_list
from coreset.shards.sources.table import find_table
from coreset.shards.tables.csv_cells import csv_table, guarded, unguarded
from coreset.shards.tables.sample_names import SEVERAL, UNKNOWN, SampleNames
from coreset.shards.tables.table import read_table

SAMPLES = pa.table({"key": ["cat/1", "dog/1"], "source": ["cat/1.jpg", "dog/1.jpg"]})
words = st.sampled_from(
    ["path", "id", "label", "class", "cat/1", "dog/1.jpg", "0", "1", "n01440764", "cat", "", "\0"]
)
tables = st.lists(
    st.lists(words, min_size=1, max_size=4).map(",".join), min_size=1, max_size=5
).map(lambda rows: "\n".join(rows).encode())
SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".parquet", "")


@given(
    st.binary(max_size=80) | st.text(string.printable, max_size=80).map(str.encode) | tables,
    st.sampled_from(SUFFIXES),
)
@example(b"PAR1" * 3, ".parquet")
@example(b"[" * 100_000, ".json")
@example(b"\xef\xbb\xbf", ".csv")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    reads = (
        lambda: read_list(path, SAMPLES),
        lambda: class_list(str(path)),
        partial(find_table, path),
    )
    for read in reads:
        try:
            read()
        except CoresetError as error:
            assert "\n" not in str(error)  # noqa: PT017 - no error is right too


def test_a_line_that_never_ends_is_refused_before_it_fills_the_memory(tmp_path):
    (tmp_path / "x.txt").write_text("cat/1\n" + "a" * (1 << 21))
    with pytest.raises(UsageError, match="a line of more than 1,048,576 characters"):
        list(read_table(tmp_path / "x.txt", "list").rows())


def test_rows_behind_the_first_lines_are_read_with_their_numbers(tmp_path):
    n = 20_000
    lines = "".join(f'"é {number}\n",cat\n' for number in range(n))
    (tmp_path / "x.csv").write_text(f"path,label\n{lines}", encoding="utf-8")
    table = read_table(tmp_path / "x.csv", "list")
    rows = list(table.rows())
    assert (table.header, len(rows)) == (("path", "label"), n)
    assert rows[-1] == (2 * n + 1, [f"é {n - 1}\n", "cat"])


part = st.sampled_from(["cat", "dog", "old", "1", "1.jpg", "2.b", "x y"])
path = st.lists(part, min_size=1, max_size=4).map("/".join)
key = st.lists(part, min_size=2, max_size=3).map("/".join)
FOLDER = "old"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def without_extension(name: str) -> str:
    return name[: name.rindex(".")] if name.lower().endswith(EXTENSIONS) else name


def found_one_by_one(entry: str, keys: Sequence[str], sources: Sequence[str]) -> int:
    """Slow reference: try every end of a path, the longest first, on every sample."""
    parts = entry.split("/")
    last = 1 if len(parts) == 1 or parts[-2] == FOLDER else 2
    ends = ["/".join(parts[at:]) for at in range(len(parts) - last + 1)]
    for end in ends:
        for names, name in ((sources, end), (keys, end), (keys, without_extension(end))):
            there = [at for at, other in enumerate(names) if other == name]
            if there:
                return there[0] if len(there) == 1 else SEVERAL
    if len(parts) > 1:
        return UNKNOWN
    files = [at for at, name in enumerate(keys) if name.split("/")[-1] == without_extension(entry)]
    return UNKNOWN if not files else files[0] if len(files) == 1 else SEVERAL


@given(st.lists(st.tuples(key, path), unique_by=lambda pair: pair[0], max_size=8), st.lists(path))
def test_entries_mean_what_a_search_through_all_samples_finds(samples, entries):
    keys, sources = [sample[0] for sample in samples], [sample[1] for sample in samples]
    names = SampleNames(
        pa.array(keys, pa.string()), pa.array(sources, pa.large_string()), folder=FOLDER
    )
    expected = [found_one_by_one(entry, keys, sources) for entry in entries]
    assert names.positions(entries).tolist() == expected
    named = {entry for entry, at in zip(entries, expected, strict=True) if at != UNKNOWN}
    assert names.known(entries) == {entry for entry in named if not entry.isdigit()}


@pytest.mark.parametrize(
    ("entry", "position"),
    [
        ("cat/1.JPEG", 0), ("cat/1", 0), ("./cat//1.png", 0), (" /data/train/cat/1.JPEG ", 0),
        ("C:\\data\\cat\\1.JPEG", 0), ("../train/dog/old/1", 1), ("2.b", 2), ("2.b.jpg", 2),
        ("fish/2.b", UNKNOWN), ("cat", UNKNOWN), ("1", SEVERAL), ("cat/1.b", UNKNOWN),
        ("", UNKNOWN), ("/", UNKNOWN), ("..", UNKNOWN),
    ],
)  # fmt: skip
def test_paths_of_all_kinds_end_in_a_name(entry, position):
    names = SampleNames(
        pa.array(["cat/1", "dog/old/1", "dog/2.b"]),
        pa.chunked_array([["cat/1.JPEG"], ["dog/old/1.JPEG", "dog/2.b.png"]]),
    )
    assert names.positions([entry]).tolist() == [position]


def test_a_folder_of_another_class_is_not_passed_over():
    names = SampleNames(pa.array(["cat/1", "cat/2"]), pa.array(["1.jpg", "2.jpg"]), folder="val")
    entries = ["dog/1.jpg", "/data/val/1.jpg", "val/2.jpg", "1.jpg", "train/1.jpg"]
    assert names.positions(entries).tolist() == [UNKNOWN, 0, 1, 0, UNKNOWN]


SOURCES = Path(__file__).parents[2]
# Where CSV is made; anybody else passes rows to `csv_table`, or cells through `guarded`.
WRITERS = {"shards/tables/csv_cells.py", "engine/evaluation/results.py"}
odd = st.text(st.sampled_from("'=+-@\t\r\n,\"a1.e"), max_size=6) | st.text(max_size=6)


def test_text_that_a_spreadsheet_runs_gets_an_apostrophe_and_nothing_else():
    for text in ("=1+1", "+cmd", "-x/1.jpg", "@SUM(A1)", "\t=1", "\r=1", "-"):
        assert guarded(text) == f"'{text}"
        assert guarded(f"'{text}") == f"''{text}"  # so that there is one way back
    for cell in ("a=1", "'quoted'", "", "-1", "+2.5", "-1e-5", -1, -0.5, None):
        assert guarded(cell) == cell


@given(odd)
def test_every_text_comes_back_and_none_is_a_formula(text):
    cell = guarded(text)
    assert isinstance(cell, str)
    assert unguarded(cell) == text
    assert not cell.startswith(("=", "@", "\t", "\r", "\n"))


@given(st.lists(st.tuples(odd, odd), max_size=4))
def test_rows_come_back_from_the_file(rows):
    text = csv_table(["=name", "-kind"], rows).decode()
    header, *cells = csv.reader(io.StringIO(text, newline=""))
    assert header == ["'=name", "'-kind"]
    assert cells == [[str(guarded(cell)) for cell in row] for row in rows]


def test_nobody_writes_csv_on_the_side():
    found = {
        path.relative_to(SOURCES).as_posix()
        for package in ("kernels", "shards", "engine")
        for path in (SOURCES / package).rglob("*.py")
        if any(word in path.read_text() for word in ("csv.writer(", "DictWriter(", "write_csv("))
    }
    assert found <= WRITERS
