"""Struct arrays written by scipy, whole and damaged."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from coreset.shards.sources.matlab import MatlabError, Value, struct_fields

texts = st.text(
    st.characters(min_codepoint=33, exclude_categories=["Cs"], max_codepoint=0xFFFF),
    min_size=1,
    max_size=20,
)
numbers = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False)
rows = st.lists(st.tuples(numbers, texts, st.lists(numbers, max_size=3)), min_size=1, max_size=9)


def matlab_file(rows: list[Any], *, do_compression: bool, other: object = None) -> bytes:
    """A column of structs (number, text, list), after another variable."""
    names = ("number", "text", "a_long_name_for_a_list")
    table = np.empty((len(rows), 1), dtype=[(name, object) for name in names])
    for at, (number, text, values) in enumerate(rows):
        table[at, 0] = (number, text, np.array(values, dtype=np.float64))
    buffer = io.BytesIO()
    first = np.arange(5.0) if other is None else other
    savemat(buffer, {"first": first, "table": table}, do_compression=do_compression)
    return buffer.getvalue()


@given(rows=rows, do_compression=st.booleans())
def test_fields_are_read_as_scipy_wrote_them(rows: list[Any], do_compression: bool):
    stored = matlab_file(rows, do_compression=do_compression)
    read = struct_fields(stored, "table", ("text", "number", "a_long_name_for_a_list"))
    expected: list[tuple[Value, ...]] = [
        (text, number, values[0] if values else None) for number, text, values in rows
    ]
    assert read == expected


@pytest.mark.parametrize("do_compression", [False, True])
@given(data=st.data())
def test_damage_is_refused_or_changes_values_alone(data: st.DataObject, do_compression: bool):
    stored = bytearray(
        matlab_file([(1, "n01", [2]), (2, "n02", [])], do_compression=do_compression)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(stored[: data.draw(st.integers(len(stored) // 2, len(stored)))])
    try:
        read = struct_fields(cut, "table", ("text", "number"))
    except MatlabError:
        return
    assert all(len(values) == 2 for values in read)


@pytest.mark.parametrize(
    ("variable", "field", "fact"),
    [
        ("nothing", "text", "it has no array nothing"),
        ("table", "nothing", "its structs lack some of nothing"),
        ("first", "text", "its array holds no structs"),
    ],
)
def test_what_is_not_there_is_said(variable: str, field: str, fact: str):
    stored = matlab_file([(1, "n01", [])], do_compression=True)
    with pytest.raises(MatlabError, match=fact):
        struct_fields(stored, variable, (field,))


@pytest.mark.parametrize("stored", [b"", b"text", bytes(200), b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_what_is_no_matlab_file_is_refused(stored: bytes):
    with pytest.raises(MatlabError, match="no header of a MATLAB file"):
        struct_fields(stored, "table", ("text",))


def test_a_variable_that_decompresses_without_end_is_refused():
    bomb = matlab_file([(1, "n01", [])], do_compression=True, other=np.zeros(1 << 22))
    assert len(bomb) < 1 << 17
    with pytest.raises(MatlabError, match="holds more than 16,777,216 bytes"):
        struct_fields(bomb, "table", ("text",))
