"""``coreset measure``: how well a condensed set covers the validation images, how varied it is."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.provenance import versions
from coreset.engine.artifacts.writer import require_output
from coreset.engine.condensed.condensed_set import CondensedSet, open_set, require_same_classes
from coreset.engine.evaluation.results import METRICS, Results
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.engine.runtime.result import Result
from coreset.engine.stages.options import (
    Decoding,
    DeviceChoice,
    Extractor,
    Flat,
    ResultsPath,
    SetPath,
    ValPath,
)
from coreset.shards.errors import DataError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of

METRIC_NAMES = {
    "r1": "representativeness_r1@1",
    "d1": "diversity_d1@1",
    "r2": "representativeness_r2@1",
    "d2": "diversity_d2@1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDecoding(Decoding):
    """Options of decoding for the features."""

    device: DeviceChoice = "auto"
    """auto: a GPU if there is one (features; the search itself runs on the CPU)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Measure representativeness and diversity of a condensed set, class by class, by FAISS.

    R1/D1 as in ManifoldGD (worst match of the set, nearest pair), R2/D2 their averages (mean match
    of the validation images, mean pair); cosines of backbone features, mean over classes, higher is
    better. Features are made once per set and backbone and cached.
    """

    condensed: SetPath
    """Condensed set."""
    val: ValPath
    """Packed validation set with the same classes: the reference."""
    results: ResultsPath
    """Results folder; made if absent, else appended to."""
    extractor: Flat[Extractor] = field(default_factory=Extractor)
    data: Path | None = None
    """Where the data set of a coreset lies now, if it was moved."""
    decoding: Flat[FeatureDecoding] = field(default_factory=FeatureDecoding)

    def run(self) -> Result:
        """Get the features of set and reference, measure class by class, append the rows."""
        from coreset.engine.models.backbones import weights_key

        require_output(self.results)
        spec = self.extractor.spec(self.decoding)
        condensed, val = open_set(self.condensed, data=self.data), Dataset.open(self.val)
        require_same_classes(condensed, val)
        results = Results(self.results)
        weights = weights_key(spec.backbone, spec.weights)
        backbone = f"{spec.backbone}@{spec.size}"
        keys = {
            name: digest_of(
                {
                    "set": condensed.provenance.digest,
                    "val": [val.manifest.identity, val.manifest.content],
                    "backbone": backbone,
                    "weights": weights,
                    "size": spec.size,
                    "metric": name,
                }
            )
            for name in METRIC_NAMES.values()
        }
        if not set(keys.values()) <= results.keys(METRICS):
            device = str(self.decoding.resolved_device())
            meter = Meter("measure", next(iter(keys.values())), device)
            values = self._values(condensed, val, spec)
            results.record_lineage(condensed)
            common = {
                **results.set_columns(condensed),
                **results.val_columns(val),
                "backbone": backbone,
                "weights": weights,
                "n_classes": condensed.info.n_classes,
                "runtime": json.dumps({"versions": versions()}),
            }
            rows = [
                common | {"key": keys[name], "metric": name, "value": values[short]}
                for short, name in METRIC_NAMES.items()
            ]
            meter.images = len(condensed.ids) + len(val)
            results.append(METRICS, rows, [meter.line()])
        return self._outcome(results, set(keys.values()), spec.backbone)

    def _values(
        self, condensed: CondensedSet, val: Dataset, spec: FeatureSpec
    ) -> dict[str, float | None]:
        """By short name; None where a metric does not exist (pairs, at one image a class)."""
        from coreset.kernels.coverage import coverage

        set_features = features_for(condensed.dataset, spec, condensed.ids)
        val_features = features_for(val, spec)
        try:
            measured = coverage(
                set_features,
                condensed.labels,
                val_features,
                val.labels,
                condensed.info.n_classes,
            )
        except ValueError as error:
            raise DataError(f"{self.condensed} against {self.val}: {error}") from error
        means = measured.means().items()
        return {short: None if math.isnan(value) else value for short, value in means}

    def _outcome(self, results: Results, keys: set[str], backbone: str) -> Result:
        rows: list[dict[str, Any]] = [row for row in results.rows(METRICS) if row["key"] in keys]
        values = {row["metric"]: row["value"] for row in rows}
        shown = ", ".join(
            f"{name.split('@')[0]} {'-' if value is None else f'{value:.4f}'}"
            for name, value in values.items()
        )
        what = f"{rows[0]['method']} at IPC {rows[0]['ipc']}, {backbone}"
        return Result(
            (
                *self.extractor.notice(),
                f"{what}: {shown}: {self.results}",
                f"next: coreset report {self.results} report.html",
            ),
            {"results": str(self.results), **values},
        )
