"""Features as a user sees them: the numbers, who finds them again, what is refused."""

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import FEATURES_NAME, read_features
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.engine.models.backbones import load_backbone
from coreset.engine.models.features import cache_directory
from coreset.kernels.augment import normalised
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.manifest import Manifest

BACKBONE = ("--backbone", "tf_efficientnet_lite0", "--size", 64)
LINEAR = ("--proxy", "linear")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Start from an empty cache: these tests look at what enters it."""
    monkeypatch.setenv("CORESET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def embedded(packed, tmp_path, done):
    done("embed", packed, tmp_path / "FEATURES", *BACKBONE)
    return tmp_path / "FEATURES"


def cached_names():
    return [path.name for path in cache_directory().iterdir() if not path.is_symlink()]


def test_the_row_of_an_id_is_what_the_backbone_says_of_that_image_alone(packed, embedded):
    dataset, device = Dataset.open(packed), torch.device("cpu")
    backbone = load_backbone("tf_efficientnet_lite0", None, device)
    features = read_features(embedded / FEATURES_NAME)
    assert (features.shape, features.dtype) == ((60, 1280), np.float16)
    chosen = np.array([41, 3, 59, 0])
    with ImageStream(dataset, Geometry(64), ids=chosen) as source, torch.inference_mode():
        for sample, part in zip(chosen, source.epoch(BatchOrder(batch=1)), strict=True):
            images = normalised(part.images, backbone.mean, backbone.std)
            alone = backbone.features(images)[0].numpy()
            ranked = features.astype(np.float64) @ alone
            ranked /= np.linalg.norm(features.astype(np.float64), axis=1)
            assert ranked.argmax() == sample
            # bfloat16 keeps three digits, of which a batch may round the last the other way
            assert ranked[sample] / np.linalg.norm(alone) == pytest.approx(1, abs=1e-3)


def test_the_next_command_that_it_names_finds_the_features_again(packed, embedded, tmp_path, done):
    *_, following = done("embed", packed, embedded, *BACKBONE)
    words = following.removeprefix("next: coreset ").replace("SCORES", str(tmp_path / "S"))
    done(*words.split(), "--epochs", 1)
    assert cached_names() == []
    recorded = Provenance.read(tmp_path / "S").inputs[1]
    assert recorded["digest"] == Provenance.read(embedded).digest


def test_provenance_and_ledger_account_for_the_features(packed, embedded):
    provenance = Provenance.read(embedded)
    assert (provenance.kind, provenance.inputs) == ("features", ())
    assert provenance.binds == {"content": Manifest.read(packed).content, "width": 1280}
    (line,) = read_ledger(embedded)
    assert (line["stage"], line["images"], line["device"]) == ("embed", 60, "cpu")
    assert line["bytes_read"] == int(Dataset.open(packed).ints("bytes").sum())


def test_a_damaged_store_is_named_and_nothing_is_scored_on_it(packed, embedded, tmp_path, coreset):
    chunk = next(path for path in embedded.rglob("c/*/*"))
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    told = coreset("score", packed, tmp_path / "S", "--proxy", "linear", *BACKBONE, "--epochs", 1)
    assert (told.code, told.out, told.err.count("\n")) == (3, "", 1)
    assert "features.zarr cannot be read" in told.err
    assert not (tmp_path / "S").exists()


@pytest.fixture
def _no_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("_no_downloads")
def test_weights_that_are_not_on_the_machine_exit_4_with_the_remedy(
    packed, tmp_path, refused, monkeypatch
):
    named = ("--backbone", "resnet18")
    said = refused(tmp_path, "embed", packed, tmp_path / "F", *named, code=4)
    assert said.startswith("backbone resnet18: no weights on this machine (nothing is downloaded)")
    assert "--backbone tf_efficientnet_lite0" in said
    monkeypatch.setattr("coreset.engine.models.backbones.OFFLINE_PACKAGE", "no-such-package")
    for verb in (("embed", packed, tmp_path / "F"), ("score", packed, tmp_path / "S", *LINEAR)):
        said = refused(tmp_path, *verb, code=4)
        assert said.startswith("backbone auto: no weights on this machine (nothing is downloaded)")
        assert "name a file with --weights, or install the package no-such-package" in said


@pytest.mark.usefixtures("_no_downloads")
def test_the_default_backbone_is_one_whose_weights_are_here_and_said(
    packed, random_set, val, tmp_path, done
):
    size = ("--size", 32)
    _, said, made, following = done("embed", packed, tmp_path / "F", *size)
    assert said.startswith("backbone tf_efficientnet_lite0, weights /")
    assert said.endswith("(none of resnet18 on this machine; a file of them goes to --weights)")
    assert "images (tf_efficientnet_lite0) made in" in made
    assert "--proxy linear --backbone tf_efficientnet_lite0" in following
    scores = tmp_path / "SCORES"
    lines = done("score", packed, scores, *LINEAR, "--epochs", 1, *size)
    assert lines[0] == said
    provenance = Provenance.read(scores)
    assert provenance.config["backbone"] == "tf_efficientnet_lite0"
    inputs = {one["role"]: one["digest"] for one in provenance.inputs}
    assert inputs["features"] == Provenance.read(tmp_path / "F").digest  # found again
    lines = done("measure", random_set, val, tmp_path / "RESULTS", *size)
    assert lines[0] == said
    assert "IPC 2, tf_efficientnet_lite0: " in lines[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", 7), "size must be at least 8, got 7"),
        (("--batch", 0), "batch must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(packed, tmp_path, refused, options, message):
    assert message in refused(tmp_path, "embed", packed, tmp_path / "F", *BACKBONE, *options)
