"""JSON documents as dataclasses, and the manifest with the sample table that it vouches for."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.format.dataset import (
    SAMPLES_NAME,
    Dataset,
    Manifest,
    classes_digest,
    content_digest,
    identity_digest,
)
from coreset.shards.format.files import build, parse


@dataclass(frozen=True)
class Inner:
    size: int
    resize: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    many: tuple[Inner, ...]
    words: tuple[str, ...]
    counts: Mapping[str, int]
    reasons: Mapping[int, str]
    anything: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


WHOLE = Outer(
    "x", "a", Inner(1), (Inner(2, 3), Inner(4)), ("y", "z"), {"k": 5}, {6: "why"}, {"l": [None, 7]}
)


def document(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(WHOLE))) | changes


def test_fields_with_a_default_may_be_missing():
    whole = document()
    del whole["version"], whole["anything"], whole["inner"]["resize"]
    assert build(Outer, whole) == replace(WHOLE, anything={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "name has 1, expected str"),
        ({"version": True}, "version has True, expected int"),
        ({"version": 1.0}, "version has 1.0, expected int"),
        ({"version": 1 << 63}, "version has 9223372036854775808, expected int"),
        ({"kind": "c"}, "kind has 'c'"),
        ({"inner": 1}, "an object was expected, not 1"),
        ({"inner": {}}, "size is missing"),
        ({"many": [{"size": 1}, 2]}, "an object was expected, not 2"),
        ({"many": {}}, r"many has \{\}"),
        ({"words": "yz"}, "words has 'yz'"),
        ({"counts": {"k": "5"}}, "counts has '5', expected int"),
        ({"reasons": {"x": "why"}}, "reasons has the key 'x', expected a number"),
        ({"reasons": {"9" * 5000: "why"}}, "reasons has the key '9+', expected a number"),
        ({"anything": "x" * 1000}, r"anything has 'x{39}\.\.\.,"),
        ({"more": 1}, "more is no field of it"),
    ],
)
def test_a_field_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(Outer, document(**changes))


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 10**5])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match=r"\S"):
        parse(text)


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner)
)


@given(st.sampled_from(sorted(asdict(WHOLE))), values)
def test_any_value_comes_back_or_is_a_value_error(name, value):
    expected = document(**{name: value})
    try:
        built = build(Outer, parse(json.dumps(expected).encode()))
    except ValueError:
        return
    if name != "reasons":  # whose keys may be written in other ways, such as 01
        assert json.loads(json.dumps(asdict(built))) == expected


def test_what_is_written_is_what_is_read(packed):
    manifest, content = Manifest.read(packed), (packed / "manifest.json").read_bytes()
    assert manifest.to_bytes() == content
    assert manifest.digest == hashlib.sha256(content).hexdigest()


def test_other_formats_tables_and_folders_have_errors_of_their_own(packed, tmp_path):
    data = shutil.copytree(packed, tmp_path / "DATA")
    with (data / "samples.parquet").open("ab") as file:
        file.write(b"?")
    with pytest.raises(ManifestError, match="is not the table that manifest"):
        Dataset.open(data)
    document = json.loads((data / "manifest.json").read_text())
    for changes in ({"format_version": 1}, {"format": "somebody-elses"}):
        (data / "manifest.json").write_text(json.dumps(document | changes))
        with pytest.raises(ManifestError, match="this program reads coreset-shards version 2"):
            Manifest.read(data)
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        Manifest.read(tmp_path)
    with pytest.raises(UsageError, match="does not exist; run `coreset pack"):
        Manifest.read(tmp_path / "nowhere")


def test_a_table_that_goes_or_is_cut_while_the_data_set_is_open_is_damage(packed, tmp_path):
    data = shutil.copytree(packed, tmp_path / "DATA")
    dataset, table = Dataset.open(data), data / SAMPLES_NAME
    for spoil in (lambda: table.write_bytes(table.read_bytes()[:100]), table.unlink):
        spoil()
        with pytest.raises(ManifestError, match=r"samples\.parquet: .*; restore the data set from"):
            dataset.table(["key"])


def test_digests_follow_their_published_definition():
    lines = b"n01/a\t0\nn02/b\t1\n"
    assert identity_digest(["n01/a", "n02/b"], [0, 1]) == hashlib.sha256(lines).hexdigest()
    assert (
        content_digest([b"x" * 16, b"y" * 16]) == hashlib.sha256(b"x" * 16 + b"y" * 16).hexdigest()
    )
    assert classes_digest(["n01", "n02"]) == hashlib.sha256(b"n01\nn02\n").hexdigest()
