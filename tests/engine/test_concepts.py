"""Banks of concepts from texts and images: classes found, texts cleaned, the best kept, prototypes.

The encoder is a tiny CLIP of random weights.
"""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.models.backbones import OFFLINE_BACKBONE, load_backbone
from coreset.engine.models.clip import clip_recipe, text_encoder
from coreset.engine.models.concept_bank import ConceptBank
from coreset.engine.models.concept_rows import prototypes
from coreset.engine.models.concept_texts import class_words, cleaned, keys_by_class
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.kernels.neighbours import kmeans_centres
from coreset.shards.errors import UsageError
from coreset.shards.format.classes import class_list, wordnet_names
from coreset.shards.format.dataset import Dataset

TENCH, SPRINGER, PLAYER = "n01440764", "n02102040", "n02979186"
TINY = "clip:tiny-bank"
VISUAL = ("--backbone", OFFLINE_BACKBONE, "--size", 64)
TEXTS = {
    "tench": ["Thick  lips.", "small eyes", "olive green", "a tench", "red fins"],
    "English springer": ["small eyes", "long ears", "red fins", "a white chest", "long ears"],
    "cassette player": ["buttons", "small eyes", "a flap"],
    "golden retriever": 3 * ["golden hair"],
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP of random weights: options that name it, its weights, its encoder of texts."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    config, weights = folder / "tiny-bank.json", folder / "tiny.safetensors"
    config.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        for name in ("_MODEL_CONFIG_PATHS", "_MODEL_CONFIGS"):
            patch.setattr(open_clip.factory, name, getattr(open_clip.factory, name).copy())
        torch.default_generator.manual_seed(0)
        open_clip.add_model_config(config)
        save_file(clip_recipe(TINY)[0]().state_dict(), weights)
        encode = text_encoder(load_backbone(TINY, weights, torch.device("cpu")))
        options = ("--backbone", TINY, "--weights", weights, "--size", 32)
        yield SimpleNamespace(options=options, weights=weights, encode=encode)


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "concepts.json"
    path.write_text(json.dumps(TEXTS))
    return path


# keys of classes


def test_every_class_of_imagenet_is_found_by_each_kind_of_key():
    import open_clip

    wnids, words = class_list("imagenet"), open_clip.IMAGENET_CLASSNAMES
    kinds = {
        "itself": wnids,
        "wnids": [f"{wnid} {number}" for number, wnid in enumerate(wnids)],
        "positions": [f"thing {number}" for number in range(1000)],
        "words": [name if words.count(name) == 1 else f"{name} ({wnid})"
                  for wnid, name in zip(wnids, words, strict=True)],
    }  # fmt: skip
    for keys in kinds.values():
        assert keys_by_class(wnids, keys) == dict(zip(wnids, keys, strict=True))


def test_names_count_where_the_keys_are_not_in_the_order_of_imagenet():
    wnids, names = class_list("imagenet"), wordnet_names()
    reversed_keys = [name for name in names if names.count(name) == 1][::-1]
    found = keys_by_class(wnids, reversed_keys)
    assert found == {
        wnid: name for wnid, name in zip(wnids, names, strict=True) if name in reversed_keys
    }
    shuffled = [*wnids[500:], *wnids[:500]]
    assert keys_by_class(["tench", "English_springer"], shuffled) == {
        "tench": TENCH, "English_springer": SPRINGER,
    }  # fmt: skip


def test_names_are_compared_without_case_and_punctuation():
    keys = ["Golden-Retriever", "tench, Tinca tinca", "springer", "C++", "c#", "crane", "sunglass"]
    classes = ["golden_retriever", TENCH, SPRINGER, "c++", "cat", "n02012849", "n03126707"]
    assert keys_by_class(classes, keys) == {
        "golden_retriever": "Golden-Retriever",
        TENCH: "tench, Tinca tinca",
        # Both cranes are called so, as C++ and C# are without punctuation.
    }
    assert keys_by_class(["n04355933", "n02012849"], [*keys, "crane bird"]) == {
        "n04355933": "sunglass", "n02012849": "crane bird",
    }  # fmt: skip


def test_classes_without_imagenets_names_need_no_names_of_it():
    assert keys_by_class(["cat", "Dog"], ["dog", "cat", "cow"]) == {"cat": "cat", "Dog": "dog"}
    assert class_words(["cat", "n99999999"]) == {"cat": "cat", "n99999999": "n99999999"}


# texts


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("  Long\t EARS. ", "long ears"),
        ("a fin...", "a fin"),
        ("1.5 kg", "1.5 kg"),
        ("catlike whiskers", "catlike whiskers"),
        ("a big house for a cat", "a big house for a cat"),
        (" . ", None),
        ("a CAT-house", None),
        ("two cat houses.", None),
        ("the cat house's door", None),
        ("it is a fly", None),
        ("as flies do", None),
        ("boxes", None),
    ],
)
def test_texts_are_cleaned_and_hold_no_name_of_their_class(text, kept):
    concepts = cleaned({"x": [text, "a door"]}, {"x": "cat house, fly, box"})
    assert [concept.text for concept in concepts] == [*filter(None, [kept]), "a door"]


