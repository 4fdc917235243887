"""The names that ``import coreset`` offers, on the artifacts that the verbs make."""

import shutil
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import coreset
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.reader import ShardReader
from coreset.engine.scoring.score_table import ScoreTable
from coreset.shards.errors import ManifestError, UsageError
from coreset.shards.format.dataset import Dataset

NO_TORCH = {"torch", "webdataset", "pandas"}


def modules_after(code):
    program = f"import sys, coreset; {code}; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_names_are_imported_when_they_are_asked_for():
    assert not modules_after("dir(coreset)") & {*NO_TORCH, "numpy"}
    assert not modules_after("coreset.scores, coreset.select, coreset.open_set") & NO_TORCH
    assert set(coreset.__all__) <= set(dir(coreset))
    assert all(callable(getattr(coreset, name)) for name in coreset.__all__)
    with pytest.raises(AttributeError, match="no attribute 'loaders'"):
        _ = coreset.loaders


def test_a_loader_reads_the_images_of_a_coreset_directory(packed, ccs_set, tmp_path):
    chosen = np.load(ccs_set / "ids.npy")
    options: dict[str, Any] = {"batch": 4, "size": 16, "resize": 16, "device": "cpu", "workers": 1}
    with (
        coreset.loader(ccs_set, **options) as loader,
        coreset.loader(str(packed), ids=chosen, **options) as expected,
        coreset.loader(coreset.open_set(ccs_set), **options) as of_open_set,
    ):
        assert loader.classes == Dataset.open(packed).classes
        assert loader.state_dict() == expected.state_dict() == of_open_set.state_dict()
        for (images, labels, ids), batch in zip(loader, expected, strict=True):
            assert torch.equal(images, batch.images)
            assert torch.equal(labels, batch.labels)
            assert torch.equal(ids, batch.ids)
            assert set(ids.tolist()) <= set(chosen.tolist())
    with pytest.raises(UsageError, match="a set that has its own"):
        coreset.loader(ccs_set, ids=[1])
    moved = shutil.copytree(packed, tmp_path / "MOVED")
    data = coreset.as_dataset(coreset.open_set(ccs_set, data=moved))
    assert (data.dataset.path, len(data)) == (moved, 6)


def resized(image):
    """Squash a ``PIL.Image`` to 16 pixels; a function that workers can be given."""
    return np.array(image.resize((16, 16), 2))


@pytest.mark.parametrize("directory", ["packed", "ccs_set"])
def test_a_map_style_data_set_has_the_pixels_of_pillow(request, packed, directory):
    path, dataset = request.getfixturevalue(directory), Dataset.open(packed)
    ids = np.load(path / "ids.npy") if directory == "ccs_set" else np.arange(len(dataset))
    data, squashed = coreset.as_dataset(path), coreset.as_dataset(path, transform=resized)
    assert (len(data), data.classes) == (ids.size, dataset.classes)
    np.testing.assert_array_equal(data.ids, ids)
    with ShardReader(dataset) as reader:
        for position, sample in enumerate(ids.tolist()):
            image, label = data[position]
            assert (image.dtype, label) == (torch.uint8, dataset.labels[sample])
            height, width = (dataset.ints(side)[sample] for side in ("height", "width"))
            assert image.shape == (3, height, width)
            expected = decode_with_pillow(reader.read_one(sample), Geometry(16))
            np.testing.assert_array_equal(squashed[position][0], expected)
    with pytest.raises(IndexError):
        _ = data[ids.size]


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_read_a_map_style_data_set(packed, workers):
    data = coreset.as_dataset(packed, transform=resized)
    expected = np.stack([data[i][0] for i in range(len(data))])  # its files are open here
    fork = "fork" if workers else None
    batches = DataLoader(data, batch_size=8, num_workers=workers, multiprocessing_context=fork)
    images, labels = zip(*batches, strict=True)
    np.testing.assert_array_equal(torch.cat(images), expected)
    np.testing.assert_array_equal(torch.cat(labels), data.labels)
    pickler: Any = ForkingPickler
    image, label = pickler.loads(pickler.dumps(data))[5]
    assert label == data.labels[5]
    np.testing.assert_array_equal(image, expected[5])


def test_a_map_style_data_set_names_an_image_that_cannot_be_decoded(damaged):
    data = coreset.as_dataset(damaged)
    with pytest.raises(ManifestError, match=r"shard-\d+\.tar:.* cannot be decoded .*`coreset ver"):
        _ = data[20]


def test_scores_are_columns_in_the_order_of_sample_ids(scored, packed):
    scores, dataset = coreset.scores(scored), Dataset.open(packed)
    expected, frame = ScoreTable.open(scored).columns, scores.to_pandas()
    assert list(scores) == list(expected)
    assert scores["aum"].shape == (60,)
    np.testing.assert_array_equal(scores["aum"], expected["aum"])
    assert (frame.index.name, list(frame.index)) == ("id", list(range(60)))
    assert list(frame.columns) == ["key", "label", *expected]
    assert frame["key"].tolist() == list(dataset.keys)
    np.testing.assert_array_equal(frame["label"], dataset.labels)
    np.testing.assert_array_equal(frame["aum"], scores["aum"])


def test_select_chooses_what_the_verb_chooses(packed, scored, random_set, ccs_set):
    chosen = coreset.select(scored, 2, misratio=0.1)
    assert chosen.dtype == np.int64
    np.testing.assert_array_equal(chosen, np.load(ccs_set / "ids.npy"))
    np.testing.assert_array_equal(coreset.select(packed, 2), np.load(random_set / "ids.npy"))
    assert coreset.select(str(packed), 2, seed=1).tolist() != coreset.select(packed, 2).tolist()
    with pytest.raises(UsageError, match="ipc must be at most the size of every class"):
        coreset.select(packed, 21)
    with pytest.raises(UsageError, match="method ccs needs scores"):
        coreset.select(packed, 2, method="ccs")
