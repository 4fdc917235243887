"""Accuracies of trained students, pooled over seeds, side by side where they are comparable."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import numpy as np

from engine.report.catalogue import ReportedSet, Row, method_order

SHORT_SUFFIX = "+short"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Setting:
    """What must be equal for accuracies to be comparable."""

    data: str
    val: str
    val_identity: str
    n_val: int
    protocol: str
    student: str
    ipc: int
    epochs: int
    size: int
    evaluations: int

    @property
    def short(self) -> bool:
        """Whether the protocol was shortened: not comparable with published numbers."""
        return self.protocol.endswith(SHORT_SUFFIX)

    @property
    def pixels_and_evaluations(self) -> str:
        """Image size and number of evaluations, in words."""
        return f"{self.size} px, {self.evaluations} evaluations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 accuracies in percent of the students of one method in one setting, by seed."""

    method: str
    best: tuple[float, ...]
    """Best of the evaluations of each student."""
    last: tuple[float, ...]
    """Last evaluation of each student."""
    digests: tuple[str, ...]
    """Sets that the students were trained on, each once."""

    @property
    def n(self) -> int:
        """Students."""
        return len(self.best)

    @property
    def best_mean(self) -> float:
        """Mean best top-1."""
        return float(np.mean(self.best))

    @property
    def best_std(self) -> float:
        """Population standard deviation of the best top-1 (``np.std``); 0 for one student."""
        return float(np.std(self.best))

    @property
    def last_mean(self) -> float:
        """Mean last top-1."""
        return float(np.mean(self.last))

    @property
    def last_std(self) -> float:
        """Population standard deviation of the last top-1."""
        return float(np.std(self.last))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Methods in one setting, the best mean best top-1 first."""

    setting: Setting
    ranking: tuple[Accuracy, ...]

    @property
    def best(self) -> Accuracy:
        """The method with the highest mean best top-1."""
        return self.ranking[0]

    @property
    def tied(self) -> tuple[Accuracy, ...]:
        """Other methods within noise of the best."""
        return tuple(other for other in self.ranking[1:] if within_noise(self.best, other))

    @property
    def beaten(self) -> tuple[Accuracy, ...]:
        """Methods that the best beats by more than the noise."""
        return tuple(other for other in self.ranking[1:] if not within_noise(self.best, other))


def within_noise(one: Accuracy, other: Accuracy) -> bool:
    """Whether two means differ by no more than ``sqrt(std^2 + std^2)`` over their students."""
    return abs(one.best_mean - other.best_mean) <= math.hypot(one.best_std, other.best_std)


def comparisons(students: Iterable[Row], sets: Mapping[str, ReportedSet]) -> list[Comparison]:
    """Group the rows of ``students`` by setting and method, in the order of the settings."""
    groups: dict[Setting, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in students:
        groups[setting_of(row)][sets[row["set_digest"]].method].append(row)
    return [
        Comparison(
            setting=setting,
            ranking=tuple(
                sorted((_pooled(name, rows) for name, rows in methods.items()), key=_rank)
            ),
        )
        for setting, methods in sorted(groups.items(), key=lambda item: astuple(item[0]))
    ]


def setting_of(row: Row) -> Setting:
    """The setting of one trained student."""
    return Setting(**{field.name: row[field.name] for field in fields(Setting)})


def _pooled(method: str, rows: list[Row]) -> Accuracy:
    ordered = sorted(rows, key=lambda row: (row["set_seed"], row["seed"], row["key"]))
    return Accuracy(
        method=method,
        best=tuple(row["top1_best"] for row in ordered),
        last=tuple(row["top1_last"] for row in ordered),
        digests=tuple(dict.fromkeys(row["set_digest"] for row in ordered)),
    )


def _rank(accuracy: Accuracy) -> tuple[Any, ...]:
    return -accuracy.best_mean, *method_order(accuracy.method)


def accuracy_records(compared: Iterable[Comparison]) -> list[dict[str, Any]]:
    """One flat record per setting and method, for the CSV file; accuracies in percent."""
    return [
        {
            **asdict(comparison.setting),
            "method": accuracy.method,
            "students": accuracy.n,
            "sets": len(accuracy.digests),
            "top1_best_mean": accuracy.best_mean,
            "top1_best_std": accuracy.best_std,
            "top1_last_mean": accuracy.last_mean,
            "top1_last_std": accuracy.last_std,
            "within_noise_of_best": within_noise(comparison.best, accuracy),
        }
        for comparison in compared
        for accuracy in comparison.ranking
    ]
