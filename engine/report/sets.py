"""Condensed sets of the results: their names, metrics and costs, and the artifacts behind them.

A table has one column per method. Where one was run in several ways on the same data at one IPC,
its name says what differs: ``ccs-aum (misratio 0.3)``.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import StageCost, construction_cost
from coreset.engine.artifacts.provenance import Provenance, locate
from coreset.engine.condensed.condensed_set import CondensedSet, open_set
from coreset.engine.condensed.systems import SLICEABLE, system_of
from coreset.engine.evaluation.metrics import METRICS
from coreset.engine.evaluation.results import Results
from coreset.engine.scoring.score_table import ScoreTable
from coreset.kernels.scores import easiness
from coreset.shards.errors import CoresetError, UsageError

BASELINE = "random"
Row = Mapping[str, Any]
UNREADABLE = (CoresetError, OSError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedSet:
    """One condensed set as the rows of RESULTS describe it."""

    digest: str
    data: str
    method: str
    ipc: int
    kind: str
    seed: int
    path: str
    """Relative to RESULTS, when it was last trained on or measured."""
    parameters: Mapping[str, Any]
    name: str = ""
    """Unique among the sets of one data set: ``ccs-aum, IPC 10``."""


def catalogue(rows: Iterable[Row]) -> dict[str, ReportedSet]:
    """Collect the sets of all rows by digest: by data, method (baseline first), IPC and seed."""
    described = list({row["set_digest"]: _described(row) for row in rows}.values())
    sets = _namesakes_told_apart(_parameters_told_apart(described))
    sets.sort(key=lambda e: (e.data, method_order(e.method), e.ipc, e.seed, e.digest))
    return {entry.digest: entry for entry in sets}


def method_order(method: str) -> tuple[bool, str]:
    """Return the sort key of a method: the baseline first, the others by name."""
    return method != BASELINE, method


def _described(row: Row) -> ReportedSet:
    parameters = json.loads(row["parameters"])
    parameters.pop("ipc", None)
    columns = {name: row[f"set_{name}"] for name in ("digest", "kind", "seed", "path")}
    columns |= {name: row[name] for name in ("data", "method", "ipc")}
    whole = parameters.pop("derived_from", "")
    if whole and system_of(row["method"]) not in SLICEABLE:
        columns["method"] += f" (part of a set of {whole})"
    return ReportedSet(**columns, parameters=parameters)


def _parameters_told_apart(sets: Sequence[ReportedSet]) -> list[ReportedSet]:
    renamed: list[ReportedSet] = []
    for namesakes in _groups(sets, "data", "method"):
        differing = {
            name
            for group in _groups(namesakes, "ipc")
            for name in set[str]().union(*(entry.parameters for entry in group))
            if len({str(entry.parameters.get(name)) for entry in group}) > 1
        }
        for entry in namesakes:
            values = (f"{name} {entry.parameters.get(name, '-')}" for name in sorted(differing))
            renamed.append(_renamed(entry, *values))
    return renamed


def _namesakes_told_apart(sets: Sequence[ReportedSet]) -> list[ReportedSet]:
    """Name sets by their seeds, and those of one seed by their digests: their inputs differ."""
    by_inputs = [
        _renamed(entry, f"set {entry.digest[:8]}") if len(group) > 1 else entry
        for group in _groups(sets, "data", "method", "ipc", "seed")
        for entry in group
    ]
    return [
        replace(entry, name=f"{entry.name}, seed {entry.seed}") if len(group) > 1 else entry
        for group in _groups(by_inputs, "data", "method", "ipc")
        for entry in group
    ]


def _groups(sets: Sequence[ReportedSet], *fields: str) -> Iterable[list[ReportedSet]]:
    groups: dict[tuple[Any, ...], list[ReportedSet]] = defaultdict(list)
    for entry in sets:
        groups[tuple(getattr(entry, field) for field in fields)].append(entry)
    return groups.values()


def _renamed(entry: ReportedSet, *additions: str) -> ReportedSet:
    method = f"{entry.method} ({', '.join(additions)})" if additions else entry.method
    return replace(entry, method=method, name=f"{method}, IPC {entry.ipc}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Metrics of one set against one validation set by the features of one backbone."""

    measured: ReportedSet
    val: str
    backbone: str
    weights: str
    version: str
    values: dict[str, float]
    """By metric; NaN where one does not exist or was not measured."""