def test_shared_concepts_are_kept_once_with_all_their_classes():
    names = {"a": "ant", "b": "bee"}
    concepts = cleaned({"a": ["Wings", "an ant", "wings."], "b": ["an ant", "wings"]}, names)
    assert [(c.text, c.classes) for c in concepts] == [("wings", ("a", "b")), ("an ant", ("b",))]


def test_a_class_keeps_texts_with_its_name_if_it_has_no_others(monkeypatch):
    said = list[str]()
    monkeypatch.setattr("coreset.engine.models.concept_texts.say", said.append)
    names = {"a": "ant", "b": "bee"}
    concepts = cleaned({"a": ["wings"], "b": ["Bees", "..."]}, names)
    assert [(c.text, c.classes) for c in concepts] == [("wings", ("a",)), ("bees", ("b",))]
    assert said == ["classes with texts that all hold their names, which are kept: b (bee)"]
    with pytest.raises(UsageError, match=r"class b has no concept \(bee\); describe it in words"):
        cleaned({"a": ["wings"], "b": ["..."]}, names)


# import


@pytest.fixture
def words(clip, listed, packed, tmp_path):
    """The words of a command that imports a bank."""
    return ("concepts", "import", listed, packed, tmp_path / "BANK", *clip.options)


def test_an_imported_bank_holds_the_embedded_texts_of_the_classes(words, clip, done, refused):
    _, _, listed, packed, bank_path, *_ = words
    lines = done(*words)
    assert lines[0] == f"8 concepts of 3 classes ({TINY}) made: {bank_path}"
    bank = ConceptBank.open(bank_path)
    assert {concept.text: concept.classes for concept in bank.concepts} == {
        "thick lips": (TENCH,), "small eyes": (TENCH, SPRINGER, PLAYER), "olive green": (TENCH,),
        "red fins": (TENCH, SPRINGER), "long ears": (SPRINGER,), "a white chest": (SPRINGER,),
        "buttons": (PLAYER,), "a flap": (PLAYER,),
    }  # fmt: skip
    prompted = clip.encode([f"a photo of {concept.text}" for concept in bank.concepts])
    assert np.array_equal(bank.embeddings, prompted)
    own = hashlib.sha256(clip.weights.read_bytes()).hexdigest()
    encoder = bank.encoder
    assert (encoder.backbone, encoder.weights, encoder.size) == (TINY, own, 32)
    assert (encoder.width, encoder.prompt, bank.visual) == (24, "a photo of {}", False)
    bank.require_classes(Dataset.open(packed))
    provenance = Provenance.read(bank_path)
    digest = hashlib.sha256(listed.read_bytes()).hexdigest()
    assert (provenance.kind, provenance.stage) == ("concepts", "concepts import")
    assert provenance.config == {
        "json": digest, "prompt": "a photo of {}", "backbone": TINY, "weights": own,
        "size": 32,
    }  # fmt: skip
    assert [entry["role"] for entry in provenance.inputs] == ["data"]

    assert "are there already" in done(*words)[0]
    said = refused(bank_path, *words, "--prompt", "{}")
    assert "(config.prompt: a photo of {} there, {} here)" in said
    listed.write_text(json.dumps(TEXTS | {"tench": ["lips"]}))
    assert "(config.json: " in refused(bank_path, *words)


@pytest.mark.parametrize("keep", [(), ("--keep", 1)])
def test_a_size_that_the_encoder_does_not_take_is_refused(words, keep, tmp_path, refused):
    said = refused(tmp_path, *words, "--size", 64, *keep)
    assert f"backbone {TINY} takes images of 32 pixels (--size 32), got 64" in said


