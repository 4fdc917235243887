"""Condensed sets: what opens, what lists of others make, and what is refused with a remedy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tyro

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.condensed_set import (
    IDS_NAME,
    SET_NAME,
    SetInfo,
    open_set,
    require_same_classes,
)
from coreset.engine.condensed.importers import IMPORTERS, Importer
from coreset.engine.stages.export import Export
from coreset.engine.stages.ingest import Ingest
from coreset.engine.stages.pack import Pack
from coreset.engine.stages.selection import Select
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.dataset import Dataset, Manifest, subset_content


def ingest(listed, condensed, data, *options):
    """Run the command line's parser and the stage; returns the lines."""
    words = [str(listed), str(condensed), "--data", str(data), *options]
    return tyro.cli(Ingest, args=words).run().lines


def write_list(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def ids_of_classes(data, counts):
    """The first samples of each class, as many as ``counts`` says."""
    labels = Dataset.open(data).labels
    return [
        int(sample)
        for label, count in enumerate(counts)
        for sample in np.flatnonzero(labels == label)[:count]
    ]


@pytest.mark.parametrize(
    ("to", "name"),
    [("ids", "ids.txt"), ("ids", "ids.npy"), ("paths", "paths.txt"), ("paths", "paths.csv")],
)
def test_a_coreset_comes_back_from_its_exported_list(packed, random_set, tmp_path, to, name):
    Export(source=random_set, out=tmp_path / name, to=to).run()
    lines = ingest(tmp_path / name, tmp_path / "SET", packed)
    assert lines == (
        f"6 of 60 images (listed, 2 a class) taken: {tmp_path / 'SET'}",
        f"next: coreset train {tmp_path / 'SET'} VAL RESULTS",
    )
    there, here = random_set / "ids.npy", tmp_path / "SET" / "ids.npy"
    assert here.read_bytes() == there.read_bytes()
    assert open_set(tmp_path / "SET").labels.tolist() == open_set(random_set).labels.tolist()


def test_sample_keys_find_the_images_in_another_packing(random_set, photos, tmp_path):
    before = open_set(random_set)
    keys = [before.dataset.keys[sample] for sample in before.ids]
    Pack(src=photos, data=tmp_path / "SORTED", order="source").run()
    ingest(write_list(tmp_path / "keys.txt", keys), tmp_path / "SET", tmp_path / "SORTED")
    condensed = open_set(tmp_path / "SET")
    assert sorted(condensed.dataset.keys[sample] for sample in condensed.ids) == sorted(keys)
    assert condensed.ids.tolist() != before.ids.tolist()


def test_the_files_of_a_folder_of_others_make_a_coreset(packed, random_set, tmp_path):
    """The list that ``find FOLDER -type f`` prints of an exported folder."""
    Export(source=random_set, out=tmp_path / "FOLDER", to="imagefolder").run()
    found = write_list(tmp_path / "found.txt", (tmp_path / "FOLDER").glob("*/*"))
    ingest(found, tmp_path / "SET", packed)
    assert open_set(tmp_path / "SET").ids.tolist() == open_set(random_set).ids.tolist()


def test_the_set_tells_its_name_its_ids_and_its_source(packed, tmp_path):
    listed = write_list(tmp_path / "ids.txt", reversed(ids_of_classes(packed, (3, 3, 3))))
    ingest(listed, tmp_path / "SET", packed, "--method", "el2n-top", "--seed", "4")
    info, manifest = SetInfo.read(tmp_path / "SET"), Manifest.read(packed)
    assert (info.kind, info.method, info.seed) == ("coreset", "el2n-top", 4)
    assert (info.source_identity, info.source_content) == (manifest.identity, manifest.content)
    assert (info.ipc, info.per_class) == (3, (3, 3, 3))
    assert len(info.parameters["ids"]) == 12
    ids = np.load(tmp_path / "SET" / "ids.npy", allow_pickle=False)
    assert (ids.dtype, ids.tolist()) == (np.int64, sorted(ids_of_classes(packed, (3, 3, 3))))
    provenance = Provenance.read(tmp_path / "SET")
    assert provenance.binds == {"identity": manifest.identity, "content": manifest.content}
    assert [one["kind"] for _, one in provenance.lineage()] == ["dataset"]
    assert [line["stage"] for line in read_ledger(tmp_path / "SET")] == ["pack", "ingest"]


def test_unequal_classes_are_refused_unless_they_are_allowed(packed, tmp_path):
    listed = write_list(tmp_path / "ids.txt", ids_of_classes(packed, (3, 0, 2)))
    message = r"ids\.txt, got 0 of class n02102040 and 3 of n01440764; mend the list"
    with pytest.raises(UsageError, match=message):
        ingest(listed, tmp_path / "SET", packed)
    assert not (tmp_path / "SET").exists()
    lines = ingest(listed, tmp_path / "SET", packed, "--allow-short")
    assert lines[0].startswith("5 of 60 images (listed, 0 to 3 a class) taken")
    info = SetInfo.read(tmp_path / "SET")
    assert (info.ipc, info.per_class, info.parameters["allow_short"]) == (3, (3, 0, 2), True)


def test_the_same_samples_are_the_same_set_whatever_the_list_looks_like(packed, tmp_path):
    ids = ids_of_classes(packed, (1, 1, 1))
    ingest(write_list(tmp_path / "ids.txt", ids), tmp_path / "SET", packed)
    np.save(tmp_path / "ids.npy", ids[::-1])
    assert "are there already" in ingest(tmp_path / "ids.npy", tmp_path / "SET", packed)[0]
    others = write_list(tmp_path / "others.txt", ids_of_classes(packed, (2, 2, 2)))
    with pytest.raises(UsageError, match=r"was made by another configuration \(config\.ids: "):
        ingest(others, tmp_path / "SET", packed)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["n01440764/photo_001", "n01440764/photo_999"], r"line 2: 'n01440764/photo_999' is no id"),
        (["0", "60"], r"line 2: id must be in \[0, 60\), got 60"),
        (["7", "8", "7"], r"line 3 names sample 7 again \('7', first in line 1\)"),
        ([], "names no samples"),
    ],
)
def test_a_bad_list_makes_nothing(packed, tmp_path, lines, message):
    listed = write_list(tmp_path / "list.txt", lines)
    with pytest.raises(UsageError, match=message):
        ingest(listed, tmp_path / "SET", packed)
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]


