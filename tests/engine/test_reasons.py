"""Reasons behind scores by concepts: planted features, a plain loop, listings, and the report."""

import csv
import json
import shutil

import numpy as np
import pytest

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.artifacts.store import FEATURES_NAME, RowWriter, read_features
from coreset.engine.artifacts.writer import create_artifact
from coreset.engine.condensed.condensed_set import open_set
from coreset.engine.evaluation.metrics import METRICS as REGISTRY
from coreset.engine.evaluation.results import METRICS, Results
from coreset.engine.models.backbones import OFFLINE_BACKBONE, weights_key
from coreset.engine.models.concept_bank import (
    BANK_KIND,
    VISUAL_STAGE,
    Concept,
    Encoder,
    write_bank,
)
from coreset.engine.models.features import FeatureSpec, _cache_entry, _config, recorded_features
from coreset.engine.scoring import reasons as module
from coreset.engine.scoring.reasons import ConceptModel, class_concepts, reasons
from coreset.engine.scoring.score_table import ScoreTable
from coreset.engine.scoring.suspects import suspect_table
from coreset.kernels.neighbours import unit_rows
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of

SIZE, WIDTH, N_CONCEPTS = 41, 16, 6
MISLABELLED = 1
"""Place among the images of class 0 of one that is made of concept 3, which is of class 1."""


@pytest.fixture(scope="module")
def mislabelled(packed):
    return int(np.flatnonzero(Dataset.open(packed).labels == 0)[MISLABELLED])


