"""Defaults of the misratio: the study's values, or else a rule from them."""

from math import log

from coreset.engine.models.concept_bank import CONCEPT, VISUAL
from coreset.shards.errors import UsageError

# The study's Table 6, hard labels: the best of 0.1, 0.3, 0.5, 0.7, 0.9 by data set, IPC and score.
_BEST_MISRATIOS: dict[tuple[str | None, int], dict[str, float]] = {
    ("imagenette", 10): {"aum": 0.7, "concept_aum": 0.9},
    ("imagenette", 50): {"aum": 0.3, "concept_aum": 0.9},
    ("imagenet-100", 10): {"aum": 0.9, "concept_aum": 0.7},
    ("imagenet-100", 50): {"aum": 0.7, "concept_aum": 0.7},
    ("imagenet-1k", 10): {"aum": 0.9, "concept_aum": 0.9},
    ("imagenet-1k", 50): {"aum": 0.5, "concept_aum": 0.5},
}
_CLASS_SIZE = 1281  # images of a class of ImageNet, on average


def default_misratio(
    score: str, data: str | None, ipc: int, class_size: float
) -> tuple[float, str]:
    """Take the study's misratio, or else `misratio_by_share` and a line that says so.

    Raises:
        UsageError: For scores by visual prototypes, which the study does not know.
    """
    best = _BEST_MISRATIOS.get((data, ipc), {})
    if score in best:
        return best[score], ""
    if score.startswith(CONCEPT + VISUAL):
        raise UsageError(
            f"the study gives no misratio for {score}, scores by visual prototypes; give "
            "--misratio, such as 0.5"
        )
    value = misratio_by_share(ipc / max(1.0, class_size))
    return value, (
        f"assumed: misratio {value:g}, by a rule from the study's Table 6 for {ipc} of "
        f"{class_size:,.0f} images a class; --misratio sets another"
    )


def misratio_by_share(share: float) -> float:
    """Derive a misratio from IPC over class size, to one decimal, by a rule from the study's table.

    In the mean over its data sets 0.9 is best at 10 of 1,281 images and 0.5 at 50: a line through
    both over the logarithm of the share.
    """
    steps = log(share * _CLASS_SIZE / 10) / log(5)
    return round(min(0.9, max(0.0, 0.9 - 0.4 * steps)), 1)
