"""Wrong labels found by out-of-fold scores, beside cleanlab on the same frozen features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.bench.harness import Row
from coreset.bench.score_noise import AUM_GOALS, BACKBONE, SEEDS, Noisy
from coreset.bench.score_training import Setting
from coreset.engine.artifacts.ledger import Stopwatch
from coreset.engine.condensed.comparison import cost_of
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.engine.scoring.score_table import ScoreTable, flipped_labels

FOLDS = 5
"""Cleanlab's own default (``CleanLearning(cv_n_folds=5)``)."""
GOAL = -0.005
"""Least difference of the areas, ours minus cleanlab's, in every run."""
OURS, THEIRS = "confidence_oof", "self_confidence"


@dataclass(frozen=True, slots=True)
class Judged:
    """Judgement of every label by one contender."""

    areas: dict[str, float]
    """Area under the ROC for flipped labels, by score."""
    issues: NDArray[np.bool_]
    """Labels taken for wrong, shape (n,)."""
    seconds: float


def labels(setting: Setting) -> Iterator[Row]:
    """Yield areas of both by noise and seed, and the labels that both take for wrong."""
    noisy = Noisy(setting)
    for percent in AUM_GOALS:
        runs: list[Row] = []
        for seed in SEEDS:
            options = ("--proxy", "linear", "--backbone", BACKBONE, "--folds", FOLDS)
            scored = ScoreTable.open(noisy.scores(percent, "folds", *options, seed=seed))
            flipped = flipped_labels(scored.dataset, noisy.truth, "noisy_labels_0")
            ours = _ours(scored, noisy)
            row = row_of(percent, seed, ours, by_cleanlab(scored, flipped, seed), flipped)
            runs.append(row)
            yield row
        yield medians_of_labels(percent, runs)


def _ours(scored: ScoreTable, noisy: Noisy) -> Judged:
    issues = scored.label_issues
    if issues is None:
        raise ValueError(f"{scored.path} has no label issues; score it with --folds")
    return Judged(noisy.areas(scored.path), issues, cost_of(scored).wall_seconds)


def by_cleanlab(scored: ScoreTable, flipped: NDArray[np.bool_], seed: int) -> Judged:
    """Judge labels as cleanlab's image tutorials do: cross-validated logistic regression."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    features = features_for(scored.dataset, FeatureSpec(backbone=BACKBONE)).astype(np.float32)
    given, clock = scored.dataset.labels, Stopwatch()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    probabilities: Any = cross_val_predict(
        LogisticRegression(max_iter=1000), features, given, cv=folds, method="predict_proba"
    )
    methods: tuple[Any, ...] = (THEIRS, "normalized_margin")
    scores = {
        method: get_label_quality_scores(given, probabilities, method=method) for method in methods
    }
    areas = {method: float(roc_auc_score(flipped, -scores[method])) for method in methods}
    return Judged(areas, find_label_issues(given, probabilities, n_jobs=1), clock.seconds)


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
        "wall_seconds": ours.seconds,
        "peer": {name: version(name) for name in ("cleanlab", "scikit-learn")},
        "peer_areas": theirs.areas,
        "peer_issues": _rates(theirs.issues, flipped),
        "peer_wall_seconds": round(theirs.seconds, 3),
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


def medians_of_labels(percent: int, runs: Sequence[Row]) -> Row:
    """Return medians over seeds; the goal is for the worst of them."""
    row: Row = {"percent": percent, "seeds": [run["seed"] for run in runs], "folds": FOLDS}
    for kind in ("areas", "issues", "peer_areas", "peer_issues"):
        row[kind] = {name: median(run[kind][name] for run in runs) for name in runs[0][kind]}
    worst = min(run["difference"] for run in runs)
    return row | {"worst_difference": worst, "goal": GOAL, "met": worst >= GOAL}