@pytest.mark.parametrize("method", ["", "a b", "<b>", "-x"])
def test_a_method_is_a_plain_name(packed, tmp_path, method):
    with pytest.raises(UsageError, match="method must be letters"):
        Ingest(src=tmp_path / "x", condensed=tmp_path / "SET", data=packed, method=method)


def test_an_importer_is_registered_in_one_place(packed, tmp_path, monkeypatch):
    toy = Importer(
        accepts=lambda path: path.suffix == ".toy",
        read=lambda path, _: np.array(path.read_text().split("+"), np.int64),
    )
    monkeypatch.setitem(IMPORTERS, "toy", toy)
    ids = ids_of_classes(packed, (1, 1, 1))
    (tmp_path / "chosen.toy").write_text("+".join(map(str, sorted(ids))))
    ingest(tmp_path / "chosen.toy", tmp_path / "SET", packed)
    assert open_set(tmp_path / "SET").ids.tolist() == sorted(ids)
    ingest(write_list(tmp_path / "ids.txt", ids), tmp_path / "LISTED", packed)


# sets as files


@pytest.fixture
def chosen(packed, tmp_path):
    """A coreset that a test may damage."""
    Select(source=packed, condensed=tmp_path / "SET", ipc=2).run()
    return tmp_path / "SET"


def test_a_set_that_cannot_be_read_or_is_of_another_version_is_an_error(chosen):
    document = json.loads((chosen / SET_NAME).read_text()) | {"format_version": 2}
    texts = ["", "[]", "{", '{"per_class": []}', '{"kind": "coreset"}', json.dumps(document)]
    facts = [r"set\.json cannot be read"] * 5 + ["version 2; make the set again"]
    for text, fact in zip(texts, facts, strict=True):
        (chosen / SET_NAME).write_text(text)
        with pytest.raises(StoreError, match=fact):
            SetInfo.read(chosen)


def test_a_coreset_opens_with_its_images(chosen, packed):
    condensed, dataset = open_set(chosen), Dataset.open(packed)
    assert condensed.info.kind == "coreset"
    assert np.bincount(condensed.labels).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(condensed.labels, dataset.labels[condensed.ids])
    sizes = dataset.samples["bytes"].to_pylist()
    assert condensed.image_bytes == sum(sizes[i] for i in condensed.ids)
    forth, back = (subset_content(dataset, condensed.ids[::step]) for step in (1, -1))
    assert forth != back
    (chosen / "README.txt").write_text("mailed by a friend")
    assert open_set(chosen).ids.tolist() == condensed.ids.tolist()


def test_a_changed_id_is_found_even_within_its_class_and_so_are_lost_ids(chosen, packed):
    ids = np.load(chosen / IDS_NAME)
    labels = Dataset.open(packed).labels
    ids[0] = next(i for i in np.flatnonzero(labels == labels[ids[0]]) if i not in ids)
    np.save(chosen / IDS_NAME, np.sort(ids))
    with pytest.raises(StoreError, match=r"ids\.npy or set\.json is not the file that was made"):
        open_set(chosen)
    (chosen / IDS_NAME).unlink()
    with pytest.raises(StoreError, match="make the set again"):
        open_set(chosen)


def test_the_validation_set_must_have_the_same_classes_in_the_same_order(random_set):
    condensed = open_set(random_set)
    require_same_classes(condensed, condensed.dataset)
    manifest = replace(condensed.dataset.manifest, classes=condensed.dataset.classes[::-1])
    with pytest.raises(UsageError, match="the same classes in another order"):
        require_same_classes(condensed, replace(condensed.dataset, manifest=manifest))