def test_the_kept_concepts_are_those_of_a_plain_double_loop(clip, listed, packed, tmp_path, done):
    path, whole = tmp_path / "KEPT", tmp_path / "WHOLE"
    done("concepts", "import", listed, packed, whole, *clip.options)
    done("concepts", "import", listed, packed, path, *clip.options, "--keep", 2)
    dataset, every = Dataset.open(packed), ConceptBank.open(whole)
    images = features_for(dataset, FeatureSpec(backbone=TINY, weights=clip.weights, size=32))
    images = images.astype(float)
    expected = set()
    for label, name in enumerate(dataset.classes):
        differences = {}
        for concept, row in zip(every.concepts, every.embeddings, strict=True):
            own, others = [], []
            for image, of in zip(images, dataset.labels, strict=True):
                cosine = image @ row.astype(float) / np.linalg.norm(image)
                (own if of == label else others).append(cosine)
            if name in concept.classes:
                differences[concept.text] = np.mean(own) - np.mean(others)
        best = sorted(differences, key=differences.__getitem__)[-2:]
        expected |= {(text, name) for text in best}
    kept = ConceptBank.open(path)
    assert {(c.text, name) for c in kept.concepts for name in c.classes} == expected
    prompted = clip.encode([f"a photo of {concept.text}" for concept in kept.concepts])
    np.testing.assert_allclose(kept.embeddings, prompted, atol=1e-6)
    inputs = {entry["role"] for entry in Provenance.read(path).inputs}
    assert (inputs, Provenance.read(path).config["keep"]) == ({"data", "features"}, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as concepts ("),
        ("[]", "an object was expected"),
        ('{"tench": "lips"}', "class 'tench' has no list of strings); write a JSON file of"),
        ('{"tench": ["lips", 3]}', "class 'tench' has no list of strings"),
        ('{"tench": ["\\ud800"]}', "surrogates not allowed"),
        (json.dumps({**TEXTS, "cassette player": []}), "class n02979186 has no concept"),
        (json.dumps({"tench": ["lips"], "ant": ["legs"]}), "2 of 3 classes of"),
        (json.dumps({"tench": ["lips"], "ant": ["legs"]}), "n02102040, n02979186; add them by"),
    ],
)
def test_a_file_that_does_not_describe_the_classes_is_refused(
    text, words, packed, tmp_path, refused
):
    path = tmp_path / "concepts.json"
    path.write_text(text)
    said = refused(tmp_path, "concepts", "import", path, packed, tmp_path / "B")
    assert words in said
    assert str(path) in said or "has no concept" in said


def test_what_is_no_file_is_refused(packed, tmp_path, refused):
    words = ("concepts", "import")
    said = refused(tmp_path, *words, tmp_path / "no.json", packed, tmp_path / "B")
    assert "no.json does not exist; name a JSON file of" in said
    said = refused(tmp_path, *words, tmp_path, packed, tmp_path / "B")
    assert "is no file; name a JSON file of" in said


# prototypes


