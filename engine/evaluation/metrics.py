"""Metrics of a condensed set: numbers from its images, or the features of them and of a reference.

``coreset measure``, the results and the report loop over `METRICS`. A metric that is a mean over
classes gives the value of each, NaN where there is none: a set of one image a class has no pairs.
Importing this loads no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.engine.condensed.condensed_set import CondensedSet
from coreset.shards.errors import MachineError
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.engine.evaluation.copies import Pair
    from coreset.engine.models.features import FeatureSpec

Ints: TypeAlias = NDArray[np.int64]
ByClass: TypeAlias = NDArray[np.float64]
CURVE = (1, 2, 5, 10, 20, 50, 100)
"""Images a class, in the order in which they were chosen, of which coverage is told."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A condensed set and its reference; features by one backbone are made when asked for."""

    condensed: CondensedSet
    reference: Dataset
    reference_ids: Ints
    spec: "FeatureSpec"
    device: str = "cpu"
    """Where neighbours are searched, if FAISS can."""

    @property
    def n_classes(self) -> int:
        """Classes of both."""
        return len(self.reference.classes)

    @property
    def set_labels(self) -> Ints:
        """Label of each image of the set."""
        return self.condensed.labels

    @property
    def reference_labels(self) -> Ints:
        """Label of each image of the reference."""
        return self.reference.labels[self.reference_ids]

    @cached_property
    def set_features(self) -> NDArray[np.float16]:
        """Features of the set, shape (m, d)."""
        from coreset.engine.models.features import features_for

        return features_for(self.condensed.dataset, self.spec, self.condensed.ids)

    @cached_property
    def reference_features(self) -> NDArray[np.float16]:
        """Features of the reference, shape (n, d)."""
        from coreset.engine.models.features import features_for

        if self.reference_ids.size == len(self.reference):
            return features_for(self.reference, self.spec)
        return features_for(self.reference, self.spec)[self.reference_ids]

    def column(self, name: str, place: str = "set") -> list[Any]:
        """Read a column of the sample table for the images of a place: set or reference."""
        dataset, ids = self.condensed.dataset, self.condensed.ids
        if place != "set":
            dataset, ids = self.reference, self.reference_ids
        return dataset.table([name])[name].take(ids).to_pylist()

    @property
    def _both(self) -> tuple[NDArray[np.float16], Ints, NDArray[np.float16], Ints]:
        return self.set_features, self.set_labels, self.reference_features, self.reference_labels

    @cached_property
    def coverage(self) -> Mapping[str, ByClass]:
        """Values of r1, d1, r2 and d2 of each class."""
        from coreset.kernels.similarity import coverage_by_class

        return coverage_by_class(*self._both, self.n_classes, device=self.device)

    @cached_property
    def pooled(self) -> Mapping[str, float]:
        """Values of r1, d1, r2 and d2 of all classes pooled."""
        from coreset.kernels.similarity import pooled_coverage

        return pooled_coverage(self.set_features, self.reference_features, device=self.device)

    @cached_property
    def curve(self) -> Mapping[int, float]:
        """Coverage r2 of the first images of each class, by how many."""
        from coreset.kernels.similarity import coverage_curve

        ranks, steps = self.condensed.ranks, [n for n in CURVE if n <= self.condensed.info.ipc]
        values = coverage_curve(
            self.set_features, self.set_labels, ranks, self.reference_features,
            self.reference_labels, n_classes=self.n_classes, steps=steps, device=self.device,
        )  # fmt: skip
        return dict(zip(steps, values.tolist(), strict=True))

    @cached_property
    def manifold(self) -> Mapping[str, ByClass]:
        """Precision, recall, density and coverage of each class."""
        from coreset.kernels.manifold import precision_recall_density_coverage

        return precision_recall_density_coverage(*self._both, self.n_classes)

    @cached_property
    def frechet(self) -> float:
        """Frechet distance of all features."""
        from coreset.kernels.frechet import Moments, frechet_distance

        return frechet_distance(Moments.of(self.set_features), Moments.of(self.reference_features))

    @cached_property
    def frechet_by_class(self) -> ByClass:
        """Frechet distance of the features of each class."""
        from coreset.kernels.frechet import frechet_of_few

        sides = (
            (self.set_features, self.set_labels),
            (self.reference_features, self.reference_labels),
        )
        return np.array(
            [
                frechet_of_few(*(features[labels == c] for features, labels in sides))
                for c in range(self.n_classes)
            ]
        )

    @cached_property
    def kernel(self) -> float:
        """Kernel distance of all features (KID)."""
        from coreset.kernels.frechet import kernel_distance

        try:
            return kernel_distance(self.set_features, self.reference_features, seed=0)
        except ImportError as error:
            raise MachineError(
                f"metric kid needs the package torch-fidelity ({error}); pip install coreset[fid]"
            ) from error

    @cached_property
    def copies(self) -> "list[Pair]":
        """Pairs of images that are equal or nearly so."""
        from coreset.engine.evaluation.copies import pairs_of

        return pairs_of(self)

    @cached_property
    def pixels(self) -> Mapping[str, float]:
        """Measures of the set's pixels."""
        from coreset.engine.evaluation.pixels import pixel_measures

        return pixel_measures(self.condensed, self.spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that says how good a condensed set is without training on it."""

    stamp: str
    """Name and version in the rows of RESULTS: ``diversity_d1@1``; `named` fills in what it may
    tell of the backbone."""
    axis: str
    measure: Callable[[Subject], "float | ByClass"]
    """Give the value of each class, or one of the whole set."""
    group: str = "coverage"
    """Name for ``--metrics``."""
    backbone: tuple[str, int] | None = None
    """Backbone and pixels that it is defined on; None takes those of the command."""
    by_class: bool = True
    """Is a mean over classes, and not one number of the whole set."""
    higher_is_better: bool = True

    def named(self, backbone: str, weights_sha256: str) -> str:
        """Return the stamp for a backbone: FID is the name of the published Inception's alone."""
        from coreset.engine.models.inception import frechet_name

        frechet = frechet_name(backbone, weights_sha256)
        kid = frechet.replace("frechet", "kid").replace("fid", "kid")
        return self.stamp.format(frechet=frechet, kid=kid)


def _coverage(short: str, name: str, axis: str) -> Metric:
    return Metric(
        stamp=f"{name}_{short}@1",
        axis=f"{short.upper()}, {axis}",
        measure=lambda subject: subject.coverage[short],
    )


def _pooled(short: str, name: str) -> Metric:
    return Metric(
        stamp=f"{name}_{short}_pooled@1",
        axis=f"{short.upper()}, all classes pooled",
        measure=lambda subject: subject.pooled[short],
        group="pooled",
        by_class=False,
    )


def _at(n: int) -> Metric:
    return Metric(
        stamp=f"representativeness_r2_at_{n}@1",
        axis=f"R2 of the first {n} images",
        measure=lambda subject: subject.curve.get(n, np.nan),
        group="curve",
        by_class=False,
    )


def _manifold(name: str, axis: str) -> Metric:
    return Metric(
        stamp=f"prdc_{name}@1",
        axis=axis,
        measure=lambda subject: subject.manifold[name],
        group="prdc",
    )


def _distance(stamp: str, group: str, axis: str, measure: Callable[[Subject], Any]) -> Metric:
    return Metric(
        stamp=f"{stamp}@1",
        axis=axis,
        measure=measure,
        group=group,
        by_class=stamp.endswith("class"),
        higher_is_better=False,
    )


def _copies(kind: str, place: str, axis: str) -> Metric:
    from coreset.engine.evaluation.copies import share_of_copies

    return Metric(
        stamp=f"copies_{kind}_{place}@1",
        axis=axis,
        measure=lambda subject: share_of_copies(subject, kind, place),
        group="duplicates",
        by_class=False,
        higher_is_better=False,
    )


def _pixels(name: str, axis: str) -> Metric:
    return Metric(
        stamp=f"{name}@1",
        axis=axis,
        measure=lambda subject: subject.pixels[name],
        group="quality",
        by_class=False,
        higher_is_better=name == "bytes_per_pixel",
    )


METRICS: dict[str, Metric] = {
    "r1": _coverage("r1", "representativeness", "worst match of the set"),
    "d1": _coverage("d1", "diversity", "1 - cosine of the nearest pair"),
    "r2": _coverage("r2", "representativeness", "mean match of the validation images"),
    "d2": _coverage("d2", "diversity", "1 - mean cosine of pairs"),
    **{
        f"{short}_pooled": _pooled(short, {"r": "representativeness", "d": "diversity"}[short[0]])
        for short in ("r1", "d1", "r2", "d2")
    },
    **{f"r2_at_{n}": _at(n) for n in CURVE},
    "precision": _manifold("precision", "share of the set within the reference"),
    "recall": _manifold("recall", "share of the reference within the set"),
    "density": _manifold("density", "reference neighbourhoods around an image of the set"),
    "coverage": _manifold("coverage", "share of the reference with an image of the set near"),
    "frechet": _distance(
        "{frechet}", "fid", "Frechet distance of all features", lambda subject: subject.frechet
    ),
    "frechet_class": _distance(
        "{frechet}_class", "fid", "Frechet distance of a class", lambda s: s.frechet_by_class
    ),
    "kid": _distance("{kid}", "kid", "kernel distance of all features", lambda s: s.kernel),
    **{
        f"{kind}_{place}": _copies(
            kind, place, f"share of images with {kind} copies in the {place}"
        )
        for kind in ("exact", "near")
        for place in ("set", "reference")
    },
    "bytes_per_pixel": _pixels("bytes_per_pixel", "stored bytes per pixel"),
    "near_constant": _pixels("near_constant", "share of images of nearly one colour"),
    "blurred": _pixels("blurred", "share of images without sharp edges"),
}
PAIRS = (("r1", "d1"), ("r2", "d2"))
"""Metrics that a figure shows across and up."""


def groups() -> tuple[str, ...]:
    """Return the names that ``--metrics`` takes."""
    return tuple(dict.fromkeys(metric.group for metric in METRICS.values()))
