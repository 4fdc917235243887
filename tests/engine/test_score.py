"""Scoring as a user sees it: the numbers, what survives a kill, what is refused."""

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from coreset.engine.artifacts.checkpoints import COMMIT_NAME
from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.data.geometry import Geometry, stored_side
from coreset.engine.data.images import load_into_memory
from coreset.engine.data.residency import Capacity
from coreset.engine.data.stream import ImageStream
from coreset.engine.scoring.proxy import convolutional_proxy
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.scoring.score_table import ScoreTable
from coreset.engine.stages.decode import Decode
from coreset.engine.training.trainer import Trainer, cosine_schedule, sgd
from coreset.kernels.scores import SCORES
from coreset.shards.format.dataset import Dataset

# As the fixture `scored`. Batches so small diverge by chance at the default rate.
SMALL = ("--size", 17, "--epochs", 3, "--batch", 16, "--lr", 0.01)
LINEAR = ("--proxy", "linear", "--backbone", "tf_efficientnet_lite0", "--size", 64)
ELSEWHERE = {"tdds", "confidence_oof", "margin_oof", "mean_margin", "knn_disagreement"}


def own_lines(artifact):
    return [line for line in read_ledger(artifact) if "artifact" not in line]


def test_every_image_has_a_row_in_every_array_and_was_seen_once_per_epoch(scored):
    columns = ScoreTable.open(scored).columns
    assert set(columns) == set(SCORES) - ELSEWHERE | {"visits", "predicted"}
    assert all(values.shape == (60,) for values in columns.values())
    types = {name: values.dtype for name, values in columns.items()}
    assert types.pop("predicted") == np.int32
    assert set(types.values()) == {np.dtype(np.float32)}
    assert set(columns["predicted"]) <= {0, 1, 2}
    assert (columns["visits"] == 3).all()


def logits_by_epoch(data, *, size, epochs, batch):
    """Train the same proxy in this test and keep what the command throws away: all logits."""
    dataset, device = Dataset.open(data), torch.device("cpu")
    side = stored_side(size)
    with ImageStream(dataset, Geometry(side, side)) as source:
        pixels = load_into_memory(source)
    proxy = convolutional_proxy(
        pixels, 3, replace(RECIPES["full"], size=size, batch=batch), seed=0, device=device
    )
    steps = epochs * math.ceil(len(dataset) / batch)
    optimiser = sgd(proxy.network, lr=0.01, weight_decay=1e-4)
    trainer = Trainer(proxy.network, optimiser, cosine_schedule(0.01, 1e-4, steps), device)
    history = [[[] for _ in range(epochs)] for _ in range(len(dataset))]
    for epoch in range(epochs):
        for inputs, labels, ids in proxy.examples(epoch, 0):
            logits = trainer.step(
                inputs,
                lambda logits, labels=labels: torch.nn.functional.cross_entropy(logits, labels),
            )
            for sample, row in zip(ids.tolist(), logits.float().tolist(), strict=True):
                assert history[sample][epoch] == []
                history[sample][epoch] = row
    return history, dataset.labels.tolist()


def scores_by_definition(rows, label, el2n_epochs):
    """All scores of one sample from its logits by epoch, in plain Python."""

    def margin(values):
        return values[label] - max(value for c, value in enumerate(values) if c != label)

    powers = [[math.exp(value - max(row)) for value in row] for row in rows]
    shares = [[power / sum(row) for power in row] for row in powers]
    right = [row.index(max(row)) == label for row in rows]
    errors = [
        math.sqrt(sum((share - (c == label)) ** 2 for c, share in enumerate(row))) for row in shares
    ]
    return {
        "aum": sum(map(margin, shares)) / len(rows),
        "aum_logit": sum(map(margin, rows)) / len(rows),
        "el2n": sum(errors[:el2n_epochs]) / el2n_epochs,
        "el2n_single": errors[el2n_epochs - 1],
        "forgetting": sum(a and not b for a, b in pairwise(right)),
        "correctness": sum(right),
        "visits": len(rows),
    }