def planted(n_clusters, per_cluster, seed, width=16):
    """Unit directions far apart, and rows of any length near them, with the direction of each."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(width, width)))[0][:n_clusters]
    owner = np.repeat(np.arange(n_clusters), per_cluster)
    rows = directions[owner] + rng.normal(0, 0.02, (owner.size, width))
    return directions, (rows * rng.uniform(1, 50, (owner.size, 1))).astype(np.float32), owner


@pytest.mark.parametrize("seed", range(5))
def test_spherical_k_means_recovers_planted_directions(seed):
    directions, rows, owner = planted(5, 30, seed)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centres, cluster_of = kmeans_centres(units, 5, seed, spherical=True)
    assert (centres @ directions.T).max(axis=0) == pytest.approx(np.ones(5), abs=1e-3)
    assert len(set(zip(cluster_of.tolist(), owner.tolist(), strict=True))) == 5
    means = np.stack([units[cluster_of == cluster].mean(axis=0) for cluster in range(5)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(centres, means, atol=1e-5)


@pytest.mark.parametrize("pooled", [None, 12])
def test_prototypes_are_the_planted_clusters_of_each_class_or_of_all(pooled, packed):
    dataset = Dataset.open(packed)
    directions, rows, owner = planted(12, 5, seed=1)
    table = np.empty(rows.shape, np.float16)
    by_class = np.argsort(dataset.labels, kind="stable")  # 20 images a class, in 4 clusters
    table[by_class], keys = rows, np.array(dataset.keys)
    concepts, centres = prototypes(table, dataset, 4, pooled, seed=0)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-6)
    cosines = centres @ directions.T
    assert sorted(cosines.argmax(axis=1)) == [*range(12)]
    assert cosines.max(axis=1).min() > 0.99
    units = table / np.linalg.norm(table.astype(float), axis=1, keepdims=True)
    assert [c.nearest for c in concepts] == keys[(centres @ units.T).argmax(axis=1)].tolist()
    if pooled:
        assert [c.text for c in concepts] == [f"prototype #{n}" for n in range(1, 13)]
        assert {c.classes for c in concepts} == {()}
    else:
        named = [(f"{name} #{n}", (name,)) for name in dataset.classes for n in range(1, 5)]
        assert [(c.text, c.classes) for c in concepts] == named
        assert [owner[by_class.tolist().index(np.flatnonzero(keys == c.nearest)[0])] // 4
                for c in concepts] == np.repeat(range(3), 4).tolist()  # fmt: skip


def test_pooled_prototypes_of_many_images_are_drawn_by_the_seed(packed, monkeypatch):
    monkeypatch.setattr("coreset.engine.models.concept_rows.POINTS", 2)
    dataset, table = Dataset.open(packed), np.eye(60, dtype=np.float16)
    drawn = []
    for seed in (0, 0, 1):
        _, centres = prototypes(table, dataset, 1, 5, seed)
        drawn.append(tuple(np.flatnonzero(np.abs(centres).sum(axis=0) > 1e-3)))
        assert len(drawn[-1]) == 10  # of 60 images
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_class_and_seed_has_a_stream_of_its_own(packed):
    dataset = Dataset.open(packed)
    table = np.empty((60, 8), np.float16)
    same = np.random.default_rng(0).normal(size=(20, 8))  # without clusters
    table[np.argsort(dataset.labels, kind="stable")] = np.tile(same, (3, 1))
    centres = [prototypes(table, dataset, 6, None, seed)[1] for seed in (0, 0, 1)]
    assert centres[0].tobytes() == centres[1].tobytes() != centres[2].tobytes()
    assert len({part.tobytes() for part in np.split(centres[0], 3)}) == 3


def test_features_without_direction_are_refused(packed):
    table = np.ones((60, 8), np.float16)
    table[3] = 0
    with pytest.raises(
        UsageError, match=r"images of n0.*: features must be finite and not all zero"
    ):
        prototypes(table, Dataset.open(packed), 2, None, seed=0)


def test_a_visual_bank_is_shown_by_class(packed, tmp_path, done, values_of):
    bank_path = tmp_path / "BANK"
    done("concepts", "visual", packed, bank_path, "-k", 4, *VISUAL)
    bank = ConceptBank.open(bank_path)
    bank.require_classes(Dataset.open(packed))
    lines = done("concepts", "show", bank_path, "--classes", 2)
    assert lines[0].split() == ["class", "concepts", "nearest", "images"]
    keys = [concept.nearest for concept in bank.concepts]
    assert lines[1].split(maxsplit=2) == [TENCH, "4", "; ".join([*keys[:3], "..."])]
    assert lines[3] == "and 1 more: --classes 3 shows all"
    assert lines[4].startswith(f"encoder: backbone {OFFLINE_BACKBONE}, weights ")
    assert lines[5] == f"12 visual prototypes of 3 classes ({OFFLINE_BACKBONE}): {bank_path}"
    values = values_of("concepts", "show", bank_path)
    assert [concept["nearest"] for concept in values["concepts"]] == keys


def test_a_pooled_bank_is_shown_by_prototype(packed, tmp_path, done):
    done("concepts", "visual", packed, tmp_path / "P", "--pooled", 3, *VISUAL)
    lines = done("concepts", "show", tmp_path / "P")
    assert [line.split("  ")[0] for line in lines[1:4]] == [f"prototype #{n}" for n in (1, 2, 3)]
    assert lines[-1] == f"3 visual prototypes of all images ({OFFLINE_BACKBONE}): {tmp_path / 'P'}"
