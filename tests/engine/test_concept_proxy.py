"""The proxy that is trained on similarities to concepts: its scores, both forms, and refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from coreset.engine.artifacts.provenance import Provenance, locate
from coreset.engine.artifacts.store import FEATURES_NAME, read_features
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.samplers import CcsParameters
from coreset.engine.data.order import BatchOrder
from coreset.engine.models.backbones import OFFLINE_BACKBONE, weights_key
from coreset.engine.models.concept_bank import (
    BANK_KIND,
    VISUAL_STAGE,
    Concept,
    ConceptBank,
    Encoder,
    write_bank,
)
from coreset.engine.models.features import FeatureSpec, cached_features
from coreset.engine.scoring.score_table import ScoreTable
from coreset.engine.stages.selection import Select
from coreset.kernels.neighbours import unit_rows
from coreset.kernels.scores import SCORES
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import temporary_name

SIZE, EPOCHS, BATCH = 64, 4, 16


def features_of(data):
    spec = FeatureSpec(backbone=OFFLINE_BACKBONE, size=SIZE)
    return unit_rows(read_features(cached_features(Dataset.open(data), spec) / FEATURES_NAME))


@pytest.fixture(scope="session")
def make_bank(packed):
    """``make_bank(out)``: the mean and the first image of every class are its two concepts."""
    dataset, rows = Dataset.open(packed), features_of(packed)
    concepts, embeddings = [], []
    for label, name in enumerate(dataset.classes):
        own = rows[dataset.labels == label]
        concepts += [Concept(text=f"{name} #{n}", classes=(name,)) for n in range(2)]
        embeddings += [own.mean(axis=0), own[0]]
    weights = weights_key(OFFLINE_BACKBONE, None)
    encoder = Encoder(backbone=OFFLINE_BACKBONE, weights=weights, size=SIZE, width=rows.shape[1])

    def make(out, *, concepts=concepts, encoder=encoder, stage=VISUAL_STAGE):
        origin = Provenance.read(packed).as_input("data", packed, out)
        provenance = Provenance(kind=BANK_KIND, stage=stage, config={}, inputs=(origin,))
        with create_artifact(out, provenance, inputs=[packed]) as work:
            rows_kd = unit_rows(np.array(embeddings))
            write_bank(work.scratch, encoder, concepts, rows_kd, visual=stage == VISUAL_STAGE)
        return out

    return make


@pytest.fixture(scope="session")
def bank(make_bank, work):
    return make_bank(work / "BANK")


def options(bank):
    return ("--proxy", "concept", "--concepts", bank, "--epochs", EPOCHS, "--batch", BATCH)


@pytest.fixture(scope="session")
def by_concepts(packed, bank, work, made):
    return made(work / "BY_CONCEPTS", "score", packed, work / "BY_CONCEPTS", *options(bank))


@pytest.fixture
def score(packed, tmp_path, done):
    """``score("OUT", bank, ...)``: score ``packed`` by a bank; returns the columns."""

    def run(name, bank, *words):
        done("score", packed, tmp_path / name, *options(bank), *words)
        return ScoreTable.open(tmp_path / name).columns

    return run


def aum_by_definition(data, bank):
    """Train torch's own linear layer by torch's own Adam on standardised similarities."""
    labels = torch.from_numpy(Dataset.open(data).labels)
    similarities = features_of(data) @ ConceptBank.open(bank).embeddings.T
    columns = torch.from_numpy(similarities)
    columns = (columns - columns.mean(0)) / columns.std(0)
    layer = torch.nn.Linear(columns.shape[1], 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
    margins = np.zeros((EPOCHS, len(labels)))
    for epoch in range(EPOCHS):
        order = BatchOrder(batch=BATCH, epoch=epoch, seed=0, shuffle=True)
        for ids in order.batches(len(labels)):
            logits = layer(columns[ids])
            shares = logits.detach().double().softmax(1)
            own = shares[torch.arange(len(ids)), labels[ids]]
            shares[torch.arange(len(ids)), labels[ids]] = 0
            margins[epoch, ids] = own - shares.max(1).values
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels[ids]).backward()
            optimiser.step()
    return margins.mean(axis=0)


def test_scores_are_those_of_a_linear_layer_on_the_similarities(packed, bank, by_concepts):
    columns = ScoreTable.open(by_concepts).columns
    made = {name for name, meaning in SCORES.items() if meaning.trained}
    assert made - set(columns) == {"tdds", "confidence_oof", "margin_oof"}
    assert (columns["visits"] == EPOCHS).all()
    np.testing.assert_allclose(columns["aum"], aum_by_definition(packed, bank), atol=1e-5)
    config = Provenance.read(by_concepts).config
    wanted = {"recipe": "concept@1+changed", "optimiser": "adam", "scaling": "standardised"}
    assert wanted.items() <= config.items()


def test_the_folded_form_gives_the_scores_of_the_direct_one(bank, by_concepts, score, monkeypatch):
    monkeypatch.setattr("coreset.engine.scoring.feature_proxies.resident_limit", lambda _: 0)
    direct, folded = ScoreTable.open(by_concepts).columns, score("FOLDED", bank)
    for name in set(SCORES) & set(direct):
        np.testing.assert_allclose(folded[name], direct[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_scaling_is_a_choice(bank, by_concepts, score):
    raw, scaled = score("RAW", bank, "--scaling", "none"), ScoreTable.open(by_concepts).columns
    assert np.abs(raw["aum"]).mean() < np.abs(scaled["aum"]).mean()  # learns more slowly


def test_a_stopped_training_continues_to_the_same_bytes(
    packed, by_concepts, interrupted, done, stored_bytes
):
    scores = by_concepts.with_name("STOPPED")
    command = ("score", packed, scores, *options(by_concepts.with_name("BANK")))
    interrupted(temporary_name(scores), *command)
    done(*command)
    assert stored_bytes(scores) == stored_bytes(by_concepts)


@pytest.mark.parametrize(
    ("stage", "name"), [(VISUAL_STAGE, "concept_visual_aum"), ("concepts import", "concept_aum")]
)
def test_a_coreset_is_named_after_what_made_its_scores(make_bank, tmp_path, score, stage, name):
    score("SCORES", make_bank(tmp_path / "BANK", stage=stage))
    parameters = CcsParameters(misratio=0.2)
    Select(
        source=tmp_path / "SCORES", condensed=tmp_path / "SET", ipc=2, parameters=parameters
    ).run()
    assert json.loads((tmp_path / "SET" / "set.json").read_text())["method"] == f"ccs-{name}"


def test_visual_prototypes_have_no_misratio_by_default(by_concepts, tmp_path, refused):
    said = refused(tmp_path, "select", by_concepts, tmp_path / "SET", "--ipc", 2)
    assert said == (
        "the study gives no misratio for concept_visual_aum, scores by visual prototypes; give "
        "--misratio, such as 0.5"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--proxy concept", "proxy concept needs --concepts BANK; make a bank with"),
        (
            "--proxy linear --concepts BANK",
            "--concepts goes with --proxy concept, got --proxy linear",
        ),
        ("--optimiser adam", "--optimiser goes with --proxy concept, got --proxy resnet18"),
        ("--proxy concept --concepts BANK --size 64", "are those of its bank"),
        ("--proxy concept --concepts BANK --backbone resnet50", "are those of its bank"),
        ("--proxy concept --concepts BANK --folds 3", "folds go with --proxy linear"),
        ("--proxy concept --concepts BANK --recipe fast", "recipe fast goes with --proxy resnet18"),
        ("--proxy concept --concepts NOWHERE", "NOWHERE does not exist"),
        ("--proxy concept --concepts BY_CONCEPTS", "is no bank of concepts; make one with"),
    ],
)
def test_options_that_do_not_fit_are_refused(by_concepts, tmp_path, refused, words, message):
    packed = locate(by_concepts, "dataset")
    places = {name: by_concepts.parent / name for name in ("BANK", "BY_CONCEPTS")}
    given = [places.get(word, word) for word in words.split()]
    assert message in refused(tmp_path, "score", packed, tmp_path / "OUT", *given)


def test_a_bank_of_other_classes_is_refused_by_name(packed, make_bank, tmp_path, refused):
    concepts = [Concept(text=f"c{n}", classes=("n02102040", "alien")) for n in range(6)]
    bank = make_bank(tmp_path / "BANK", concepts=concepts)
    said = refused(tmp_path, "score", packed, tmp_path / "OUT", *options(bank))
    absent = min(set(Dataset.open(packed).classes) - {"n02102040"})
    assert f"has no concept of class {absent} but some of alien (2 classes without" in said


def test_a_bank_by_other_weights_is_refused(packed, make_bank, tmp_path, refused):
    encoder = ConceptBank.open(make_bank(tmp_path / "FIRST")).encoder
    bank = make_bank(tmp_path / "BANK", encoder=replace(encoder, weights="0" * 64))
    said = refused(tmp_path, "score", packed, tmp_path / "OUT", *options(bank))
    assert "at 64 pixels with weights 00000000, the images would be seen by" in said


def test_a_concept_that_comes_twice_makes_no_bank(make_bank, tmp_path):
    concepts = [Concept(text="stripes") for _ in range(6)]
    with pytest.raises(UsageError, match="concept 'stripes' comes twice"):
        make_bank(tmp_path / "BANK", concepts=concepts)
    assert not (tmp_path / "BANK").exists()