def test_scores_are_those_of_the_recorded_logits_by_definition(packed, tmp_path, done):
    scores = tmp_path / "SCORES"
    done("score", packed, scores, *SMALL, "--el2n-epochs", 2)
    history, labels = logits_by_epoch(packed, size=17, epochs=3, batch=16)
    columns = ScoreTable.open(scores).columns
    for sample, (rows, label) in enumerate(zip(history, labels, strict=True)):
        for name, value in scores_by_definition(rows, label, el2n_epochs=2).items():
            assert columns[name][sample] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_images_that_do_not_fit_into_memory_give_the_same_bytes(
    packed, scored, done, monkeypatch, stored_bytes
):
    places = []
    monkeypatch.setattr("coreset.engine.data.image_cache.say", places.append)
    monkeypatch.setattr(Capacity, "of", lambda *_: Capacity(0, 1000, 0))
    streamed = scored.with_name("STREAMED")
    told = done("score", packed, streamed, *SMALL)
    assert stored_bytes(streamed) == stored_bytes(scored)
    assert any("were decoded every epoch; faster: `coreset decode` once" in line for line in told)
    monkeypatch.setattr(Capacity, "of", lambda *_: Capacity(0, 1000, 10**12))
    from_file = scored.with_name("FROM_FILE")
    done("score", packed, from_file, *SMALL)
    assert stored_bytes(from_file) == stored_bytes(scored)
    assert ["kept nowhere" in places[0], "kept in a file" in places[1]] == [True, True]


def test_a_data_set_of_one_class_is_refused(make_photos, tmp_path, done, refused):
    src = make_photos(tmp_path / "src", per_class=2)
    for name in ("n02102040", "n02979186"):
        shutil.rmtree(src / name)
    done("pack", src, tmp_path / "DATA", "--one-class")
    said = refused(tmp_path, "score", tmp_path / "DATA", tmp_path / "SCORES")
    assert "has one class, and scores compare classes; pack at least two" in said


@pytest.fixture(scope="module")
def pixels(packed, work):
    """``packed`` decoded to the side that scoring at size 17 would decode to itself."""
    Decode(data=packed, pixels=work / "PIXELS", size=stored_side(17)).run()
    return work / "PIXELS"


def test_scores_from_decoded_pixels_are_those_from_decoding(packed, pixels, scored, done):
    out = scored.with_name("FROM_PIXELS")
    done("score", packed, out, *SMALL, "--pixels", pixels)
    expected = ScoreTable.open(scored).columns
    for name, values in ScoreTable.open(out).columns.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    _, source = Provenance.read(out).inputs
    assert (source["role"], source["digest"]) == ("pixels", Provenance.read(pixels).digest)
    assert [line["stage"] for line in read_ledger(out)] == ["pack", "decode", "score"]
    assert own_lines(out)[0]["bytes_read"] == 60 * 3 * 19 * 19


def test_pixels_that_do_not_fit_are_refused(packed, val, pixels, tmp_path, refused):
    options = (tmp_path / "S", *SMALL, "--pixels", pixels)
    said = refused(tmp_path, "score", packed, *options, "--size", 20)
    assert f"size must be at most 19 (side of the images in {pixels}), got 20" in said
    assert said.endswith("choose a smaller --size, or decode with --size 23")
    said = refused(tmp_path, "score", val, *options)
    assert f"{pixels} was decoded from other images than {val} holds" in said


def test_crops_may_grow_and_be_of_larger_pixels(packed, tmp_path, done):
    Decode(data=packed, pixels=tmp_path / "PIXELS", size=40, squash=True).run()
    larger = ("--size", 24, "--start-size", 17, "--epochs", 4, "--pixels", tmp_path / "PIXELS")
    done("score", packed, tmp_path / "SCORES", *SMALL, *larger)
    assert Provenance.read(tmp_path / "SCORES").config["start_size"] == 17
    assert (ScoreTable.open(tmp_path / "SCORES").columns["visits"] == 4).all()


