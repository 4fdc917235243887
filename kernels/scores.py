"""Table of the per-sample scores: meaning, unit, and which end is hard."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ScoreMeaning:
    """Meaning of one score."""

    summary: str
    unit: str
    """Unit and range."""
    source: str
    """Paper that defines it."""
    low_is_hard: bool = False
    """A low value marks a hard (or mislabelled) sample."""
    trained: bool = True
    """A classifier is trained for it."""


_CCS = "Zheng et al. 2023 (CCS)"

SCORES: Mapping[str, ScoreMeaning] = {
    "aum": ScoreMeaning(
        "probability of the label minus the largest other, mean over all epochs",
        "probability, -1 to 1",
        f"{_CCS}, which sums",
        low_is_hard=True,
    ),
    "aum_logit": ScoreMeaning(
        "logit of the label minus the largest other, mean over all epochs",
        "logit, unbounded",
        "Pleiss et al. 2020",
        low_is_hard=True,
    ),
    "margin_variance": ScoreMeaning(
        "variance over all epochs of the margin that aum averages",
        "squared probability, 0 to 1",
        "Swayamdipta et al. 2020, of margins",
    ),
    "el2n": ScoreMeaning(
        "distance of the softmax to the one-hot label (L2), mean over the early epochs",
        "probability, 0 to sqrt(2)",
        f"Paul et al. 2021; {_CCS}, which sums",
    ),
    "el2n_single": ScoreMeaning(
        "the same in the last of the early epochs alone",
        "probability, 0 to sqrt(2)",
        "Paul et al. 2021",
    ),
    "forgetting": ScoreMeaning(
        "times a sample went from right to wrong; 0 for one that was never right",
        "count, 0 to half the epochs",
        f"Toneva et al. 2019; {_CCS}",
    ),
    "forgetting_toneva": ScoreMeaning(
        "the same, but the number of epochs for one that was never right",
        "count, 0 to the epochs",
        "Toneva et al. 2019",
    ),
    "correctness": ScoreMeaning(
        "presentations at which the largest logit was the label's",
        "count, 0 to the epochs",
        "Swayamdipta et al. 2020",
        low_is_hard=True,
    ),
    "loss_mean": ScoreMeaning(
        "cross-entropy, mean over all epochs",
        "nats, 0 and up",
        "small-loss criterion",
    ),
    "entropy_mean": ScoreMeaning(
        "entropy of the softmax, mean over all epochs",
        "nats, 0 to log(classes)",
        "Coleman et al. 2020",
    ),
    "dyn_unc": ScoreMeaning(
        "deviation of the label's probability over ten epochs, mean over all such windows",
        "probability, 0 to 0.53",
        "He et al. 2024 (Dyn-Unc)",
    ),
    "dual": ScoreMeaning(
        "the same, each window times one minus the mean probability of the label",
        "squared probability, 0 to 0.53",
        "Cho et al. 2025 (DUAL)",
    ),
    "loss_final": ScoreMeaning(
        "cross-entropy of the trained network on the image as it is",
        "nats, 0 and up",
        _CCS,
    ),
    "entropy_final": ScoreMeaning(
        "entropy of the trained network's softmax on the image as it is",
        "nats, 0 to log(classes)",
        _CCS,
    ),
    "tdds": ScoreMeaning(
        "spread over ten epochs of the change of the softmax from epoch to epoch (KL), moving "
        "average; on request",
        "nats, 0 and up",
        "Zhang et al. 2024 (TDDS)",
    ),
    "confidence_oof": ScoreMeaning(
        "probability of the label by a classifier that did not train on the sample (out of "
        "fold); on request",
        "probability, 0 to 1",
        "Northcutt et al. 2021; cleanlab's self-confidence",
        low_is_hard=True,
    ),
    "margin_oof": ScoreMeaning(
        "the same classifier's probability of the label minus the largest other; on request",
        "probability, -1 to 1",
        "Northcutt et al. 2021; cleanlab's normalized margin",
        low_is_hard=True,
    ),
    "mean_margin": ScoreMeaning(
        "cosine of the features to the mean of the class's other images minus the largest to "
        "another class's mean; untrained, of --proxy neighbours",
        "cosine, -2 to 2",
        "margin of the nearest class mean (Mensink et al. 2013)",
        low_is_hard=True,
        trained=False,
    ),
    "knn_disagreement": ScoreMeaning(
        "share of other labels among the ten nearest neighbours by cosine of the features; "
        "untrained, of --proxy neighbours",
        "share, 0 to 1",
        "Smith et al. 2014 (kDN)",
        trained=False,
    ),
}
"""Scores by name; `Dynamics.scores` gives all but the last seven."""


_Scores = TypeVar("_Scores", float, NDArray[Any])


def easiness(name: str, scores: _Scores) -> _Scores:
    """Orient scores so that low is hard, as samplers expect; NaN stays NaN."""
    return scores if SCORES[name].low_is_hard else -scores
