"""``coreset measure``: how well a condensed set covers the validation images, how varied it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import Meter
from coreset.engine.artifacts.provenance import open_source, versions
from coreset.engine.artifacts.writer import require_output
from coreset.engine.condensed.condensed_set import CondensedSet, open_set, require_same_classes
from coreset.engine.evaluation.intervals import class_table, difference_table
from coreset.engine.evaluation.metrics import METRICS as REGISTRY
from coreset.engine.evaluation.metrics import groups
from coreset.engine.evaluation.result_tables import CLASSES, DUPLICATES, METRICS
from coreset.engine.evaluation.results import Results
from coreset.engine.evaluation.subject import Subject
from coreset.engine.models.features import FeatureSpec
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
from coreset.shards.errors import DataError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of

LEAST_IMAGES = 2048
"""Images from which a Frechet distance of 2,048 features is usually told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Measure a condensed set, class by class: coverage, diversity, and what else --metrics names.

    R1/D1 as in ManifoldGD (worst match of the set, nearest pair), R2/D2 their averages (mean match
    of the reference, mean pair); cosines of backbone features, mean over classes, higher is better.
    Features are made once per set and backbone and cached. For example: coreset measure SET VAL
    RESULTS --metrics coverage,prdc,duplicates.
    """

    condensed: SetPath
    """Condensed set."""
    val: ValPath
    """Packed validation set with the same classes: the reference."""
    results: ResultsPath
    """Results folder; made if absent, else appended to."""
    metrics: str = "coverage"
    """Groups, with commas between: coverage (R1, D1, R2, D2), curve (R2 of the first images by
    rank), prdc (precision, recall, density, coverage), fid (Frechet distance; FID with --backbone
    inception-2015 --size 299), kid, duplicates (copies in the set and in the reference), quality
    (of the pixels)."""
    pooled: bool = False
    """Also tell R1, D1, R2 and D2 over all classes pooled, as ManifoldGD's script does."""
    reference: Literal["val", "train"] = "val"
    """Images to cover: VAL, or the data set of SET without the images of SET."""
    against: Path | None = None
    """Another set of the same classes: also tell the differences, paired over classes."""
    extractor: Flat[Extractor] = field(default_factory=Extractor)
    data: MovedData = None
    decoding: Flat[Decoding] = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.chosen if name not in groups()]:
            raise UsageError(f"metrics must be of {', '.join(groups())}, got {unknown[0]}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Groups of ``metrics``."""
        named = [word.strip() for word in self.metrics.split(",")]
        return (*named, *(["pooled"] if self.pooled and "pooled" not in named else []))

    def run(self) -> Result:
        """Get the features of set and reference, compute every metric, append the rows."""
        require_output(self.results)
        results, notes = Results(self.results), list(self.extractor.notice())
        val, paths = Dataset.open(self.val), filter(None, (self.condensed, self.against))
        sets = [open_set(path, data=self.data) for path in paths]
        for each in sets:
            require_same_classes(each, val)
        rows = self._measured(sets[0], val, results, notes)
        by_class = _class_values(results, rows)
        lines = [*notes, *class_table(by_class)]
        if self.against is not None:
            other = _class_values(results, self._measured(sets[1], val, results, []))
            lines += ["", *difference_table(by_class, other, str(self.against))]
        results.fold()
        lines += [*_biased(rows), *_absent(rows)]
        if "duplicates" in self.chosen:
            lines.append(_copies_line(results, rows))
        lines.append(self._summary(rows))
        lines.append(f"next: coreset report {self.results} report.html")
        values = {row["metric"]: row["value"] for row in rows}
        return Result(tuple(lines), {"results": str(self.results), **values})

    def _measured(
        self, condensed: CondensedSet, val: Dataset, results: Results, notes: list[str]
    ) -> list[dict[str, Any]]:
        """Return the rows of a set, measured now unless they are there."""
        subjects = self._subjects(condensed, val)
        rows = {short: _row(short, subject) for short, subject in subjects.items()}
        keys = {row["key"] for row in rows.values()}
        if not keys <= results.keys(METRICS):
            subject = next(iter(subjects.values()))
            meter = Meter("measure", next(iter(rows.values()))["key"], subject.device)
            self._append(results, subjects, rows, meter)
            if subject.device != "cpu":
                notes.append(f"neighbours: exact, by FAISS on {subject.device}")
        return [row for row in results.rows(METRICS) if row["key"] in keys]

    def _subjects(self, condensed: CondensedSet, val: Dataset) -> dict[str, Subject]:
        """Return what each metric is to measure; metrics of one backbone share their features."""
        from coreset.kernels.neighbours import search_device

        reference, ids = val, np.arange(len(val))
        if self.reference == "train":
            reference = condensed.dataset
            if condensed.info.kind == "coreset":
                ids = np.setdiff1d(np.arange(len(reference)), condensed.ids)
            else:
                reference = open_source(condensed.path, self.data)
                ids = np.arange(len(reference))
        own = self.extractor.spec(self.decoding)
        device = search_device(str(self.decoding.resolved_device()))
        specs: dict[str, FeatureSpec] = {}
        for short, metric in REGISTRY.items():
            if metric.group in self.chosen:
                backbone, size = metric.backbone or (own.backbone, own.size)
                weights = None if metric.backbone else own.weights
                specs[short] = replace(own, backbone=backbone, weights=weights, size=size)
        made = {
            spec: Subject(
                condensed=condensed, reference=reference, reference_ids=ids, spec=spec,
                device=device,
            )
            for spec in set(specs.values())
        }  # fmt: skip
        return {short: made[spec] for short, spec in specs.items()}

    def _append(
        self,
        results: Results,
        subjects: Mapping[str, Subject],
        rows: Mapping[str, Mapping[str, Any]],
        meter: Meter,
    ) -> None:
        subject = next(iter(subjects.values()))
        try:
            values = {short: REGISTRY[short].measure(each) for short, each in subjects.items()}
        except ValueError as error:
            against = f"{subject.condensed.path} against {subject.reference.path}"
            raise DataError(f"{against}: {error}") from error
        means = without_nan({short: _mean(value) for short, value in values.items()})
        results.record_lineage(subject.condensed)
        common = {
            **results.input_columns(subject.condensed, subject.reference),
            "n_val": subject.reference_ids.size,
            "n_classes": subject.n_classes,
            "runtime": json.dumps(
                {
                    "versions": versions(),
                    "search": subject.device,
                    "n_set": subject.condensed.ids.size,
                }
            ),
        }
        of_classes = [
            {"key": rows[short]["key"], "class": name, "metric": rows[short]["metric"], "value": x}
            for short, value in values.items()
            if isinstance(value, np.ndarray)
            for name, x in zip(subject.reference.classes, value.tolist(), strict=True)
        ]
        meter.images = len(subject.condensed.ids) + subject.reference_ids.size
        results.append(CLASSES, of_classes, [])
        if "duplicates" in self.chosen:
            results.append(DUPLICATES, _pairs(subject, rows), [])
        measured = [{**common, **row, "value": means[short]} for short, row in rows.items()]
        results.append(METRICS, measured, [meter.line()])

    def _summary(self, rows: Sequence[Mapping[str, Any]]) -> str:
        shown = ", ".join(
            f"{row['metric'].partition('@')[0]} "
            + ("-" if row["value"] is None else f"{row['value']:.4f}")
            for row in rows
        )
        first = rows[0]
        backbone = first["backbone"].partition("@")[0]
        return f"{first['method']} at IPC {first['ipc']}, {backbone}: {shown}: {self.results}"


def _mean(value: float | NDArray[np.float64]) -> float:
    """Return the mean over classes that have a value; NaN if none has."""
    if not isinstance(value, np.ndarray):
        return value
    known = value[~np.isnan(value)]
    return float(known.mean()) if known.size else float("nan")


def _row(short: str, subject: Subject) -> dict[str, str]:
    """Return the columns of one metric's row, and the key that they and the inputs give."""
    from coreset.engine.models.backbones import weights_key

    spec, reference = subject.spec, subject.reference.manifest
    weights = weights_key(spec.backbone, spec.weights)
    columns = {
        "metric": REGISTRY[short].named(spec.backbone, weights),
        "backbone": f"{spec.backbone}@{spec.size}",
        "weights": weights,
    }
    inputs: dict[str, Any] = {
        "set": subject.condensed.provenance.digest,
        "val": [reference.identity, reference.content],
        "size": spec.size,
    }
    if subject.reference_ids.size < len(subject.reference):
        inputs["without"] = inputs["set"]
    return {"key": digest_of(inputs | columns), **columns}


def _pairs(subject: Subject, rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    keys = {place: subject.column("key", place) for place in ("set", "reference")}
    row = rows["exact_set"]
    return [
        {
            "key": row["key"], "kind": pair.kind, "place": pair.place,
            "image": keys["set"][pair.image], "copy": keys[pair.place][pair.copy],
            "cosine": pair.cosine,
        }
        for pair in subject.copies
    ]  # fmt: skip


def _biased(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of which distances the number of images decides, too."""
    names = [row["metric"].partition("@")[0] for row in rows]
    distances = [name for name in names if name.startswith(("fid", "frechet"))]
    runtime = json.loads(rows[0]["runtime"])
    if not distances or runtime.get("n_set", LEAST_IMAGES) >= LEAST_IMAGES:
        return []
    few = f"{runtime['n_set']:,} images, fewer than {LEAST_IMAGES:,}"
    return [f"{', '.join(distances)}: of {few}: too large, compare sets of equal size only"]


def _absent(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [row["metric"].partition("@")[0] for row in rows if row["value"] is None]
    return [f"no number: {', '.join(names)}; no class has enough images"] if names else []


def _copies_line(results: Results, rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how many images of the set have copies in it, and in the reference: those leak."""
    keys = {row["key"] for row in rows}
    found = [row for row in results.rows(DUPLICATES) if row["key"] in keys]
    inside = sum(row["place"] == "set" for row in found)
    leaks = {row["image"] for row in found if row["place"] == "reference"}
    exact = {
        row["image"] for row in found if row["place"] == "reference" and row["kind"] == "exact"
    }
    return (
        f"copies: {inside} pairs in the set; {len(leaks)} of its images are in the reference, "
        f"{len(exact)} of them byte by byte: {results.path / DUPLICATES}.csv"
    )


def _class_values(
    results: Results, rows: Sequence[Mapping[str, Any]]
) -> dict[str, NDArray[np.float64]]:
    """Return the values of the classes by metric, where they were kept."""
    names, by_key = {row["key"]: row["metric"] for row in rows}, dict[str, list[float]]()
    for row in results.rows(CLASSES):
        if row["key"] in names:
            value = row["value"]
            by_key.setdefault(row["key"], []).append(np.nan if value is None else value)
    return {names[key]: np.array(by_key[key]) for key in names if key in by_key}