def measurements(metrics: Iterable[Row], sets: Mapping[str, ReportedSet]) -> list[Measurement]:
    """Join the metric rows of each set, validation set, backbone and metric version."""
    short_names = {metric.stamp.partition("@")[0]: short for short, metric in METRICS.items()}
    measured: dict[tuple[str, ...], Measurement] = {}
    for row in metrics:
        name, _, version = str(row["metric"]).partition("@")
        key = (row["set_digest"], row["val_identity"], row["backbone"], row["weights"], version)
        if key not in measured:
            measured[key] = Measurement(
                measured=sets[row["set_digest"]],
                **{name: row[name] for name in ("val", "backbone", "weights")},
                version=version,
                values=dict.fromkeys(METRICS, math.nan),
            )
        if row["value"] is not None:
            measured[key].values[short_names.get(name, name)] = row["value"]
    order = list(sets)
    return [measured[key] for key in sorted(measured, key=lambda key: (order.index(key[0]), key))]


def set_costs(results: Results, digests: Iterable[str]) -> dict[str, list[StageCost]]:
    """Return the cost of every set whose ledger RESULTS keeps; stages of the inputs come first."""
    lineages = {digest: results.lineage(digest) for digest in digests}
    return {
        digest: construction_cost(lineage["ledger"])
        for digest, lineage in lineages.items()
        if lineage and lineage["ledger"]
    }


class FoundSet(NamedTuple):
    """A reported set that is still where it was, with its images."""

    reported: ReportedSet
    condensed: CondensedSet


class FoundScores(NamedTuple):
    """One score of every image of a data set."""

    score: str
    digest: str
    table: ScoreTable
    values: NDArray[np.float32]
    labels: NDArray[np.int64]
    """Class of every image, or the group that stood for it."""

    @property
    def easiness(self) -> NDArray[np.float32]:
        """Turn the score so that low is hard."""
        return easiness(self.score, self.values)


class Evidence(NamedTuple):
    """Everything that was found, and one line on each thing that was not."""

    sets: Sequence[FoundSet]
    scores: Sequence[FoundScores]
    notices: Sequence[str]

    @property
    def balances(self) -> dict[str, str]:
        """Images of the classes in each set that was chosen by pseudo-labels, by its digest."""
        balances = {entry.reported.digest: entry.condensed.info.balance for entry in self.sets}
        return {digest: balance for digest, balance in balances.items() if balance}


def gather(results: Path, sets: Iterable[ReportedSet], data: Path | None) -> Evidence:
    """Open every reported set, below ``results`` or with the data at ``data``, and its scores."""
    opened: list[FoundSet] = []
    scores: dict[tuple[str, str], FoundScores] = {}
    notices: list[str] = []
    for entry in sets:
        part = "images"
        try:
            condensed = _opened(results, entry, data)
            opened.append(FoundSet(entry, condensed))
            part = "scores"
            _add_scores_behind(condensed, scores)
        except UNREADABLE as error:
            notices.append(f"{entry.data}, {entry.name}: its {part} are left out, for {error}")
    return Evidence(opened, list(scores.values()), notices)


def _opened(results: Path, reported: ReportedSet, data: Path | None) -> CondensedSet:
    path = (results.resolve() / reported.path).resolve()
    try:
        condensed = open_set(path)
    except UsageError:
        if data is None or not path.is_dir():
            raise
        condensed = open_set(path, data=data)
    if condensed.provenance.digest != reported.digest:
        raise UsageError(
            f"{path} holds another set by now; train on that one, or restore the old one"
        )
    return condensed


def _add_scores_behind(condensed: CondensedSet, scores: dict[tuple[str, str], FoundScores]) -> None:
    """Open the scores that a coreset was chosen by, unless they are open or it was without."""
    recorded = condensed.provenance.ancestor("scores") or {}
    digest, score = str(recorded.get("digest")), condensed.info.parameters.get("score")
    if not recorded or score is None or (digest, score) in scores:
        return
    directory = locate(condensed.path, "scores")
    if directory is None or Provenance.read(directory).digest != digest:
        raise UsageError(f"{directory} does not hold the scores of this set any more")
    table = ScoreTable(path=directory, dataset=condensed.dataset)
    scores[digest, score] = FoundScores(score, digest, table, table.values(score), table.labels)
