"""Condensed sets: what opens, and what is refused with a remedy."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from coreset.engine.artifacts.provenance import open_source
from coreset.engine.condensed.condensed_set import (
    IDS_NAME,
    SET_NAME,
    SetInfo,
    open_set,
    require_same_classes,
)
from coreset.engine.stages.pack import Pack
from coreset.engine.stages.sets import Select
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.dataset import Dataset, subset_content

INFO = SetInfo(
    kind="coreset",
    method="ccs-aum",
    parameters={"ipc": 2, "misratio": 0.3},
    seed=4,
    source_name="photos",
    source_identity="i" * 64,
    source_content="c" * 64,
    n_classes=3,
    ipc=2,
    per_class=(2, 2, 2),
)


@pytest.fixture
def data(packed, tmp_path):
    """A data set that a test may move or lose."""
    return shutil.copytree(packed, tmp_path / "DATA")


@pytest.fixture
def coreset(data, tmp_path):
    Select(source=data, condensed=tmp_path / "SET", ipc=2).run()
    return tmp_path / "SET"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (content, r"set\.json cannot be read")
        for content in ("", "[]", "{", '{"per_class": []}', '{"kind": "coreset"}')
    ]
    + [(json.dumps(asdict(INFO) | {"format_version": 2}), "version 2; make the set again")],
)
def test_a_set_json_that_cannot_be_read_is_an_error(tmp_path, content, message):
    (tmp_path / SET_NAME).write_text(content)
    with pytest.raises(StoreError, match=message):
        SetInfo.read(tmp_path)


def test_what_is_no_set_says_how_to_make_one(tmp_path, packed):
    with pytest.raises(UsageError, match=r"does not exist; make one with `coreset select`"):
        SetInfo.read(tmp_path / "none")
    with pytest.raises(UsageError, match=r"is not a condensed set \(no set\.json\)"):
        open_set(packed)


def test_a_coreset_opens_with_its_images(coreset, packed):
    condensed, dataset = open_set(coreset), Dataset.open(packed)
    assert condensed.info.kind == "coreset"
    assert np.bincount(condensed.labels).tolist() == [2, 2, 2]
    np.testing.assert_array_equal(condensed.labels, dataset.labels[condensed.ids])
    sizes = dataset.samples["bytes"].to_pylist()
    assert condensed.image_bytes == sum(sizes[i] for i in condensed.ids)
    assert condensed.content == subset_content(dataset, condensed.ids)
    assert condensed.content != subset_content(dataset, condensed.ids[::-1])
    (coreset / "README.txt").write_text("mailed by a friend")
    assert open_set(coreset).content == condensed.content


def test_a_moved_data_set_must_be_named(coreset, data, tmp_path):
    data.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"is not at .*DATA any more; name its place with --data"):
        open_set(coreset)
    assert len(open_set(coreset, data=tmp_path / "moved").ids) == 6
    with pytest.raises(UsageError, match=r"is not at .*nowhere any more"):
        open_source(coreset, tmp_path / "nowhere")


def test_another_data_set_in_its_place_is_refused(coreset, data, tmp_path, make_photos):
    shutil.rmtree(data)
    Pack(src=make_photos(tmp_path / "other", per_class=4), data=data).run()
    with pytest.raises(UsageError, match="another data set; name the right one with --data"):
        open_set(coreset)


def test_a_changed_id_is_found_even_within_its_class_and_so_are_lost_ids(coreset, packed):
    ids = np.load(coreset / IDS_NAME)
    labels = Dataset.open(packed).labels
    ids[0] = next(i for i in np.flatnonzero(labels == labels[ids[0]]) if i not in ids)
    np.save(coreset / IDS_NAME, np.sort(ids))
    with pytest.raises(StoreError, match=r"ids\.npy or set\.json is not the file that was made"):
        open_set(coreset)
    (coreset / IDS_NAME).unlink()
    with pytest.raises(StoreError, match="make the set again"):
        open_set(coreset)


def test_a_distilled_set_opens_without_its_source(tmp_path, make_photos):
    Pack(src=make_photos(tmp_path / "images", per_class=2), data=tmp_path / "SET").run()
    replace(INFO, kind="distilled", method="kmeans").write(tmp_path / "SET")
    condensed = open_set(tmp_path / "SET")
    assert condensed.info.kind == "distilled"
    assert condensed.ids.tolist() == list(range(6))
    assert np.bincount(condensed.labels).tolist() == [2, 2, 2]
    assert condensed.image_bytes == sum(condensed.dataset.samples["bytes"].to_pylist())
    assert condensed.content == condensed.dataset.manifest.content


def test_the_validation_set_must_have_the_same_classes(coreset, tmp_path, make_photos):
    condensed = open_set(coreset)
    require_same_classes(condensed, condensed.dataset)
    folder = make_photos(tmp_path / "val", per_class=2)
    (folder / "n02979186").rename(folder / "n99999999")
    Pack(src=folder, data=tmp_path / "VAL").run()
    fact = "has 3 classes and .*VAL has 3: n02979186 is in one of them only"
    with pytest.raises(UsageError, match=fact):
        require_same_classes(condensed, Dataset.open(tmp_path / "VAL"))
    manifest = replace(condensed.dataset.manifest, classes=condensed.dataset.classes[::-1])
    with pytest.raises(UsageError, match="the same classes in another order"):
        require_same_classes(condensed, replace(condensed.dataset, manifest=manifest))
