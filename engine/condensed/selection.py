"""Samplers: the ways to draw a coreset, and what each of them needs.

A new sampler is one function in ``kernels`` and one entry of `SAMPLERS`; ``coreset select`` reads
choices, fields and help from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.engine.condensed.condensed_set import class_too_small
from coreset.engine.condensed.misratio import default_misratio
from coreset.engine.runtime.checks import require_at_least, require_between
from coreset.engine.runtime.choices import NoParameters
from coreset.kernels.seeds import Stream, derived_seed
from coreset.shards.errors import UsageError
from coreset.shards.format.classes import recognise
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.kernels.samplers import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Samples of a data set that a coreset may be drawn from."""

    dataset: Dataset
    ids: NDArray[np.int64]
    """Ascending."""
    score: str = ""
    """Name of the score that a sampler by scores goes by."""

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
    draw: "Callable[[Candidates, Any, int, int, Any], Selection]"
    """Draw from candidates with values by IPC, seed and parameters; ids are positions in them."""
    stream: int
    """Number of the random stream. With one stream, samplers would share images at one seed."""
    needs: Literal["nothing", "scores", "features"] = "nothing"
    parameters: type[Any] = NoParameters
    complete: Callable[[Any, Candidates, int], tuple[Any, str]] = lambda given, _candidates, _ipc: (
        given,
        "",
    )
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
        int,
        tyro.conf.arg(help="Equal-width bins over the range of a class's scores (ccs)."),
    ] = 50

    def __post_init__(self) -> None:
        require_at_least("bins", self.bins, 1)
        if self.misratio is not None:
            require_between("misratio", self.misratio, 0, 1)


def _with_misratio(
    parameters: CcsParameters, candidates: Candidates, ipc: int
) -> tuple[CcsParameters, str]:
    """Take the default misratio for a data set and IPC where none is given."""
    if parameters.misratio is not None:
        return parameters, ""
    data = recognise(candidates.dataset.classes)
    class_size = candidates.ids.size / candidates.n_classes
    default = default_misratio(candidates.score, data, ipc, class_size)
    if default is None:
        raise UsageError(
            f"misratio has no default for score {candidates.score}; give --misratio (0.9 cuts "
            "most, 0.3 suits large ipc)"
        )
    return replace(parameters, misratio=default.value), default.assumption


def _ccs(
    candidates: Candidates,
    easiness: NDArray[np.floating],
    ipc: int,
    seed: int,
    parameters: CcsParameters,
) -> "Selection":
    from coreset.kernels.samplers import ccs_coreset

    return ccs_coreset(
        easiness,
        candidates.labels,
        candidates.n_classes,
        ipc,
        misratio=parameters.misratio or 0.0,  # never None once completed
        n_bins=parameters.bins,
        seed=seed,
    )


def _random(
    candidates: Candidates, _values: Values, ipc: int, seed: int, _parameters: NoParameters
) -> "Selection":
    from coreset.kernels.samplers import random_coreset

    return random_coreset(candidates.labels, candidates.n_classes, ipc, seed)


SAMPLERS: dict[str, Sampler] = {
    "ccs": Sampler(
        summary="cut the misratio hardest of a class, lay equal-width bins over the other scores, "
        "share the budget over the bins (smallest first), draw at random within each",
        draw=_ccs,
        stream=Stream.CCS,
        needs="scores",
        parameters=CcsParameters,
        complete=_with_misratio,
    ),
    "random": Sampler(summary="draw at random", draw=_random, stream=Stream.RANDOM),
}
"""Samplers by name."""


def draw_coreset(
    method: str,
    candidates: Candidates,
    values: Values,
    *,
    ipc: int,
    seed: int,
    parameters: object,
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Draw a coreset; returns its ids, and the classes whose misratio had to be lowered.

    Args:
        method: Name of the sampler.
        candidates: Samples to draw from.
        values: Easiness or features of each, as the sampler needs.
        ipc: Images per class.
        seed: As given to the command.
        parameters: Completed parameters of the sampler.

    Raises:
        UsageError: A class has fewer than ``ipc`` candidates.
    """
    from coreset.kernels.samplers import ClassTooSmallError

    sampler = SAMPLERS[method]
    stream = derived_seed(seed, sampler.stream)
    try:
        selection = sampler.draw(candidates, values, ipc, stream, parameters)
    except ClassTooSmallError as error:
        raise class_too_small(candidates.dataset, error.class_index, error.size, ipc) from error
    return candidates.ids[selection.ids], selection.lowered
