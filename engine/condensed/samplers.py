"""Samplers by name: what each needs, its parameters, and how much is cut by default.

A new sampler is one function in ``kernels`` and one entry of `SAMPLERS`; ``coreset select`` reads
choices, fields and help from it.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from coreset.engine.condensed.misratio import default_misratio
from coreset.engine.condensed.selection import Candidates, Ints, Sampler, by_class
from coreset.engine.runtime.fields import class_too_small, require_at_least, require_between
from coreset.kernels import feature_samplers
from coreset.kernels.samplers import (
    ClassTooSmallError,
    Selection,
    ccs_coreset,
    double_end_coreset,
    extreme_coreset,
    random_coreset,
)
from coreset.kernels.seeds import Stream, derived_seed
from coreset.shards.errors import UsageError
from coreset.shards.format.classes import recognise

MOST_BINS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class MisratioParameters:
    """Parameters of samplers that cut the hardest."""

    misratio: Annotated[
        float | None,
        tyro.conf.arg(
            help="Share of the hardest images of each class to cut first (ccs, double-end). "
            "Default: the study's Table 6 for aum, also of --proxy concept, on ImageNette, "
            "ImageNet-100 and ImageNet-1K at IPC 10 and 50; else by IPC over class size, a rule "
            "from that table: 0.9 where 1 of 128 images is chosen, 0.5 of 26, 0.3 of 10."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.misratio is not None:
            require_between("misratio", self.misratio, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CcsParameters(MisratioParameters):
    """Parameters of CCS."""

    bins: Annotated[
        int | Literal["auto"],
        tyro.conf.arg(
            help="Equal-width bins over the range of a class's scores (ccs). Of more bins than "
            "--ipc, the fullest get an image each; auto: as many as --ipc, at most 50, so that "
            "every bin that is not empty gets one."
        ),
    ] = MOST_BINS
    dialect: Annotated[
        Literal["published"] | None,
        tyro.conf.arg(
            help="published: bins as the authors' code lays them, in float32 and up to 1.0001 "
            "times the highest score (ccs)."
        ),
    ] = None

    def __post_init__(self) -> None:
        MisratioParameters.__post_init__(self)
        if self.bins != "auto":
            require_at_least("bins", self.bins, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleEndParameters(MisratioParameters):
    """Parameters of cuts at both ends."""

    cut_easy: Annotated[
        float, tyro.conf.arg(help="Share of the easiest images of each class to cut (double-end).")
    ] = 0.0

    def __post_init__(self) -> None:
        MisratioParameters.__post_init__(self)
        require_between("cut-easy", self.cut_easy, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NearParameters:
    """Parameters of draws without near copies."""

    near: Annotated[
        float,
        tyro.conf.arg(help="Cosine of features above which two images are copies (dedup-random)."),
    ] = 0.95

    def __post_init__(self) -> None:
        require_between("near", self.near, 0, 1)


def complete_misratio(
    parameters: Any,  # noqa: ANN401 - of any sampler that has a misratio
    candidates: Candidates,
    budgets: Ints,
) -> tuple[Any, str]:
    """Take the default misratio where none is given; also returns what is assumed."""
    budgets = budgets[budgets > 0]  # groups without images are asked for none
    if getattr(parameters, "bins", None) == "auto":
        parameters = replace(parameters, bins=min(MOST_BINS, int(budgets.min())))
    if parameters.misratio is not None:
        return parameters, ""
    data, ipc = recognise(candidates.dataset.classes), round(budgets.mean())
    class_size = candidates.ids.size / budgets.size
    value, assumption = default_misratio(candidates.score, data, ipc, class_size)
    return replace(parameters, misratio=value), assumption


SAMPLERS: dict[str, Sampler] = {
    "ccs": Sampler(
        summary="cut the misratio hardest of a class, lay equal-width bins over the other scores, "
        "share the budget over the bins (smallest first), draw at random within each",
        draw=lambda those, budgets, seed, own: ccs_coreset(
            those.easiness,
            those.labels,
            budgets,
            seed,
            misratio=own.misratio,
            n_bins=own.bins,
            published=own.dialect is not None,
        ),
        stream=Stream.CCS,
        needs=("scores",),
        parameters=CcsParameters,
        complete=complete_misratio,
    ),
    "random": Sampler(
        summary="draw at random",
        draw=lambda those, budgets, seed, _: random_coreset(those.labels, budgets, seed),
    ),
    "hardest": Sampler(
        summary="take the hardest",
        draw=lambda those, budgets, _seed, _: extreme_coreset(
            those.easiness, those.labels, budgets, easy=False
        ),
        needs=("scores",),
    ),
    "easiest": Sampler(
        summary="take the easiest",
        draw=lambda those, budgets, _seed, _: extreme_coreset(
            those.easiness, those.labels, budgets, easy=True
        ),
        needs=("scores",),
    ),
    "double-end": Sampler(
        summary="cut the misratio hardest and --cut-easy easiest of a class, then draw at random",
        draw=lambda those, budgets, seed, own: double_end_coreset(
            those.easiness,
            those.labels,
            budgets,
            seed,
            misratio=own.misratio,
            cut_easy=own.cut_easy,
        ),
        stream=Stream.DOUBLE_END,
        needs=("scores",),
        parameters=DoubleEndParameters,
        complete=complete_misratio,
    ),
    "moderate": Sampler(
        summary="take those whose distance to the class's centre is nearest to the median distance",
        draw=by_class(lambda those: feature_samplers.moderate(those.features, those.budget)),
        needs=("features",),
    ),
    "k-center": Sampler(
        summary="take the image that is farthest from those taken, again and again",
        draw=by_class(lambda those: feature_samplers.k_center(those.features, those.budget)),
        needs=("features",),
    ),
    "herding": Sampler(
        summary="take the image that brings the mean of those taken nearest to the class's mean",
        draw=by_class(lambda those: feature_samplers.herding(those.features, those.budget)),
        needs=("features",),
    ),
    "facility-location": Sampler(
        summary="take the image that adds most to how near each image is to one taken",
        draw=by_class(
            lambda those: feature_samplers.facility_location(those.features, those.budget)
        ),
        needs=("features",),
    ),
    "d2": Sampler(
        summary="take hard images that are unlike each other (D2, on a graph of neighbours)",
        draw=by_class(
            lambda those: feature_samplers.d2(those.features, those.easiness, those.budget)
        ),
        needs=("scores", "features"),
    ),
    "prototypes": Sampler(
        summary="take the image nearest to each of --ipc k-means centres",
        draw=by_class(
            lambda those: feature_samplers.prototypes(those.features, those.budget, those.seed)
        ),
        stream=Stream.PROTOTYPES,
        needs=("features",),
    ),
    "dedup-random": Sampler(
        summary="draw at random, without near copies of what is drawn",
        draw=by_class(
            lambda those: feature_samplers.dedup_random(
                those.features, those.budget, those.seed, those.parameters.near
            )
        ),
        stream=Stream.DEDUP_RANDOM,
        needs=("features",),
        parameters=NearParameters,
    ),
}


def draw_coreset(
    method: str, candidates: Candidates, budgets: Ints, seed: int, parameters: object
) -> Selection:
    """Draw by the command's seed; too small a class is refused by name."""
    sampler = SAMPLERS[method]
    try:
        return sampler.draw(candidates, budgets, derived_seed(seed, sampler.stream), parameters)
    except ClassTooSmallError as error:
        name, n = candidates.names[error.class_index], int(budgets[error.class_index])
        raise class_too_small(name, error.size, "ipc", n, kind=candidates.kind) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
