"""Features: made once per content, backbone, weights and size, and continued where they stopped."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import FEATURES_NAME, read_features
from coreset.engine.artifacts.writer import output_digest
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
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


def test_features_of_some_samples_are_in_the_order_asked_for(dataset, expected):
    assert_alike(features_for(dataset, SPEC, SOME), expected[SOME])


def test_an_artifact_says_what_it_holds_and_what_it_cost(dataset, tmp_path):
    work = embed(dataset, SPEC, tmp_path / "F", SOME)
    provenance = Provenance.read(tmp_path / "F")
    assert (provenance.kind, provenance.inputs) == ("features", ())
    assert provenance.binds["width"] == WIDTH
    assert provenance.config["backbone"] == OFFLINE_BACKBONE
    assert provenance.digest == output_digest(tmp_path / "F")
    (line,) = read_ledger(tmp_path / "F")
    assert (line["stage"], line["images"]) == ("embed", 3)
    assert line["bytes_read"] == dataset.ints("bytes")[SOME].sum()
    assert (work.done, embed(dataset, SPEC, tmp_path / "F", SOME).done) == (False, True)


# the cache


def test_cached_features_are_not_made_again(dataset):
    first = cached_features(dataset, SPEC, SOME)
    before = (first / "features.zarr/zarr.json").stat().st_mtime_ns
    assert cached_features(dataset, replace(SPEC, batch=7, workers=1), SOME) == first
    assert (first / "features.zarr/zarr.json").stat().st_mtime_ns == before
    assert len(read_ledger(first)) == 1


def test_relabelled_images_share_their_features(dataset, cache):
    class Relabelled(Dataset):
        @property
        def labels(self):
            return (super().labels + 1) % 3

    relabelled = Relabelled(dataset.path, dataset.manifest)
    assert cached_features(dataset, SPEC, SOME) == cached_features(relabelled, SPEC, SOME)
    assert len(entries(cache)) == 1


def test_other_images_sizes_weights_and_backbones_are_other_features(dataset, cache, tmp_path):
    import timm

    state = timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict()
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


def test_an_embedded_data_set_is_found_through_the_cache(dataset, tmp_path, cache):
    embed(dataset, SPEC, tmp_path / "F")
    remember(tmp_path / "F", dataset, SPEC)
    remember(tmp_path / "F", dataset, SPEC)
    assert cached_features(dataset, SPEC).resolve() == (tmp_path / "F").resolve()
    np.testing.assert_array_equal(
        features_for(dataset, SPEC), read_features(tmp_path / "F" / FEATURES_NAME)
    )
    assert len(entries(cache)) == 1


def test_a_dangling_link_in_the_cache_is_replaced(dataset, tmp_path, expected, cache):
    embed(dataset, SPEC, tmp_path / "F")
    remember(tmp_path / "F", dataset, SPEC)
    shutil.rmtree(tmp_path / "F")
    assert_alike(features_for(dataset, SPEC), expected)
    (entry,) = entries(cache)
    assert not (cache / entry).is_symlink()
    assert not (tmp_path / "F").exists(), "nothing appears where the user removed it"


def test_a_link_to_what_is_other_features_by_now_is_replaced(dataset, tmp_path, expected, cache):
    embed(dataset, SPEC, tmp_path / "F")
    remember(tmp_path / "F", dataset, SPEC)
    shutil.rmtree(tmp_path / "F")
    embed(dataset, SPEC, tmp_path / "F", SOME)
    assert_alike(features_for(dataset, SPEC), expected)
    assert len(read_features(tmp_path / "F" / FEATURES_NAME)) == len(SOME)
    embed(dataset, SPEC, tmp_path / "G")
    remember(tmp_path / "G", dataset, SPEC)
    assert not (cache / entries(cache)[0]).is_symlink(), "what is in the cache stays"


def test_damaged_features_are_refused(dataset):
    place = cached_features(dataset, SPEC, SOME) / FEATURES_NAME
    metadata = place / "features/zarr.json"
    metadata.write_text(metadata.read_text().replace("3,\n    1280", "2,\n    1280", 1))
    with pytest.raises(StoreError, match="has 2 rows for 3 images; remove it and make"):
        features_for(dataset, SPEC, SOME)


# interruptions


def break_image(data, sample):
    """Overwrite one stored image with zeros."""
    dataset = Dataset.open(data)
    row = dataset.samples.slice(sample, 1).to_pylist()[0]
    shard = data / dataset.manifest.shards[row["shard"]].name
    content = bytearray(shard.read_bytes())
    content[row["offset"] : row["offset"] + row["bytes"]] = bytes(row["bytes"])
    shard.write_bytes(content)


@pytest.mark.parametrize(("broken", "chunks_done"), [(5, 0), (40, 2)])
def test_an_interrupted_run_goes_on_at_its_last_whole_chunk(
    dataset, packed, tmp_path, broken, chunks_done
):
    shutil.copytree(packed, tmp_path / "DATA")
    break_image(tmp_path / "DATA", broken)
    with pytest.raises(ManifestError, match="cannot be decoded"):
        embed(Dataset.open(tmp_path / "DATA"), SPEC, tmp_path / "F")
    assert not (tmp_path / "F").exists()
    # What a kill leaves besides: zarr's temporary file and a chunk that nobody vouches for.
    store = temporary_name(tmp_path / "F") / FEATURES_NAME
    chunk = store / f"features/c/{chunks_done}"
    chunk.mkdir(parents=True, exist_ok=True)
    (chunk / "0.0123abcd.partial").write_bytes(b"half")
    (chunk / "0").write_bytes(b"half")

    work = embed(dataset, SPEC, tmp_path / "F")
    assert work.resumed
    assert work.meter.images == 60 - ROWS_PER_CHUNK * chunks_done
    embed(dataset, SPEC, tmp_path / "G")
    assert output_digest(tmp_path / "F") == output_digest(tmp_path / "G")
    assert [line["interrupted"] for line in read_ledger(tmp_path / "F")] == [True, False]


def test_a_run_killed_before_its_first_array_begins_anew(dataset, tmp_path):
    with pytest.raises(ManifestError):
        embed_broken(dataset, tmp_path)
    store = temporary_name(tmp_path / "F") / FEATURES_NAME
    shutil.rmtree(store / "features")
    assert embed(dataset, SPEC, tmp_path / "F", SOME).meter.images == 3


def embed_broken(dataset, tmp_path):
    shutil.copytree(dataset.path, tmp_path / "DATA")
    break_image(tmp_path / "DATA", SOME[0])
    embed(Dataset.open(tmp_path / "DATA"), SPEC, tmp_path / "F", SOME)


def test_features_beyond_float16_are_refused_before_they_are_published(dataset, tmp_path):
    import timm

    state = timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict()
    state["conv_head.bias"].fill_(1e6)
    save_file(state, tmp_path / "w.safetensors")
    spec = replace(SPEC, backbone="mobilenetv3_small_050", weights=tmp_path / "w.safetensors")
    fact = "features of sample 40 by backbone mobilenetv3_small_050 are not finite in float16; use"
    with pytest.raises(UsageError, match=fact):
        embed(dataset, spec, tmp_path / "F", SOME)
    assert not (tmp_path / "F").exists()


def test_a_size_that_a_backbone_does_not_take_is_refused(dataset, tmp_path):
    import timm

    state = timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    spec = replace(SPEC, backbone="vit_tiny_patch16_224", weights=tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="vit_tiny_patch16_224 does not take --size 32"):
        embed(dataset, spec, tmp_path / "F", SOME)
