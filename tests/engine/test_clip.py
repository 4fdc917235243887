"""CLIP as a backbone: open_clip's own embeddings of images and texts, and its own pixels."""

import json
import socket
import sys
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import coreset.kernels.augment
from coreset.engine.artifacts.store import read_features
from coreset.engine.data.decoders import TOLERANCES, DecoderName
from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.models import clip
from coreset.engine.models.backbones import (
    HALF,
    Backbone,
    input_geometry,
    load_backbone,
    weights_key,
)
from coreset.engine.models.clip import class_names, clip_geometry, clip_recipe, text_encoder
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.engine.runtime.device import generator_for
from coreset.engine.scoring.score_table import ScoreTable
from coreset.kernels.augment import normalised
from coreset.shards.errors import MachineError, UsageError
from coreset.shards.format.dataset import Dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, SIZE = torch.device("cpu"), 32
VISION = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
PLAIN: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
COCA = PLAIN | {
    "vision_cfg": VISION
    | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": TEXT | {"attn_pooler_heads": 2},
    "custom_text": True,
}
CONFIGS = {"tiny": PLAIN, "tiny-quickgelu": PLAIN | {"quick_gelu": True}, "tiny-coca": COCA}
TINY, LARGE = "clip:tiny-quickgelu", "clip:ViT-B-32-quickgelu"
BATCH = torch.randn((3, 3, SIZE, SIZE), generator=generator_for(0))
TEXTS = ("a photo of a tench", "striped fur", "A photo of a cat.", "", "many words " * 40)


@pytest.fixture(scope="module", autouse=True)
def theirs(tmp_path_factory):
    """Each network by open_clip itself, and a file of its weights; no network."""
    import open_clip

    def offline(*_: object) -> None:
        raise AssertionError("the network was asked")

    folder, made = tmp_path_factory.mktemp("clip"), {}
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(socket.socket, "connect", offline)
        for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
            patch.setattr(open_clip.factory, name, getattr(open_clip.factory, name).copy())
        torch.default_generator.manual_seed(3)
        for name, config in CONFIGS.items():
            (folder / f"{name}.json").write_text(json.dumps(config))
            open_clip.add_model_config(folder / f"{name}.json")
            network: Any = open_clip.create_model(name).eval()
            weights = folder / f"{name}.safetensors"
            save_file(network.state_dict(), weights)
            made[f"clip:{name}"] = SimpleNamespace(network=network, weights=weights)
        yield made


@pytest.fixture
def spec(theirs, tmp_path, monkeypatch):
    monkeypatch.setenv("CORESET_CACHE", str(tmp_path / "cache"))
    return FeatureSpec(
        backbone=TINY, weights=theirs[TINY].weights, size=SIZE, batch=16, device="cpu"
    )


# what is computed


def test_pseudo_labels_are_the_classes_whose_names_are_nearest(
    theirs, packed, tmp_path, done, monkeypatch
):
    """Random networks see all images alike: against the mean of the rows they differ."""
    import open_clip

    texts = []

    def nearest(store, texts_cd):
        texts.append(texts_cd)
        rows = read_features(store).astype(np.float32)
        return ((rows - rows.mean(axis=0)) @ texts_cd.T).argmax(axis=1)

    monkeypatch.setattr("coreset.engine.scoring.pseudo_labels.nearest_of", nearest)
    encoder = ("--backbone", TINY, "--weights", theirs[TINY].weights, "--size", SIZE)
    command = ("--proxy", "linear", "--epochs", 1, "--labels", "zero-shot", *encoder)
    done("score", packed, tmp_path / "SCORES", *command)
    words = ("tench", "English Springer Spaniel", "cassette player")
    prompts = open_clip.get_tokenizer("tiny-quickgelu")([f"a photo of a {w}" for w in words])
    with torch.inference_mode():
        expected = theirs[TINY].network.encode_text(prompts, normalize=True)
    np.testing.assert_allclose(texts[0], expected.numpy(), atol=1e-6)
    assert np.unique(ScoreTable.open(tmp_path / "SCORES").labels).size > 1


