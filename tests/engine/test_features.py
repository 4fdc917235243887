"""Features: made once per content, backbone, weights and size, and continued where they stopped."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import FEATURES_NAME, read_features
from coreset.engine.artifacts.writer import output_digest
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.engine.models import backbones
from coreset.engine.models.backbones import OFFLINE_BACKBONE, load_backbone
from coreset.engine.models.features import (
    FeatureSpec,
    cached_features,
    embed,
    features_for,
    remember,
)
from coreset.shards.errors import ManifestError, StoreError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import temporary_name

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, ROWS_PER_CHUNK = 1280, 16
SPEC = FeatureSpec(backbone=OFFLINE_BACKBONE, size=32, batch=16, device="cpu", decoder="turbo")
LINEAR = ("--proxy", "linear")
SOME = np.array([40, 3, 17])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CORESET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "coreset.engine.artifacts.store.FEATURE_CHUNK_BYTES", ROWS_PER_CHUNK * WIDTH * 2
    )
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def dataset(packed):
    return Dataset.open(packed)


@pytest.fixture(scope="module")
def expected(dataset):
    """Features by the network itself, in float32."""
    cpu = torch.device("cpu")
    backbone = load_backbone(OFFLINE_BACKBONE, None, cpu)
    with ImageStream(dataset, Geometry(32, None)) as source:
        images = torch.cat([part.images for part in source.epoch(BatchOrder(batch=60))])
    with torch.inference_mode():
        return backbone.network((images.float() / 255 - 0.5) / 0.5).float().numpy()


def random_weights(name):
    import timm

    return timm.create_model(name, pretrained=False).state_dict()


def entries(cache):
    return sorted(path.name for path in cache.glob("features-*"))


def assert_alike(features, expected):
    """The same up to float16 and the order of sums; bfloat16 arithmetic would be at 0.97."""
    a, b = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features.astype(float), expected)
    )
    assert (a * b).sum(axis=1).min() > 0.99999
    assert ((a @ b.T).argmax(axis=1) == np.arange(len(a))).all()


# what is computed


def test_features_are_those_of_the_backbone_on_squashed_images(dataset, expected, cache):
    features = features_for(dataset, SPEC)
    assert features.dtype == np.float16
    assert features.shape == (60, WIDTH)
    assert_alike(features, expected)
    assert len(entries(cache)) == 1


def test_an_artifact_of_some_samples_says_what_it_holds_and_what_it_cost(
    dataset, expected, tmp_path
):
    work = embed(dataset, SPEC, tmp_path / "F", SOME)
    assert_alike(read_features(tmp_path / "F" / FEATURES_NAME), expected[SOME])
    provenance = Provenance.read(tmp_path / "F")
    assert (provenance.binds["width"], provenance.config["backbone"]) == (WIDTH, OFFLINE_BACKBONE)
    assert set(provenance.config) == {"backbone", "weights", "size", "content"}
    assert provenance.digest == output_digest(tmp_path / "F")
    (line,) = read_ledger(tmp_path / "F")
    assert (line["stage"], line["images"]) == ("embed", 3)
    assert line["bytes_read"] == dataset.ints("bytes")[SOME].sum()
    assert (work.done, embed(dataset, SPEC, tmp_path / "F", SOME).done) == (False, True)


def test_features_of_a_backbone_whose_row_says_so_are_not_rounded(
    dataset, expected, cache, monkeypatch
):
    rounded = features_for(dataset, SPEC)
    row = backbones._recipe(OFFLINE_BACKBONE)._replace(dtype="float32")
    monkeypatch.setattr(backbones, "_recipe", lambda _: row)
    features = features_for(dataset, SPEC)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(features.astype(np.float16), rounded)
    assert (features != rounded)[rounded > 0].mean() > 0.9
    assert len(entries(cache)) == 2, "what was rounded before is not taken"


# the cache


def test_features_are_made_once_for_images_whatever_their_labels(dataset, cache):
    class Relabelled(Dataset):
        @property
        def labels(self):
            return (super().labels + 1) % 3

    first = cached_features(dataset, SPEC, SOME)
    before = (first / "features.zarr/zarr.json").stat().st_mtime_ns
    relabelled = Relabelled(dataset.path, dataset.manifest)
    assert cached_features(relabelled, replace(SPEC, batch=7, workers=1), SOME) == first
    assert (first / "features.zarr/zarr.json").stat().st_mtime_ns == before
    assert len(read_ledger(first)) == len(entries(cache)) == 1


def test_other_images_sizes_weights_and_backbones_are_other_features(dataset, cache, tmp_path):
    state = random_weights("mobilenetv3_small_050")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file, factor in zip(files, (1.0, 0.9), strict=True):
        save_file({name: tensor * factor for name, tensor in state.items()}, file)
    small = replace(SPEC, backbone="mobilenetv3_small_050", weights=files[0])
    places = [
        cached_features(dataset, small, SOME),
        cached_features(dataset, small, SOME[::-1]),
        cached_features(dataset, replace(small, size=40), SOME),
        cached_features(dataset, replace(small, weights=files[1]), SOME),
        cached_features(dataset, replace(small, backbone="mobilenetv3_small_050.lamb_in1k"), SOME),
    ]
    assert len(set(places)) == len(entries(cache)) == 5
    shutil.copy(files[0], tmp_path / "c.safetensors")
    again = replace(small, weights=tmp_path / "c.safetensors")
    assert cached_features(dataset, again, SOME) == places[0], "the bytes count, not their name"


@pytest.fixture
def remembered(dataset, tmp_path):
    embed(dataset, SPEC, tmp_path / "F")
    remember(tmp_path / "F", dataset, SPEC)
    return tmp_path / "F"


def test_an_embedded_data_set_is_found_through_the_cache(dataset, remembered, cache):
    remember(remembered, dataset, SPEC)
    assert cached_features(dataset, SPEC).resolve() == remembered.resolve()
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("remade", [False, True], ids=["removed", "made again of other images"])
def test_a_link_to_what_is_there_no_longer_is_replaced(
    dataset, remembered, tmp_path, expected, remade
):
    shutil.rmtree(remembered)
    if remade:
        embed(dataset, SPEC, remembered, SOME)
    assert_alike(features_for(dataset, SPEC), expected)
    assert remembered.exists() == remade, "nothing appears where the user removed it"
    embed(dataset, SPEC, tmp_path / "G")
    remember(tmp_path / "G", dataset, SPEC)
    (entry,) = (tmp_path / "cache").glob("features-*")
    assert not entry.is_symlink(), "what is in the cache stays"


def test_damaged_features_are_refused(dataset):
    place = cached_features(dataset, SPEC, SOME) / FEATURES_NAME
    metadata = place / "features/zarr.json"
    metadata.write_text(re.sub(r"\b3(,\s+1280)", r"2\1", metadata.read_text()))
    with pytest.raises(StoreError, match="has 2 rows for 3 images; remove it and make"):
        features_for(dataset, SPEC, SOME)


# interruptions


def test_an_interrupted_run_goes_on_at_its_last_whole_chunk(dataset, damaged, tmp_path):
    with pytest.raises(ManifestError, match="cannot be decoded"):
        embed(Dataset.open(damaged), SPEC, tmp_path / "F")
    assert not (tmp_path / "F").exists()
    # What a kill leaves besides: zarr's temporary file and a chunk that nobody vouches for.
    store = temporary_name(tmp_path / "F") / FEATURES_NAME
    chunk = store / "features/c/1"
    chunk.mkdir(parents=True, exist_ok=True)
    (chunk / "0.0123abcd.partial").write_bytes(b"half")
    (chunk / "0").write_bytes(b"half")

    work = embed(dataset, SPEC, tmp_path / "F")
    assert work.resumed
    assert work.meter.images == 60 - ROWS_PER_CHUNK
    embed(dataset, SPEC, tmp_path / "G")
    assert output_digest(tmp_path / "F") == output_digest(tmp_path / "G")
    assert [line["interrupted"] for line in read_ledger(tmp_path / "F")] == [True, False]


def test_a_run_killed_before_its_first_array_begins_anew(dataset, damaged, tmp_path):
    ids = np.array([20, 3, 17])
    with pytest.raises(ManifestError):
        embed(Dataset.open(damaged), SPEC, tmp_path / "F", ids)
    shutil.rmtree(temporary_name(tmp_path / "F") / FEATURES_NAME / "features")
    assert embed(dataset, SPEC, tmp_path / "F", ids).meter.images == 3


@pytest.mark.parametrize(
    ("backbone", "bias", "message"),
    [
        (
            "mobilenetv3_small_050",
            1e6,
            "of sample 40 by backbone .* are not finite in float16; use",
        ),
        ("vit_tiny_patch16_224", 0, "vit_tiny_patch16_224 does not take --size 32"),
    ],
)
def test_features_that_a_backbone_cannot_make_are_refused(
    dataset, tmp_path, backbone, bias, message
):
    state = random_weights(backbone)
    if bias:
        state["conv_head.bias"].fill_(bias)
    save_file(state, tmp_path / "w.safetensors")
    spec = replace(SPEC, backbone=backbone, weights=tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=message):
        embed(dataset, spec, tmp_path / "F", SOME)
    assert not (tmp_path / "F").exists()


# the verb


def test_the_next_command_that_embed_names_finds_the_features_again(packed, tmp_path, cache, done):
    named = ("--backbone", OFFLINE_BACKBONE, "--size", 32)
    *_, following = done("embed", packed, tmp_path / "F", *named)
    words = following.removeprefix("next: coreset ").replace("SCORES", str(tmp_path / "S"))
    done(*words.split(), "--epochs", 1)
    assert all(path.is_symlink() for path in cache.iterdir())
    recorded = Provenance.read(tmp_path / "S").inputs[1]
    assert recorded["digest"] == Provenance.read(tmp_path / "F").digest


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
    assert "IPC 2, tf_efficientnet_lite0: " in lines[-2]
