"""Samplers: the ways to draw a coreset, what each needs, and how much CCS cuts by default.

A new sampler is one function in ``kernels`` and one entry of `SAMPLERS`; ``coreset select`` reads
choices, fields and help from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.condensed.condensed_set import class_too_small
from coreset.engine.runtime.fields import NoParameters, require_at_least, require_between
from coreset.kernels.samplers import ClassTooSmallError, Selection, ccs_coreset, random_coreset
from coreset.kernels.seeds import Stream, derived_seed
from coreset.shards.format.classes import recognise
from coreset.shards.format.dataset import Dataset

# The study's Table 6, hard labels, AUM: the best of 0.1, 0.3, 0.5, 0.7, 0.9 by data set and IPC.
_BEST_MISRATIOS: dict[tuple[str | None, int], float] = {
    ("imagenette", 10): 0.7,
    ("imagenette", 50): 0.3,
    ("imagenet-100", 10): 0.9,
    ("imagenet-100", 50): 0.7,
    ("imagenet-1k", 10): 0.9,
    ("imagenet-1k", 50): 0.5,
}
_CLASS_SIZE = 1281  # images of a class of ImageNet, on average


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Samples of a data set that a coreset may be drawn from."""

    dataset: Dataset
    ids: NDArray[np.int64]
    score: str = ""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each candidate."""
        return self.dataset.labels[self.ids]

    @property
    def n_classes(self) -> int:
        """Classes of the data set."""
        return len(self.dataset.classes)


Values: TypeAlias = NDArray[np.floating] | None
"""Easiness (low = hard) or a row of features of each candidate; None if neither is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A way to draw a coreset."""

    summary: str
    draw: Callable[[Candidates, Any, int, int, Any], Selection]
    """Draw from candidates with values by IPC, seed and parameters; ids are positions in them."""
    stream: int
    needs: Literal["nothing", "scores", "features"] = "nothing"
    parameters: type[Any] = NoParameters
    complete: Callable[[Any, Candidates, int], tuple[Any, str]] | None = None
    """Fill in the parameters that were not given; returns them and a line on what was assumed."""


@dataclass(frozen=True, kw_only=True)
class FeatureParameters:
    """Parameters of every sampler by features; those of one inherit from it."""

    features: Annotated[
        Path | None, tyro.conf.arg(help="Features of the data set (`coreset embed`).")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CcsParameters:
    """Parameters of CCS."""

    misratio: Annotated[
        float | None,
        tyro.conf.arg(
            help="Share of the hardest images of each class to cut first (ccs). Default: the "
            "study's Table 6 for aum on ImageNette, ImageNet-100 and ImageNet-1K at IPC 10 and 50; "
            "else by IPC over class size, a rule from that table: 0.9 where 1 of 128 images is "
            "chosen, 0.5 of 26, 0.3 of 10."
        ),
    ] = None
    bins: Annotated[
        int, tyro.conf.arg(help="Equal-width bins over the range of a class's scores (ccs).")
    ] = 50

    def __post_init__(self) -> None:
        require_at_least("bins", self.bins, 1)
        if self.misratio is not None:
            require_between("misratio", self.misratio, 0, 1)


def default_misratio(
    score: str, data: str | None, ipc: int, class_size: float
) -> tuple[float, str]:
    """Take the study's misratio, or else `misratio_by_share` and a line that says so."""
    if score == "aum" and (data, ipc) in _BEST_MISRATIOS:
        return _BEST_MISRATIOS[data, ipc], ""
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


def complete_ccs(
    parameters: CcsParameters, candidates: Candidates, ipc: int
) -> tuple[CcsParameters, str]:
    """Take the default misratio where none is given; also returns what is assumed."""
    if parameters.misratio is not None:
        return parameters, ""
    data = recognise(candidates.dataset.classes)
    class_size = candidates.ids.size / candidates.n_classes
    value, assumption = default_misratio(candidates.score, data, ipc, class_size)
    return replace(parameters, misratio=value), assumption


SAMPLERS: dict[str, Sampler] = {
    "ccs": Sampler(
        summary="cut the misratio hardest of a class, lay equal-width bins over the other scores, "
        "share the budget over the bins (smallest first), draw at random within each",
        draw=lambda candidates, easiness, ipc, seed, completed: ccs_coreset(
            easiness,
            candidates.labels,
            candidates.n_classes,
            ipc,
            seed,
            misratio=completed.misratio,
            n_bins=completed.bins,
        ),
        stream=Stream.CCS,
        needs="scores",
        parameters=CcsParameters,
        complete=complete_ccs,
    ),
    "random": Sampler(
        summary="draw at random",
        draw=lambda candidates, _values, ipc, seed, _parameters: random_coreset(
            candidates.labels, candidates.n_classes, ipc, seed
        ),
        stream=Stream.RANDOM,
    ),
}


def draw_coreset(
    method: str, candidates: Candidates, values: Values, *, ipc: int, seed: int, parameters: object
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Draw by the command's seed; returns ids, and classes whose misratio had to be lowered."""
    sampler = SAMPLERS[method]
    stream = derived_seed(seed, sampler.stream)
    try:
        selection = sampler.draw(candidates, values, ipc, stream, parameters)
    except ClassTooSmallError as error:
        raise class_too_small(candidates.dataset, error.class_index, error.size, ipc) from error
    return candidates.ids[selection.ids], selection.lowered