@pytest.mark.parametrize("name", ["clip:tiny", TINY, "clip:tiny-coca"])
def test_embeddings_of_images_are_open_clips(theirs, name):
    backbone = load_backbone(name, theirs[name].weights, CPU)
    with torch.inference_mode():
        features = backbone.features(BATCH)
        expected = theirs[name].network.encode_image(BATCH, normalize=False)
    assert features.dtype == torch.float32
    assert not backbone.network.training
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)
    assert ((features.norm(dim=1) - 1).abs() > 1e-3).all(), "they are not normalised"
    assert expected.std(dim=0).min() > 1e-3, "else any image would do"


@pytest.mark.parametrize("name", [TINY, "clip:tiny-coca"])
def test_embeddings_of_texts_are_open_clips_in_batches_and_cut_at_the_context(
    theirs, name, monkeypatch
):
    import open_clip

    monkeypatch.setattr(clip, "_TEXT_BATCH", 2)
    found = text_encoder(load_backbone(name, theirs[name].weights, CPU))(TEXTS)
    tokens = open_clip.get_tokenizer(name.removeprefix("clip:"))(list(TEXTS))
    with torch.inference_mode():
        expected = theirs[name].network.encode_text(tokens, normalize=True).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2, "else any text would do"


def test_quickgelu_makes_another_network(theirs):
    weights = theirs[TINY].weights
    features = [load_backbone(name, weights, CPU).features(BATCH) for name in ("clip:tiny", TINY)]
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_names_of_classes_are_those_of_imagenet_in_order():
    names = class_names()
    assert (len(names), names[0], names[-1]) == (1000, "tench", "toilet paper")


# pixels


@pytest.fixture(scope="module")
def transformed(packed, stored_samples):
    """Every photo of the pack as open_clip transforms it for evaluation, uint8."""
    import open_clip

    no_mean: Any = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    transform: Any = open_clip.image_transform(SIZE, is_train=False, **no_mean)
    images = [Image.open(BytesIO(data)).convert("RGB") for _, data in stored_samples(packed)]
    assert len({image.size for image in images}) > 30
    return torch.stack([transform(image) for image in images]).mul(255).round().byte()


@pytest.fixture
def seen(monkeypatch):
    """Batches of pixels that were made for a backbone."""
    pixels: list[torch.Tensor] = []

    def watched(images, mean, std):
        pixels.append(images.clone())
        return normalised(images, mean, std)

    monkeypatch.setattr(coreset.kernels.augment, "normalised", watched)
    return pixels


