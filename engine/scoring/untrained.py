"""Scores of frozen features without training (`coreset score --proxy neighbours`)."""

from pathlib import Path

import numpy as np

from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.store import FEATURES_NAME, SCORES_NAME, write_columns
from coreset.engine.artifacts.writer import ArtifactWriter
from coreset.engine.models.feature_rows import feature_table
from coreset.engine.models.features import cached_features
from coreset.engine.runtime.progress import progress
from coreset.engine.scoring.score_table import PREDICTED, VISITS
from coreset.engine.scoring.setup import Setup
from coreset.kernels.feature_scores import N_NEIGHBOURS, class_mean_margins, knn_disagreement
from coreset.shards.errors import UsageError


def commit_untrained_scores(work: ArtifactWriter, setup: Setup) -> None:
    """Score the features and commit the columns as a training does, after 0 epochs."""
    dataset = setup.dataset
    n, labels = len(dataset), dataset.labels
    store = cached_features(dataset, setup.features) / FEATURES_NAME
    features, n_nearest = feature_table(store, work.scratch), min(N_NEIGHBOURS, n - 1)
    try:
        margins, predicted = class_mean_margins(features, labels, len(dataset.classes))
        with progress("score", n) as bar:
            shares = [np.empty(0, np.float32)]
            for block in knn_disagreement(features, labels, n_nearest, str(setup.device)):
                shares.append(block)
                bar.advance(len(block))
    except ValueError as error:
        raise UsageError(str(error)) from error
    columns = {
        "mean_margin": margins,
        "knn_disagreement": np.concatenate(shares),
        PREDICTED: predicted,
        VISITS: np.zeros(n, np.int32),
    }

    def write(directory: Path) -> None:
        write_columns(directory / SCORES_NAME, columns, {"epochs": 0, **work.provenance.binds})

    Checkpoints(work.scratch).commit(1, write)
    work.meter.images = n
    work.meter.notes["note"] = _note(n_nearest, int(np.isnan(margins).sum()))


def _note(n_nearest: int, n_unknown: int) -> str:
    """Say what differs from the definitions of the scores; nothing as a rule."""
    notes: list[str] = []
    if n_nearest < N_NEIGHBOURS:
        notes.append(f"knn_disagreement is of {n_nearest} neighbours, for there are no more images")
    if n_unknown:
        notes.append(f"{n_unknown} images have no mean_margin: each is the only one of its class")
    return "; ".join(notes)