@pytest.fixture(scope="module")
def planted(packed, mislabelled, work, made):
    """Scores by six concepts, two a class; every image is made of one of its class, but for one."""
    dataset, rng = Dataset.open(packed), np.random.default_rng(4)
    embeddings = unit_rows(np.linalg.qr(rng.normal(size=(WIDTH, N_CONCEPTS)))[0].T)
    own = 2 * dataset.labels + np.arange(len(dataset)) % 2
    own[mislabelled] = 3
    features = embeddings[own] + 0.05 * rng.normal(size=(len(dataset), WIDTH))
    config = _config(dataset, FeatureSpec(backbone=OFFLINE_BACKBONE, size=SIZE))
    cached = Provenance(
        kind="features", stage="embed", config=config, binds={"content": config["content"]}
    )
    with create_artifact(_cache_entry(config), cached, resumable=True) as work_on:
        rows = RowWriter(work_on.scratch / FEATURES_NAME, len(features), WIDTH, {})
        rows.write(0, features.astype(np.float16))
    concepts = [
        Concept(
            text=f"concept {k}", classes=(dataset.classes[k // 2],),
            nearest=dataset.keys[int(np.flatnonzero(own == k)[0])],
        )
        for k in range(N_CONCEPTS)
    ]  # fmt: skip
    weights = weights_key(OFFLINE_BACKBONE, None)
    encoder = Encoder(backbone=OFFLINE_BACKBONE, weights=weights, size=SIZE, width=WIDTH)
    root = work / "REASONS"
    root.mkdir()
    data = shutil.copytree(packed, root / "DATA")
    origin = Provenance.read(data).as_input("data", data, root / "BANK")
    provenance = Provenance(kind=BANK_KIND, stage=VISUAL_STAGE, config={}, inputs=(origin,))
    with create_artifact(root / "BANK", provenance, inputs=[data]) as work_on:
        write_bank(work_on.scratch, encoder, concepts, embeddings, visual=True)
    words = ("--proxy", "concept", "--concepts", root / "BANK", "--epochs", 20, "--batch", 16)
    return made(root / "SCORES", "score", data, root / "SCORES", *words, "--lr", 0.01)


@pytest.fixture
def copied(planted, tmp_path):
    """A copy of data, bank and scores that a test may damage; returns the scores."""
    return shutil.copytree(planted.parent, tmp_path / "copy") / "SCORES"


@pytest.fixture
def without_features(planted):
    """Take the features out of the cache for the time of a test."""
    entry = next(e for e in Provenance.read(planted).inputs if e["kind"] == "features")
    place = recorded_features(entry)
    hidden = place.rename(place.with_name("hidden"))
    yield
    hidden.rename(place)


def by_a_loop(model, ids, given, predicted):
    """Explain image by image, class by class and concept by concept, in Python's floats."""
    features = read_features(recorded_features(model.features) / FEATURES_NAME)
    for i, label, guess in zip(ids, given, predicted, strict=True):
        row = features[i].astype(np.float64)
        row /= np.sqrt(sum(value**2 for value in row))
        similarity = [
            (sum(a * b for a, b in zip(row, concept, strict=True)) - mean) * scale
            for concept, mean, scale in zip(
                model.bank.embeddings, model.mean, model.scale, strict=True
            )
        ]
        logits = {
            c: model.bias[c] + sum(model.weight[c, k] * s for k, s in enumerate(similarity))
            for c in range(len(model.bias))
        }
        rival = guess
        if guess in {-1, label}:
            rival = max((c for c in logits if c != label), key=logits.__getitem__)
        lead = {
            k: (model.weight[rival, k] - model.weight[label, k]) * s
            for k, s in enumerate(similarity)
        }
        best = sorted((k for k in lead if lead[k] > 0), key=lead.__getitem__, reverse=True)[:3]
        yield rival, [(f"concept {k}", lead[k], similarity[k]) for k in best]


def test_an_image_made_of_a_concept_of_another_class_has_it_as_first_reason(planted, mislabelled):
    table, model = ScoreTable.open(planted), ConceptModel.open(planted)
    assert table.predicted is not None
    assert table.predicted[mislabelled] == 1
    (reason,) = reasons(model, np.array([mislabelled]), np.array([0]), np.array([1]))
    assert reason.rival == 1
    assert reason.arguments[0].text == "concept 3"
    assert all(argument.text.startswith("no ") for argument in reason.arguments[1:])
    first_two = [list(weights)[:2] for weights in class_concepts(model, 4)]
    assert [{c.text for c in two} for two in first_two] == [
        {"concept 0", "concept 1"}, {"concept 2", "concept 3"}, {"concept 4", "concept 5"},
    ]  # fmt: skip


def test_class_concepts_are_those_of_largest_positive_weight(planted):
    model = ConceptModel.open(planted)
    for n in (1, 4, 99):
        for found, row in zip(class_concepts(model, n), model.weight, strict=True):
            ordered = sorted(((w, k) for k, w in enumerate(row) if w > 0), reverse=True)[:n]
            assert [(c.text, w) for c, w in found.items()] == [
                (f"concept {k}", w) for w, k in ordered
            ]


@pytest.mark.parametrize("block", [7, 1024])
def test_reasons_equal_a_plain_loop(planted, monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK_ROWS", block)
    table, model = ScoreTable.open(planted), ConceptModel.open(planted)
    ids = np.random.default_rng(0).permutation(60)[:40]
    given = table.dataset.labels[ids]
    predicted = np.resize([-1, 0, 1, 2], 40)
    for guesses, told in ((predicted, predicted), (np.full(40, -1), None)):
        found = reasons(model, ids, given, told)
        for reason, (rival, wanted) in zip(
            found, by_a_loop(model, ids, given, guesses), strict=True
        ):
            assert reason.rival == rival
            assert [a.concept.text for a in reason.arguments] == [text for text, _, _ in wanted]
            numbers = [(a.logits, a.similarity) for a in reason.arguments]
            assert np.allclose(numbers, [row[1:] for row in wanted], atol=1e-4)


def test_suspects_are_listed_with_their_reasons(planted, mislabelled, values_of, done, tmp_path):
    words = ("scores", "suspects", planted, "--top", 3, "--why")
    first = values_of(*words)["suspects"][0]
    classes = Dataset.open(planted.parent / "DATA").classes
    assert (first["sample"], first["rival_label"]) == (mislabelled, classes[1])
    assert first["reasons"][0].keys() == {"concept", "text", "logits", "similarity", "nearest"}
    assert first["reasons"][1]["text"] == f"no {first['reasons'][1]['concept']}"
    header, line = done(*words, "--csv", tmp_path / "list.csv")[:2]
    texts = [reason["text"] for reason in first["reasons"]]
    assert header.endswith("  argues against")
    shown = [
        f"no {reason['nearest']}" if reason["similarity"] < 0 else reason["nearest"]
        for reason in first["reasons"]
    ]
    assert line.endswith(f"  {'; '.join(shown)}")
    with (tmp_path / "list.csv").open() as file:
        row = next(csv.DictReader(file))
    nearest = [reason["nearest"] for reason in first["reasons"]]
    pairs = zip(texts, nearest, strict=True)
    assert row["reasons"] == "; ".join(f"{text} ({key})" for text, key in pairs)
    assert row["rival_label"] == classes[1]
    assert "reasons" not in values_of("scores", "suspects", planted)["suspects"][0]


def test_a_long_concept_is_shortened_in_the_table():
    suspect = {"sample": 3, "source": "a", "given_label": "b", "predicted_label": None, "score": 1}
    long = {"concept": "long, slender body with silver stripes", "similarity": 1.0}
    absent = {"concept": "fins", "similarity": -0.5}
    line = suspect_table("el2n", [suspect | {"reasons": [long, absent]}])[1]
    assert line.endswith("long, slender body with s...; no fins")
    assert suspect_table("el2n", [suspect | {"reasons": []}])[1].endswith("  -")


def test_scores_that_are_not_by_concepts_give_no_reasons(scores, tmp_path, refused):
    listed = ("--csv", tmp_path / "list.csv")
    assert refused(tmp_path, "scores", "suspects", scores, "--why", *listed) == (
        f"{scores} is not by concepts, which alone give reasons; score with --proxy concept "
        "--concepts BANK"
    )


def test_a_bank_that_is_gone_or_another_is_refused(copied, tmp_path, refused):
    words, bank = ("scores", "suspects", copied, "--why"), copied.with_name("BANK")
    path = bank / "provenance.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"digest": "0" * 64}))
    remedy = f"{bank} does not hold the bank of {copied} any more; put it back, or score again"
    assert refused(tmp_path, *words) == remedy
    shutil.rmtree(bank)
    assert refused(tmp_path, *words) == remedy


@pytest.mark.usefixtures("without_features")
def test_features_that_are_gone_are_refused(planted, tmp_path, refused):
    said = refused(tmp_path, "scores", "suspects", planted, "--why")
    assert said.startswith(f"features by {OFFLINE_BACKBONE} are not in ")
    assert "run the same `coreset score` (or `coreset embed`) again" in said
    with pytest.raises(UsageError, match="features by None are not in"):
        recorded_features({"config": {}})


@pytest.fixture
def report(copied, made, done):
    """Choose a set by the scores, measure it on paper, report; returns (lines, page)."""
    root = copied.parent
    made(root / "SET", "select", copied, root / "SET", "--ipc", 2, "--misratio", 0.2)
    results, condensed = Results(root / "RESULTS"), open_set(root / "SET")
    results.record_lineage(condensed)
    row = results.input_columns(condensed, Dataset.open(root / "DATA")) | {
        "metric": REGISTRY["r1"].stamp, "value": 0.5, "backbone": "b", "weights": "w",
        "runtime": json.dumps({"versions": {}}),
    }  # fmt: skip
    results.append(METRICS, [{"key": digest_of(row), **row}], [])

    def run(*words):
        lines = done("report", root / "RESULTS", root / "report.html", *words)
        return lines, (root / "report.html").read_text()

    return run


TITLE = "<h3>Concepts behind concept_visual_aum of "


def test_the_report_shows_concepts_of_classes_and_reasons_with_nearest_images(
    report, planted, mislabelled
):
    lines, page = report("--images-per-row", 2)
    assert not any("left out" in line for line in lines)
    dataset, model = Dataset.open(planted.parent / "DATA"), ConceptModel.open(planted)
    section = page[page.index(TITLE) : page.index('<section id="images">')]
    assert section.count("<details") == 3
    for weights in class_concepts(model, 2):
        for concept, weight in weights.items():
            assert f"<small>{concept.text} {weight:+.2f}</small>" in section
            assert f'alt="{concept.nearest}"' in section
    row = section[section.index(f'alt="{dataset.keys[mislabelled]}, aum') :]
    assert f"given {dataset.classes[0]}, predicted {dataset.classes[1]}" in section
    assert f"given {dataset.classes[0]}, runner-up " in section
    assert row.index("<small>concept 3 +") < row.index("<small>no concept")
    one_class = report("--max-classes", 1)[1]
    assert "The first 1 of 3 classes." in one_class[one_class.index(TITLE) :]


def test_a_bank_that_is_gone_leaves_its_section_out_of_the_report(report, copied):
    shutil.rmtree(copied.with_name("BANK"))
    lines, page = report()
    (notice,) = (line for line in lines if line.startswith("left out"))
    assert "its concepts are left out, for" in notice
    assert notice.removeprefix("left out: ") in page
    assert TITLE not in page


@pytest.mark.usefixtures("without_features")
def test_features_that_are_gone_leave_the_concepts_of_classes_in_the_report(report):
    lines, page = report()
    (notice,) = (line for line in lines if line.startswith("left out"))
    assert "the reasons for hard images are left out, for features by" in notice
    assert TITLE in page
    assert "against it:" not in page


def test_prototypes_of_other_data_show_no_image(report, copied):
    path = copied.with_name("BANK") / "provenance.json"
    document = json.loads(path.read_text())
    document["inputs"][0]["digest"] = "0" * 64
    path.write_text(json.dumps(document))
    section = report()[1].split(TITLE)[1].split("</section>")[0]
    assert '<span class="concept">concept 0 +' in section
