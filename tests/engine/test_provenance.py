"""What an artifact knows about its making, and how two makings are told apart."""

import json
from dataclasses import replace

import pytest

from coreset.engine.artifacts.provenance import (
    FORMAT_VERSION,
    PROVENANCE_NAME,
    Provenance,
    readable_difference,
    versions,
)
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.files import json_bytes

DATA = Provenance(
    kind="dataset",
    stage="pack",
    config={"order": "shuffled", "sizes": (64, 32)},
    binds={"identity": "1d", "content": "c0"},
    digest="d1",
)


def stored(provenance, directory):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / PROVENANCE_NAME
    path.write_bytes(json_bytes(provenance.document()))
    return path


def child_of(parent, kind, digest, tmp_path):
    link = parent.as_input(parent.kind, tmp_path / parent.kind, tmp_path / kind)
    return Provenance(kind=kind, stage=f"make {kind}", config={}, inputs=(link,), digest=digest)


def test_what_is_written_is_read_back(tmp_path):
    stored(DATA, tmp_path)
    there = Provenance.read(tmp_path)
    assert there.document() == json.loads(json_bytes(DATA.document()))
    assert there.config_digest == DATA.config_digest


def test_the_same_making_gives_the_same_bytes_without_absolute_paths(tmp_path):
    first, second = (child_of(DATA, "scores", "d2", tmp_path) for _ in range(2))
    text = json_bytes(first.document())
    assert text == json_bytes(second.document())
    assert str(tmp_path).encode() not in text


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"config": {"order": "source", "sizes": (64, 32)}}, False),
        ({"stage": "import"}, False),
        ({"inputs": ({"role": "data", "digest": "other"},)}, False),
        ({"versions": {"torch": "another"}}, True),
        ({"runtime": {"device": "another"}}, True),
        ({"digest": "another"}, True),
    ],
)
def test_the_promise_covers_stage_configuration_and_inputs_alone(change, same):
    other = replace(DATA, **change)
    assert (other.config_digest == DATA.config_digest) is same


def test_a_folder_without_provenance_and_a_missing_one_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match=r"has no provenance\.json; name the output"):
        Provenance.read(tmp_path)
    with pytest.raises(UsageError, match="does not exist; name the output"):
        Provenance.read(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"{}", b"\xff\xfe", b'{"inputs": 1}'])
def test_damaged_provenance_is_refused(tmp_path, content):
    (tmp_path / PROVENANCE_NAME).write_bytes(content)
    with pytest.raises(StoreError, match="make the artifact again"):
        Provenance.read(tmp_path)


def test_provenance_of_another_format_version_is_refused(tmp_path):
    document = DATA.document() | {"format_version": FORMAT_VERSION + 1}
    (tmp_path / PROVENANCE_NAME).write_bytes(json_bytes(document))
    with pytest.raises(StoreError, match="is of another version"):
        Provenance.read(tmp_path)


def test_the_lineage_goes_through_all_inputs_nearest_first(tmp_path):
    scores = child_of(DATA, "scores", "d2", tmp_path)
    chosen = child_of(scores, "set", "d3", tmp_path)
    assert [entry["digest"] for _, entry in chosen.lineage()] == ["d2", "d1"]
    source = chosen.ancestor("dataset")
    assert source is not None
    assert source["binds"] == DATA.binds
    assert chosen.ancestor("features") is None


def test_an_input_is_named_by_its_path_from_the_child(tmp_path):
    link = DATA.as_input("data", tmp_path / "packed" / "train", tmp_path / "scores")
    assert link["path"] == "../packed/train"


def test_a_difference_names_every_leaf_that_changed():
    old = {"config": {"epochs": 60, "seed": 0}, "inputs": {"data": "a"}}
    new = {"config": {"epochs": 30, "seed": 0, "lr": 0.1}, "inputs": {"data": "b"}}
    assert readable_difference(old, new) == (
        "config.epochs: 60 there, 30 here; config.lr: absent there, 0.1 here; "
        "inputs.data: a there, b here"
    )


def test_tuples_equal_the_lists_that_json_makes_of_them():
    here = {"config": {"sizes": ((64, 1), (32, 2))}}
    assert readable_difference({"config": {"sizes": [[64, 1], [32, 2]]}}, here) == ""


def test_versions_name_what_can_change_a_number():
    known = versions()
    assert known["coreset"] != "absent"
    assert {"python", "numpy", "torch", "pillow"} <= known.keys()
