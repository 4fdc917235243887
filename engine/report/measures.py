"""Metrics and construction costs of condensed sets, as the report shows them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coreset.engine.artifacts.ledger import StageCost, construction_cost, total_wall_seconds
from coreset.engine.evaluation.metrics import METRICS
from coreset.engine.evaluation.results import Results
from coreset.engine.report.sets import ReportedSet, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Metrics of one set against one validation set by the features of one backbone."""

    measured: ReportedSet
    val: str
    backbone: str
    weights: str
    version: str
    values: dict[str, float] = field(default_factory=dict[str, float])
    """By metric; NaN where one does not exist."""

    def value(self, metric: str) -> float:
        """A metric, NaN if it was not measured."""
        return self.values.get(metric, math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCost:
    """Construction cost of one set, stage by stage along its inputs."""

    paid: ReportedSet
    stages: tuple[StageCost, ...]

    @property
    def wall_seconds(self) -> float:
        """Wall time of all stages, one after the other."""
        return total_wall_seconds(self.stages)


def measurements(metrics: Iterable[Row], sets: Mapping[str, ReportedSet]) -> list[Measurement]:
    """Join the metric rows of each set, validation set, backbone and metric version."""
    short = {metric.name: short for short, metric in METRICS.items()}
    found: dict[tuple[str, ...], Measurement] = {}
    for row in metrics:
        name, _, version = str(row["metric"]).partition("@")
        key = (row["set_digest"], row["val_identity"], row["backbone"], row["weights"], version)
        if key not in found:
            found[key] = Measurement(
                measured=sets[row["set_digest"]],
                val=row["val"],
                backbone=row["backbone"],
                weights=row["weights"],
                version=version,
            )
        value = math.nan if row["value"] is None else row["value"]
        found[key].values[short.get(name, name)] = value
    order = list(sets)
    return [found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), key))]


def set_costs(results: Results, sets: Iterable[ReportedSet]) -> list[SetCost]:
    """Cost of every set whose ledger RESULTS keeps; stages of the inputs come first."""
    costs: list[SetCost] = []
    for one in sets:
        recorded = results.lineage(one.digest)
        if recorded is not None and recorded["ledger"]:
            costs.append(SetCost(paid=one, stages=tuple(construction_cost(recorded["ledger"]))))
    return costs


def metric_records(measured: Iterable[Measurement]) -> list[dict[str, Any]]:
    """One flat record per set, validation set and backbone, for the CSV file."""
    return [
        {
            **_set_columns(one.measured),
            "val": one.val,
            "backbone": one.backbone,
            "weights": one.weights,
            "version": one.version,
            **{metric: one.value(metric) for metric in METRICS},
        }
        for one in measured
    ]


def cost_records(costs: Iterable[SetCost]) -> list[dict[str, Any]]:
    """One flat record per set and stage, for the CSV file."""
    return [
        {
            **_set_columns(cost.paid),
            "stage": stage.stage,
            "runs": stage.runs,
            "interrupted": stage.interrupted,
            "wall_seconds": stage.wall_seconds,
            "cpu_seconds": stage.cpu_seconds,
            "image_passes": stage.images,
            "images_per_second": stage.images_per_second,
            "peak_rss_bytes": stage.peak_rss_bytes,
            "device": stage.device,
            "set_wall_seconds": cost.wall_seconds,
        }
        for cost in costs
        for stage in cost.stages
    ]


def _set_columns(one: ReportedSet) -> dict[str, Any]:
    return {
        "data": one.data,
        "method": one.method,
        "ipc": one.ipc,
        "set_seed": one.seed,
        "set_digest": one.digest,
    }
