"""What an artifact knows about its making, and how two makings are told apart."""

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


def child_of(kind, digest, tmp_path, *parents):
    links = [
        parent.as_input(parent.kind, tmp_path / parent.kind, tmp_path / kind) for parent in parents
    ]
    return Provenance(kind=kind, stage="make", config={}, inputs=tuple(links), digest=digest)


def test_what_is_written_is_read_back_and_names_no_absolute_path(tmp_path):
    scores = child_of("scores", "d2", tmp_path, DATA)
    written = json_bytes(scores.document())
    (tmp_path / PROVENANCE_NAME).write_bytes(written)
    read = Provenance.read(tmp_path)
    assert (json_bytes(read.document()), read.config_digest) == (written, scores.config_digest)
    assert str(tmp_path).encode() not in written


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
def test_the_digest_covers_stage_configuration_and_inputs_alone(change, same):
    assert (replace(DATA, **change).config_digest == DATA.config_digest) is same


def test_a_folder_without_provenance_and_a_missing_one_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match=r"has no provenance\.json; name the output"):
        Provenance.read(tmp_path)
    with pytest.raises(UsageError, match="does not exist; name the output"):
        Provenance.read(tmp_path / "nothing")


NEWER = json_bytes(DATA.document() | {"format_version": FORMAT_VERSION + 1})


@pytest.mark.parametrize(
    ("content", "fact"), [(b"{", "cannot be read"), (NEWER, "is of another version")]
)
def test_damaged_provenance_or_that_of_another_version_is_refused(tmp_path, content, fact):
    (tmp_path / PROVENANCE_NAME).write_bytes(content)
    with pytest.raises(StoreError, match=f"{fact}.*make the artifact again"):
        Provenance.read(tmp_path)


def test_the_lineage_goes_through_all_inputs_nearest_first(tmp_path):
    scores = child_of("scores", "d2", tmp_path, DATA)
    other = replace(DATA, kind="other", digest="d0")
    chosen = child_of("set", "d3", tmp_path, scores, other)
    lineage = [(path.name, entry["digest"]) for path, entry in chosen.lineage(tmp_path / "set")]
    assert lineage == [("scores", "d2"), ("other", "d0"), ("dataset", "d1")]
    assert (chosen.ancestor("dataset") or {})["binds"] == DATA.binds
    assert chosen.ancestor("features") is None


def test_a_difference_names_every_leaf_that_changed():
    old = {"config": {"epochs": 60, "seed": 0}, "inputs": {"data": "a"}}
    new = {"config": {"epochs": 30, "seed": 0, "lr": 0.1}, "inputs": {"data": "b"}}
    assert readable_difference(old, new) == (
        "config.epochs: 60 there, 30 here; config.lr: absent there, 0.1 here; "
        "inputs.data: a there, b here"
    )
    tuples = {"config": {"sizes": ((64, 1), (32, 2))}}
    assert readable_difference({"config": {"sizes": [[64, 1], [32, 2]]}}, tuples) == ""


def test_versions_name_what_can_change_a_number():
    known = versions()
    assert known["coreset"] != "absent"
    assert {"python", "numpy", "torch", "pillow"} <= known.keys()
