"""The reader of tables: limits, and bytes of any kind."""

import string
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
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path: Path, content: bytes, suffix: str):
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


def test_a_line_that_never_ends_is_refused_before_it_fills_the_memory(tmp_path: Path):
    (tmp_path / "x.txt").write_text("cat/1\n" + "a" * (1 << 21))
    with pytest.raises(UsageError, match="a line of more than 1,048,576 characters"):
        list(read_table(tmp_path / "x.txt", "list").rows())


def test_rows_behind_the_first_lines_are_read_with_their_numbers(tmp_path: Path):
    n = 20_000
    lines = "".join(f'"é {number}\n",cat\n' for number in range(n))
    (tmp_path / "x.csv").write_text(f"path,label\n{lines}", encoding="utf-8")
    table = read_table(tmp_path / "x.csv", "list")
    rows = list(table.rows())
    assert (table.header, len(rows)) == (("path", "label"), n)
    assert rows[-1] == (2 * n + 1, [f"é {n - 1}\n", "cat"])
