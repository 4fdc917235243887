"""Condensed set and its reference, as metrics see them; importing this loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.engine.condensed.condensed_set import CondensedSet
from coreset.shards.errors import MachineError
from coreset.shards.format.dataset import Dataset

if TYPE_CHECKING:
    from coreset.engine.artifacts.store import Features
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
    def set_features(self) -> "Features":
        """Features of the set, shape (m, d)."""
        from coreset.engine.models.features import features_for

        return features_for(self.condensed.dataset, self.spec, self.condensed.ids)

    @cached_property
    def reference_features(self) -> "Features":
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
    def _both(self) -> "tuple[Features, Ints, Features, Ints]":
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
