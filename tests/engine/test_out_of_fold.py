"""Out-of-fold scores of the linear proxy, as a user sees them and beside a slow reference."""

import numpy as np
import pytest
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.engine.scoring.score_table import ScoreTable
from coreset.engine.training.trainer import cosine_schedule
from coreset.kernels.logits import stratified_folds
from coreset.kernels.seeds import Stream, derived_seed, permutation
from coreset.shards.format.dataset import Dataset

LINEAR = ("--proxy", "linear", "--backbone", "tf_efficientnet_lite0", "--size", 64)
EPOCHS, BATCH, FOLDS = 6, 16, 4
# A rate at which the classifiers soon know the training samples by heart.
COMMAND = (*LINEAR, "--epochs", EPOCHS, "--batch", BATCH, "--lr", 0.1)
COLUMNS = {"confidence_oof", "margin_oof", "predicted_oof", "label_issue_oof"}


@pytest.fixture(scope="module")
def flipped(mislabel):
    return mislabel(4)


@pytest.fixture(scope="module")
def in_float32():
    """The arithmetic of a machine without fast bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coreset.engine.runtime.device.has_fast_bfloat16", lambda _: False)
        yield


@pytest.fixture(scope="module")
def with_folds(flipped, in_float32, made):  # noqa: ARG001 - a fixture for its effect
    out = flipped.with_name("FOLDS")
    return made(out, "score", flipped, out, *COMMAND, "--folds", FOLDS)


def trained_apart(features, labels, folds):
    """Held-out probabilities after the best epoch: one classifier at a time, by plain torch."""
    n, steps = len(labels), -(-len(labels) // BATCH)
    rate = cosine_schedule(0.1, 1e-4, EPOCHS * steps)
    history = torch.empty((EPOCHS, n, 3))
    for fold in range(FOLDS):
        layer = torch.nn.Linear(features.shape[1], 3)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        sgd = torch.optim.SGD(layer.parameters(), lr=1, momentum=0.9, weight_decay=1e-4)
        for epoch in range(EPOCHS):
            order = permutation(n, derived_seed(0, epoch))
            for number, first in enumerate(range(0, n, BATCH)):
                ids = order[first : first + BATCH]
                others = ids[folds[ids] != fold]
                losses = cross_entropy(layer(features[others]), labels[others], reduction="sum")
                sgd.param_groups[0]["lr"] = rate(epoch * steps + number)
                sgd.zero_grad()
                (losses / (len(ids) * (FOLDS - 1) / FOLDS)).backward()
                sgd.step()
            with torch.no_grad():
                history[epoch, folds == fold] = layer(features[folds == fold])
    losses = [float(cross_entropy(logits, labels)) for logits in history]
    return history[int(np.argmin(losses))].softmax(1).double().numpy(), losses


def test_scores_are_those_of_classifiers_trained_apart_and_of_cleanlab(flipped, with_folds):
    dataset, columns = Dataset.open(flipped), ScoreTable.open(with_folds).columns
    spec = FeatureSpec(backbone="tf_efficientnet_lite0", size=64)
    features = features_for(dataset, spec).astype(np.float64)
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0, ddof=1), 1e-6)
    folds = stratified_folds(dataset.labels, FOLDS, derived_seed(0, Stream.FOLDS))
    labels = torch.from_numpy(dataset.labels)
    probabilities, losses = trained_apart(
        torch.from_numpy(features.astype(np.float32)), labels, folds
    )
    assert np.argmin(losses) < EPOCHS - 1, "the classifiers do not overfit: nothing to stop early"
    ours, given = columns["confidence_oof"], dataset.labels
    np.testing.assert_allclose(ours, get_label_quality_scores(given, probabilities), atol=2e-4)
    margins = get_label_quality_scores(given, probabilities, method="normalized_margin")
    np.testing.assert_allclose(columns["margin_oof"], 2 * margins - 1, atol=4e-4)
    np.testing.assert_array_equal(columns["predicted_oof"], probabilities.argmax(axis=1))
    issues = find_label_issues(given, probabilities, filter_by="confident_learning")
    np.testing.assert_array_equal(columns["label_issue_oof"], issues)
    assert 0 < issues.sum() < len(dataset)


@pytest.mark.usefixtures("in_float32")
def test_folds_change_no_other_score(flipped, with_folds, tmp_path, done):
    done("score", flipped, tmp_path / "PLAIN", *COMMAND)
    plain, found = ScoreTable.open(tmp_path / "PLAIN").columns, ScoreTable.open(with_folds).columns
    assert set(found) - set(plain) == COLUMNS
    for name, values in plain.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert "folds" not in Provenance.read(tmp_path / "PLAIN").config
    assert Provenance.read(with_folds).config["folds"] == FOLDS


def test_folds_need_images_of_every_class_in_each(make_photos, tmp_path, done, refused):
    out = tmp_path / "S"
    src = make_photos(tmp_path / "src", per_class=4)
    for path in sorted(src.glob("n02102040/*"))[1:]:
        path.unlink()
    done("pack", src, tmp_path / "DATA")
    said = refused(tmp_path, "score", tmp_path / "DATA", out, *LINEAR, "--folds", 3)
    assert said == (
        "folds must be at most the size of every class, got 3, but class n02102040 has 1 images; "
        "lower --folds or leave it out"
    )
