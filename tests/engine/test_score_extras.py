"""What a scoring keeps on request, and how it stops in the middle of an epoch."""

import json

import numpy as np
import pytest
import torch

from coreset.engine.artifacts.checkpoints import COMMIT_NAME, Checkpoints
from coreset.engine.data.order import BatchOrder
from coreset.engine.scoring import score_table
from coreset.engine.scoring.accumulators import ACCUMULATORS, MARGINS_NAME
from coreset.engine.scoring.score_table import ScoreTable
from coreset.kernels.scores import SCORES, ScoreMeaning

SMALL = ("--size", 17, "--epochs", 3, "--batch", 16, "--lr", 0.01)  # as the fixture `scored`


@pytest.fixture(scope="module")
def with_extras(packed, work, made):
    out = work / "EXTRAS"
    return made(out, "score", packed, out, *SMALL, "--tdds", "--record-margins")


def test_the_record_of_margins_averages_to_aum_and_changes_no_score(with_extras, scored):
    import zarr

    margins = np.asarray(zarr.open_group(with_extras / MARGINS_NAME, mode="r")["margins"])
    assert (margins.shape, margins.dtype) == ((3, 60), np.dtype(np.float16))
    found, plain = ScoreTable.open(with_extras).columns, ScoreTable.open(scored).columns
    np.testing.assert_allclose(margins.astype(np.float64).mean(0), found["aum"], atol=1e-3)
    np.testing.assert_allclose(
        margins.astype(np.float64).var(0), found["margin_variance"], atol=2e-3
    )
    assert set(found) == set(plain) | {"tdds"}
    for name, values in plain.items():
        np.testing.assert_array_equal(found[name], values)
    assert np.isfinite(found["tdds"]).all()
    assert (found["tdds"] >= 0).all()
    assert found["tdds"].std() > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_scoring_stops_between_two_batches_and_continues_to_the_same_bytes(
    *, packed, with_extras, tmp_path, interrupted, coreset, stored_bytes, monkeypatch
):
    command = ("score", packed, tmp_path / "SCORES", *SMALL, "--tdds", "--record-margins")
    scratch = tmp_path / ".SCORES.partial"
    with monkeypatch.context() as patch:
        patch.setattr("coreset.engine.scoring.run.COMMIT_WITHIN_SECONDS", 0.0)
        interrupted(scratch / COMMIT_NAME, *command)
    (*_, newest) = sorted(scratch.glob("gen-*/state.json"))
    state = json.loads(newest.read_bytes())
    assert state["batch"] > 0, "the first commit is one in the middle of an epoch"
    assert state["steps"] == 4 * state["epoch"] + state["batch"]
    told = coreset(*command)
    assert (told.code, told.err) == (
        0,
        "tdds keeps 0.00 GB on cpu, and writes them at every commit\n",
    )
    assert stored_bytes(tmp_path / "SCORES") == stored_bytes(with_extras)


class LargestLogit:
    """A toy accumulator: the largest logit that a sample ever had."""

    def __init__(self, context):
        n = len(context.setup.dataset)
        self.largest = torch.full((n,), -torch.inf, device=context.setup.device)
        self.epochs = []

    def begin_epoch(self, epoch):
        self.epochs.append(epoch)

    def update(self, logits, _labels, ids, _stats):
        largest = torch.maximum(self.largest[ids], logits.float().amax(1))
        self.largest[ids] = largest

    def end_epoch(self, epoch):
        assert self.epochs[-1] == epoch

    def state(self):
        return {"largest": self.largest.cpu()}

    def load_state(self, state, epochs):
        self.largest.copy_(state["largest"])
        self.epochs = list(range(epochs))

    def scores(self):
        return {"largest_logit": self.largest.numpy()}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_accumulator_that_is_registered_in_one_place_is_scored_saved_and_resumed(
    *, packed, scored, tmp_path, done, interrupted, monkeypatch, stored_bytes
):
    meaning = ScoreMeaning("largest logit", "logit, unbounded", low_is_hard=True, source="a test")
    monkeypatch.setitem(ACCUMULATORS, "toy", LargestLogit)
    monkeypatch.setattr(score_table, "SCORES", {**SCORES, "largest_logit": meaning})
    done("score", packed, tmp_path / "SCORES", *SMALL)
    columns, plain = ScoreTable.open(tmp_path / "SCORES").columns, ScoreTable.open(scored).columns
    assert set(columns) == set(plain) | {"largest_logit"}
    for name, values in plain.items():
        np.testing.assert_array_equal(columns[name], values)
    assert np.isfinite(columns["largest_logit"]).all()
    assert "largest_logit" in ScoreTable.open(tmp_path / "SCORES").names
    with monkeypatch.context() as patch:
        patch.setattr("coreset.engine.scoring.run.COMMIT_WITHIN_SECONDS", 0.0)
        interrupted(
            tmp_path / ".AGAIN.partial" / COMMIT_NAME, "score", packed, tmp_path / "AGAIN", *SMALL
        )
    assert list(tmp_path.glob(".AGAIN.partial/gen-*/toy.safetensors"))
    done("score", packed, tmp_path / "AGAIN", *SMALL)
    assert stored_bytes(tmp_path / "AGAIN") == stored_bytes(tmp_path / "SCORES")


def test_tdds_needs_room(packed, tmp_path, refused, monkeypatch):
    command = ("score", packed, tmp_path / "S", *SMALL, "--tdds")
    monkeypatch.setattr("coreset.engine.data.residency.available_bytes", lambda: 1000)
    said = refused(tmp_path, *command, code=4)
    assert "tdds keeps 0.00 GB on cpu, which has 0.00 GB available; leave out --tdds" in said


def test_a_scoring_without_the_last_look_has_no_final_scores(packed, tmp_path, done):
    done("score", packed, tmp_path / "S", *SMALL, "--no-final")
    assert not {"loss_final", "entropy_final", "predicted"} & set(
        ScoreTable.open(tmp_path / "S").columns
    )


def test_the_last_look_is_an_evaluation_without_augmentation(packed, scored):
    """By the weights that a scoring leaves: in eval mode on the centre of every image."""
    from safetensors.torch import load_file
    from torch.nn.functional import cross_entropy

    from coreset.engine.data.geometry import Geometry
    from coreset.engine.data.stream import ImageStream
    from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD, build_network
    from coreset.engine.runtime.device import half_precision
    from coreset.engine.training.trainer import WEIGHTS_NAME
    from coreset.kernels.augment import normalised
    from coreset.shards.format.dataset import Dataset

    newest = Checkpoints(scored).latest()
    assert newest is not None
    network = build_network("resnet18", 3, norm="batch", seed=1)
    network.load_state_dict(load_file(newest[1] / WEIGHTS_NAME))
    with ImageStream(Dataset.open(packed), Geometry(19, 19)) as source:
        (batch,) = source.epoch(BatchOrder(batch=60))
    images = normalised(batch.images[..., 1:18, 1:18], IMAGENET_MEAN, IMAGENET_STD)
    with torch.inference_mode(), half_precision(torch.device("cpu")):
        logits = network.eval()(images).float()
    found, p = ScoreTable.open(scored).columns, logits.softmax(1)
    loss = cross_entropy(logits, batch.labels, reduction="none").numpy()
    np.testing.assert_allclose(found["loss_final"], loss, rtol=0.1, atol=0.05)
    entropy = -(p * p.log()).nan_to_num(0).sum(1).numpy()
    np.testing.assert_allclose(found["entropy_final"], entropy, rtol=0.1, atol=0.05)
    assert (found["predicted"] == logits.argmax(1).numpy()).mean() > 0.95
