"""Cells of CSV files: nothing that a spreadsheet would run, and the way back."""

import csv
import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from coreset.shards.tables.csv_cells import csv_table, guarded, unguarded

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
