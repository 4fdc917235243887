"""``coreset measure``: how well a condensed set covers the validation images, how varied it is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.provenance import versions
from coreset.engine.artifacts.writer import require_output
from coreset.engine.condensed.condensed_set import CondensedSet, open_set, require_same_classes
from coreset.engine.evaluation.metrics import METRICS as REGISTRY
from coreset.engine.evaluation.metrics import FeaturePair
from coreset.engine.evaluation.results import METRICS, Results
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.engine.runtime.text import without_nan
from coreset.engine.stages.options import (
    Decoding,
    Extractor,
    Flat,
    MovedData,
    Result,
    ResultsPath,
    SetPath,
    ValPath,
)
from coreset.shards.errors import DataError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Measure representativeness and diversity of a condensed set, class by class.

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
    data: MovedData = None
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def run(self) -> Result:
        """Get the features of set and reference, compute every metric, append the rows."""
        require_output(self.results)
        condensed, val = open_set(self.condensed, data=self.data), Dataset.open(self.val)
        require_same_classes(condensed, val)
        results, own = Results(self.results), self.extractor.spec(self.decoding)
        specs = dict.fromkeys(REGISTRY, own)
        for short, metric in REGISTRY.items():
            if metric.backbone is not None:
                backbone, size = metric.backbone
                specs[short] = replace(own, backbone=backbone, weights=None, size=size)
        rows = {short: _row(short, condensed, val, spec) for short, spec in specs.items()}
        keys = [row["key"] for row in rows.values()]
        searched = ""
        if not set(keys) <= results.keys(METRICS):
            from coreset.kernels.neighbours import search_device

            searched = search_device(str(self.decoding.resolved_device()))
            meter = Meter("measure", keys[0], searched)
            values = self._values(condensed, val, specs, searched)
            results.record_lineage(condensed)
            common = {
                **results.input_columns(condensed, val),
                "n_classes": condensed.info.n_classes,
                "runtime": json.dumps({"versions": versions(), "search": searched}),
            }
            meter.images = len(condensed.ids) + len(val)
            measured = [{**common, **row, "value": values[short]} for short, row in rows.items()]
            results.append(METRICS, measured, [meter.line()])
        return self._result(results, set(keys), own.backbone, searched)

    def _values(
        self,
        condensed: CondensedSet,
        val: Dataset,
        specs: Mapping[str, FeatureSpec],
        device: str,
    ) -> dict[str, float | None]:
        pairs = {spec: _features(condensed, val, spec, device) for spec in set(specs.values())}
        try:
            values = {s: REGISTRY[s].measure(pairs[spec]) for s, spec in specs.items()}
        except ValueError as error:
            raise DataError(f"{self.condensed} against {self.val}: {error}") from error
        return without_nan(values)

    def _result(self, results: Results, keys: set[str], backbone: str, searched: str) -> Result:
        rows = [row for row in results.rows(METRICS) if row["key"] in keys]
        values = {row["metric"]: row["value"] for row in rows}
        shown = ", ".join(
            f"{stamp.partition('@')[0]} {'-' if value is None else f'{value:.4f}'}"
            for stamp, value in values.items()
        )
        on_gpu = searched and self.decoding.resolved_device().type == "cuda"
        lines = (
            *self.extractor.notice(),
            *([f"neighbours: exact, by FAISS on {searched}"] if on_gpu else []),
            f"{rows[0]['method']} at IPC {rows[0]['ipc']}, {backbone}: {shown}: {self.results}",
            f"next: coreset report {self.results} report.html",
        )
        return Result(lines, {"results": str(self.results), **values})


def _row(short: str, condensed: CondensedSet, val: Dataset, spec: FeatureSpec) -> dict[str, str]:
    """Return the columns of one metric's row, and the key that they and the inputs give."""
    from coreset.engine.models.backbones import weights_key

    columns = {
        "metric": REGISTRY[short].stamp,
        "backbone": f"{spec.backbone}@{spec.size}",
        "weights": weights_key(spec.backbone, spec.weights),
    }
    reference = [val.manifest.identity, val.manifest.content]
    inputs = {"set": condensed.provenance.digest, "val": reference, "size": spec.size}
    return {"key": digest_of(inputs | columns), **columns}


def _features(condensed: CondensedSet, val: Dataset, spec: FeatureSpec, device: str) -> FeaturePair:
    return FeaturePair(
        set_features=features_for(condensed.dataset, spec, condensed.ids),
        set_labels=condensed.labels,
        reference_features=features_for(val, spec),
        reference_labels=val.labels,
        n_classes=condensed.info.n_classes,
        device=device,
    )
