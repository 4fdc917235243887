"""Metrics of a condensed set: numbers from the features of its images and of a reference.

``coreset measure``, the results and the report loop over `METRICS`. A set of one image a class has
no pairs, so metrics of pairs are NaN there. Importing this loads no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FeaturePair:
    """Features of a condensed set and of its reference by one backbone."""

    set_features: NDArray[np.floating]
    set_labels: NDArray[np.int64]
    reference_features: NDArray[np.floating]
    reference_labels: NDArray[np.int64]
    n_classes: int
    device: str = "cpu"
    """Where neighbours are searched, if FAISS can."""

    @cached_property
    def coverage(self) -> dict[str, float]:
        """Means over classes of r1, d1, r2 and d2, computed once for all four."""
        from coreset.kernels.similarity import coverage

        return coverage(
            self.set_features,
            self.set_labels,
            self.reference_features,
            self.reference_labels,
            self.n_classes,
            device=self.device,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that says how good a condensed set is without training on it."""

    stamp: str
    """Name and version in the rows of RESULTS: ``diversity_d1@1``."""
    axis: str
    measure: Callable[[FeaturePair], float]
    backbone: tuple[str, int] | None = None
    """Backbone and pixels that it is defined on; None takes those of the command."""
    by_class: bool = True
    """Is a mean over classes, and not one number of the whole set."""
    higher_is_better: bool = True


def _coverage(short: str, name: str, axis: str) -> Metric:
    return Metric(
        stamp=f"{name}_{short}@1",
        axis=f"{short.upper()}, {axis}",
        measure=lambda features: features.coverage[short],
    )


METRICS: dict[str, Metric] = {
    "r1": _coverage("r1", "representativeness", "worst match of the set"),
    "d1": _coverage("d1", "diversity", "1 - cosine of the nearest pair"),
    "r2": _coverage("r2", "representativeness", "mean match of the validation images"),
    "d2": _coverage("d2", "diversity", "1 - mean cosine of pairs"),
}
PAIRS = (("r1", "d1"), ("r2", "d2"))
"""Metrics that a figure shows across and up."""