@pytest.fixture
def features_of(packed, spec):
    """``features_of(decoder)``: features of the pack."""
    return lambda decoder: features_for(Dataset.open(packed), replace(spec, decoder=decoder))


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_images_of_a_pack_get_open_clips_pixels_and_embeddings(
    features_of, transformed, theirs, seen, decoder
):
    import open_clip

    features = features_of(decoder)
    assert torch.equal(torch.cat(seen), transformed)
    images = normalised(transformed, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.inference_mode():
        expected = theirs[TINY].network.encode_image(images).numpy()
    np.testing.assert_allclose(features, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.usefixtures("theirs")
def test_pixels_by_dali_keep_its_tolerance(features_of, transformed, seen):
    features_of("dali")
    found, expected = (
        pixels.permute(0, 2, 3, 1).numpy() for pixels in (torch.cat(seen), transformed)
    )
    tolerance = TOLERANCES[DecoderName.DALI]
    assert tolerance.exceeded_by(tolerance.difference(found, expected)) == ()


@pytest.mark.parametrize(
    ("model", "tag"),
    [
        ("ViT-B-32-quickgelu", "openai"),
        ("RN50x4-quickgelu", "openai"),
        ("ViT-B-16-SigLIP", "webli"),
        ("MobileCLIP-S1", "datacompdr"),
        ("ViT-L-14-CLIPA", "datacomp1b"),
    ],
)
def test_preparation_is_that_of_the_published_weights(model, tag):
    from open_clip import get_model_config, get_pretrained_cfg
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    config: Any = get_model_config(model)
    own = config["vision_cfg"]["image_size"]
    settings = merge_preprocess_dict(PreprocessCfg(size=own), get_pretrained_cfg(model, tag))
    _, mean, std = clip_recipe(f"clip:{model}")
    rng = np.random.default_rng(0)
    image, stored = Image.fromarray(rng.integers(0, 256, (130, 301, 3), np.uint8)), BytesIO()
    image.save(stored, "PNG")
    pixels = decode_with_pillow(stored.getvalue(), clip_geometry(f"clip:{model}", own))
    found = (pixels / 255 - np.array(mean)) / np.array(std)
    transform: Any = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    np.testing.assert_allclose(found.transpose(2, 0, 1), transform(image), atol=1e-5)


def test_other_backbones_are_still_squashed():
    geometry = input_geometry("resnet18", 96)
    assert (geometry.size, geometry.resize, geometry.bicubic) == (96, None, False)


# the command line


def test_the_line_that_embed_names_finds_the_features_again(packed, spec, tmp_path, done):
    named = ("--backbone", TINY, "--weights", spec.weights, "--size", SIZE, "--device", "cpu")
    told, _, following = done("embed", packed, tmp_path / "F", *named)
    assert told == "decoder pillow: the reference, several times slower"
    words = following.removeprefix("next: coreset ").replace("SCORES", str(tmp_path / "S"))
    done(*words.split(), "--epochs", 1)
    (entry,) = (tmp_path / "cache").glob("features-*")
    assert entry.is_symlink()


def test_sets_are_measured(random_set, val, spec, tmp_path, done):
    named = ("--backbone", TINY, "--weights", spec.weights, "--size", SIZE, "--device", "cpu")
    lines = done("measure", random_set, val, tmp_path / "R", *named, "--metrics", "coverage,fid")
    assert f"frechet_{TINY}" in "\n".join(lines)


# what is refused


class Canary:
    """What a malicious file makes of unpickling: a call."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


class Scripted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def weights_of(theirs, tmp_path):
    """``weights_of(kind)``: a file that is refused."""
    state = theirs[TINY].network.state_dict()

    def write(kind):
        path = tmp_path / {"cut": "w.safetensors", "openai": "OpenAI.safetensors"}.get(kind, "w.pt")
        if kind == "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch gives it up
                torch.jit.script(Scripted()).save(path)
        elif kind == "code":
            torch.save({"x": Canary(tmp_path / "fired")}, path)
        else:
            cut = {"visual.proj": torch.zeros(32, 23)} if kind == "cut" else {}
            save_file(state | cut, path)
        return path

    return write


@pytest.fixture
def embed(packed, tmp_path, refused, monkeypatch):
    """``embed(backbone, ...)``: embed, which must be refused; returns the line."""

    def run(name, *words, code=2):
        if name == LARGE:  # no network of 150 million weights is made only to refuse its file
            monkeypatch.setattr(clip, "_build", lambda **_: nn.Identity())
        command = ("embed", packed, tmp_path / "F", "--backbone", name, "--device", "cpu")
        return refused(packed, *command, *words, code=code)

    return run


FILE = "open_clip_model.safetensors of timm/vit_base_patch32_clip_224"
SAFE = f"name {FILE}.openai on the Hugging Face hub"
ABSENT = "no weights given (nothing is downloaded)"


@pytest.mark.parametrize(
    ("name", "kind", "messages"),
    [
        (LARGE, "torchscript", ("is a TorchScript archive, which holds code)", SAFE)),
        (LARGE, "code", ("which only code could make; save its state dict alone)", SAFE)),
        (TINY, "code", ("cannot be read as tensors", "name a safetensors file")),
        (TINY, "cut", ("has (32, 23) for visual.proj, the network needs (32, 24)",)),
        ("clip:tiny", "openai", (f"need OpenAI's activation; use --backbone {TINY}",)),
        ("clip:tiny", None, (ABSENT, "copy a safetensors file to")),
        (LARGE, None, (ABSENT, f"copy {FILE}.openai on the Hugging Face hub to this machine")),
        ("clip:ViT-B-32", None, (ABSENT, f"copy {FILE}.laion")),
        ("clip:tini", None, ("got clip:tini; near it: clip:tiny",)),
        ("clip:?", None, ("got clip:?; near it: clip:ViT-B-32-quickgelu",)),
        ("clip:hf-hub:laion/model", None, ("must be clip:MODEL of open_clip, got clip:hf-hub:",)),
        ("clip:roberta-ViT-B-32", None, ("has a text tower that open_clip downloads",)),
    ],
)
def test_refusals_are_one_line_and_name_a_remedy(embed, weights_of, name, kind, messages):
    file = weights_of(kind) if kind else None
    weights = ("--weights", file) if file else ()
    said = embed(name, "--size", SIZE, *weights, code=4 if ABSENT in messages else 2)
    assert all(message in said for message in messages), said
    assert file is None or not file.with_name("fired").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), f"backbone {TINY} takes images of 32 pixels (--size 32), got 224"),
        (("--size", SIZE, "--decoder", "turbo"), "decoder turbo resizes bilinearly"),
        (("--size", SIZE, "--decoder", "fast"), "decoder fast resizes bilinearly"),
    ],
)
def test_another_size_and_bilinear_decoders_are_refused(embed, spec, words, message):
    assert message in embed(TINY, "--weights", spec.weights, *words)


def test_openais_weights_are_known_by_their_folder_on_the_hub_and_taken_with_quickgelu(
    theirs, tmp_path
):
    folder = tmp_path / "models--timm--vit_base_patch32_clip_224.openai"
    folder.mkdir()
    path = folder / "open_clip_model.safetensors"
    save_file(theirs[TINY].network.state_dict(), path)
    with pytest.raises(UsageError, match=f"use --backbone {TINY}"):
        weights_key("clip:tiny", path)
    assert weights_key(TINY, path) == weights_key(TINY, theirs[TINY].weights)
    assert weights_key("clip:tiny", theirs["clip:tiny"].weights)


def test_a_tokenizer_of_the_hub_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    backbone = Backbone("clip:ViT-B-16-SigLIP", nn.Linear(1, 1), HALF, HALF)
    with pytest.raises(MachineError, match="timm/ViT-B-16-SigLIP is not in the cache of the Hugg"):
        text_encoder(backbone)


def test_without_open_clip_the_line_names_the_extra(theirs, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for call in (lambda: weights_key(TINY, theirs[TINY].weights), class_names):
        with pytest.raises(MachineError, match=r"need open_clip .*; pip install coreset\[clip\]"):
            call()


OTHERS = """
import sys
from pathlib import Path
import torch
from coreset.engine.cli import main
from coreset.engine.models.backbones import load_backbone

for verb in ("select", "embed", "score", "measure"):
    assert main([verb, "--help"]) == 0
for name, weights in (("resnet18", Path(sys.argv[1])), ("tf_efficientnet_lite0", None)):
    load_backbone(name, weights, torch.device("cpu"))
assert not {"open_clip", "transformers"} & set(sys.modules)
"""


@pytest.mark.slow
def test_other_verbs_and_backbones_import_neither_open_clip_nor_transformers(tmp_path, fork):
    from torchvision.models import resnet18

    save_file(resnet18().state_dict(), tmp_path / "w.safetensors")
    child = fork(OTHERS, tmp_path / "w.safetensors")
    assert child.code == 0, child.said
