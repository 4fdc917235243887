"""Wrong labels found by scores of the linear proxy, beside cleanlab on the same frozen features."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.bench.harness import Options, Row
from coreset.bench.processes import run_coreset
from coreset.engine.condensed.comparison import flipped_labels
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.engine.scoring.score_table import ISSUE_OOF, ScoreTable
from coreset.kernels.scores import easiness

PERCENTS, SEEDS = (5, 25, 50), (0, 1, 2)
BACKBONE = "tf_efficientnet_lite0"
FOLDS = 5
"""Cleanlab's own default (``CleanLearning(cv_n_folds=5)``)."""
GOAL = -0.005
"""Least difference of the areas, ours minus cleanlab's, in every run."""
OURS, THEIRS = "confidence_oof", "self_confidence"


@dataclass(frozen=True, slots=True)
class Judged:
    """Judgement of every label by one contender."""

    areas: Mapping[str, float]
    """Area under the ROC for flipped labels, by score."""
    issues: NDArray[np.bool_]
    """Labels taken for wrong, shape (n,)."""


def labels(setting: Options) -> Iterator[Row]:
    """Yield areas of both by noise and seed, and the labels that both take for wrong.

    Data sets and scores stay in ``work`` and are not made again.
    """
    work, data = setting.work.resolve(), setting.data.resolve()
    os.environ["CORESET_CACHE"] = str(work / "cache")
    truth = data / "labels" / "noisy_imagenette.csv"
    linear = ("--proxy", "linear", "--backbone", BACKBONE, "--folds", FOLDS, "--device", "cpu")
    for percent in PERCENTS:
        noisy, column = work / f"noisy-{percent}", f"noisy_labels_{percent}"
        source = data / "imagenette" / "train"
        run_coreset("pack", source, noisy, "--labels", truth, "--column", column)
        runs: list[Row] = []
        for seed in SEEDS:
            scores = work / f"noisy-{percent}-folds-{seed}"
            run_coreset("score", noisy, scores, *linear, "--seed", seed)
            scored = ScoreTable.open(scores)
            flipped = flipped_labels(scored.dataset, truth, "noisy_labels_0")
            both = by_coreset(scored, flipped), by_cleanlab(scored, flipped, seed)
            runs.append(row_of(percent, seed, *both, flipped))
            yield runs[-1]
        yield medians_of(percent, runs)


def by_coreset(scored: ScoreTable, flipped: NDArray[np.bool_]) -> Judged:
    """Judge labels by every score, and by the issues of a scoring with folds."""
    issues = scored.columns.get(ISSUE_OOF)
    if issues is None:
        raise ValueError(f"{scored.path} has no label issues; score it with --folds")
    columns = {name: scored.values(name) for name in scored.names}
    return Judged(areas_of(columns, flipped, scored.ids), issues)


def areas_of(
    columns: Mapping[str, NDArray[np.float32]],
    flipped: NDArray[np.bool_],
    ids: NDArray[np.int64],
) -> dict[str, float]:
    """Return the area under the ROC of each score's hard end, over the samples ``ids`` alone."""
    from sklearn.metrics import roc_auc_score

    return {
        name: float(roc_auc_score(flipped[ids], -easiness(name, values[ids])))
        for name, values in columns.items()
    }


def by_cleanlab(scored: ScoreTable, flipped: NDArray[np.bool_], seed: int) -> Judged:
    """Judge labels as cleanlab's image tutorials do: cross-validated logistic regression."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    features = features_for(scored.dataset, FeatureSpec(backbone=BACKBONE)).astype(np.float32)
    given = scored.dataset.labels
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    probabilities: Any = cross_val_predict(
        LogisticRegression(max_iter=1000), features, given, cv=folds, method="predict_proba"
    )
    quality = get_label_quality_scores(given, probabilities, method=THEIRS)
    areas = {THEIRS: float(roc_auc_score(flipped, -quality))}
    return Judged(areas, find_label_issues(given, probabilities, n_jobs=1))


def row_of(
    percent: int, seed: int, ours: Judged, theirs: Judged, flipped: NDArray[np.bool_]
) -> Row:
    """Return both judgements of one run."""
    difference = ours.areas[OURS] - theirs.areas[THEIRS]
    return {
        "percent": percent,
        "seed": seed,
        "images": flipped.size,
        "flipped": int(flipped.sum()),
        "folds": FOLDS,
        "areas": ours.areas,
        "issues": _rates(ours.issues, flipped),
        "peer": {name: version(name) for name in ("cleanlab", "scikit-learn")},
        "peer_areas": theirs.areas,
        "peer_issues": _rates(theirs.issues, flipped),
        "difference": difference,
        "goal": GOAL,
        "met": difference >= GOAL,
    }


def _rates(issues: NDArray[np.bool_], flipped: NDArray[np.bool_]) -> dict[str, float]:
    right = int((issues & flipped).sum())
    return {
        "found": int(issues.sum()),
        "precision": right / max(1, int(issues.sum())),
        "recall": right / max(1, int(flipped.sum())),
    }


def medians_of(percent: int, runs: Sequence[Row]) -> Row:
    """Return medians over seeds; the goal is for the worst of them."""
    row: Row = {"percent": percent, "seeds": [run["seed"] for run in runs], "folds": FOLDS}
    for kind in ("areas", "issues", "peer_areas", "peer_issues"):
        row[kind] = {name: median(run[kind][name] for run in runs) for name in runs[0][kind]}
    worst = min(run["difference"] for run in runs)
    return row | {"worst_difference": worst, "goal": GOAL, "met": worst >= GOAL}