@pytest.mark.parametrize("way", ["resident", "streamed", "file", "pixels"])
def test_an_image_that_cannot_be_decoded_costs_its_own_score_only(
    damaged, tmp_path, done, monkeypatch, way
):
    command = ["score", damaged, tmp_path / "SCORES", *SMALL]
    monkeypatch.setattr("coreset.engine.data.image_cache.say", str)
    if way == "streamed":
        monkeypatch.setattr(Capacity, "of", lambda *_: Capacity(0, 1000, 0))
    if way == "file":
        monkeypatch.setattr(Capacity, "of", lambda *_: Capacity(0, 1000, 10**12))
    if way == "pixels":
        Decode(data=damaged, pixels=tmp_path / "PIXELS", size=19).run()
        command += ["--pixels", tmp_path / "PIXELS"]
    *_, told, _ = done(*command)
    listed = tmp_path / "SCORES" / "undecodable.json"
    assert told == f"1 of them could not be decoded: no score, or of fewer epochs, see {listed}"
    assert list(json.loads(listed.read_bytes())) == ["20"]
    lost = np.arange(60) == 20
    for name, values in ScoreTable.open(tmp_path / "SCORES").columns.items():
        absent = {"visits": 0, "predicted": -1}.get(name, np.nan)
        np.testing.assert_array_equal(values[lost], absent)
        assert np.isfinite(values[~lost]).all()
    (line,) = own_lines(tmp_path / "SCORES")
    assert (line["images"], line["undecodable"]) == (4 * 59, 1)
    assert done(*command)[-2] == told


def test_a_training_that_diverges_leaves_nothing_and_a_smaller_rate_may_follow(
    packed, tmp_path, done, refused
):
    command = ("score", packed, tmp_path / "SCORES", *LINEAR, "--epochs", 3)
    for options, message in (
        (("--lr", 1e30, "--weight-decay", 1e30), "is not finite in epoch 3, batch 1: the training"),
        (("--lr", 100, "--weight-decay", 1, "--batch", 16), "the mean loss of epoch 2 is "),
    ):
        said = refused(tmp_path, *command, *options, code=3)
        assert message in said
        assert said.endswith("the training diverged; use a smaller --lr")
    done(*command, "--lr", 0.01)


# The signal may raise between the opening of a file and the `with` that closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_image_that_is_mended_after_an_interruption_is_still_told(
    *, damaged, packed, tmp_path, interrupted, done, monkeypatch
):
    command = ("score", damaged, tmp_path / "SCORES", *SMALL, "--epochs", 6)
    with monkeypatch.context() as patch:
        patch.setattr("coreset.engine.scoring.run.COMMIT_EVERY_SECONDS", 0.0)
        interrupted(tmp_path / ".SCORES.partial" / COMMIT_NAME, *command)
    for shard in packed.glob("*.tar"):
        shutil.copy(shard, damaged / shard.name)
    done(*command)
    listed = json.loads((tmp_path / "SCORES" / "undecodable.json").read_bytes())
    assert list(listed) == ["20"]
    columns, lost = ScoreTable.open(tmp_path / "SCORES").columns, np.arange(60) == 20
    assert 0 < columns["visits"][lost] < 6
    assert (columns["visits"][~lost] == 6).all()
    assert np.isfinite(columns["aum"]).all()


def test_a_linear_proxy_pays_for_its_features_and_may_read_them_from_a_file(
    packed, tmp_path, done, monkeypatch, stored_bytes
):
    command = ("score", packed, tmp_path / "SCORES", *LINEAR, "--epochs", 2)
    done(*command)
    _, features = Provenance.read(tmp_path / "SCORES").inputs
    assert (features["role"], features["config"]["size"]) == ("features", 64)
    stages = [line["stage"] for line in read_ledger(tmp_path / "SCORES")]
    assert stages == ["pack", "embed", "score"]
    monkeypatch.setattr("coreset.engine.models.feature_rows.RESIDENT_BYTES", 0)
    done("score", packed, tmp_path / "MAPPED", *LINEAR, "--epochs", 2)
    assert stored_bytes(tmp_path / "MAPPED") == stored_bytes(tmp_path / "SCORES")
