"""Accuracies of trained students, pooled over seeds, side by side where they are comparable.

Whether one method beats another is told by the interval of the difference of their means: paired
(Student) where both have students of the same seeds, else Welch's.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

import numpy as np

from coreset.engine.report.sets import ReportedSet, Row, method_order
from coreset.kernels.measures import paired_interval, welch_interval

SHORT_SUFFIX = "+short"
LEAST_STUDENTS = 3
"""Students that a method needs to be compared: the spread of two says next to nothing."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Setting:
    """Conditions that must be equal for accuracies to be comparable."""

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
        """Test whether the protocol was shortened: not comparable with published numbers."""
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
    seeds: tuple[tuple[int, int], ...] = ()
    """Seed of the set and of the student, of each student; empty if not known."""

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
        """Sample standard deviation of the best top-1; NaN for one student."""
        return sample_std(self.best)

    @property
    def last_mean(self) -> float:
        """Mean last top-1."""
        return float(np.mean(self.last))

    @property
    def last_std(self) -> float:
        """Sample standard deviation of the last top-1; NaN for one student."""
        return sample_std(self.last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Best top-1 of one method minus that of another, in points of a percent."""

    mean: float
    low: float
    """Lower end of the interval; NaN where there are not enough students to tell."""
    high: float
    interval: str
    """``paired`` or ``Welch``; empty where there are not enough students to tell."""

    @property
    def is_known(self) -> bool:
        """Tell whether there are enough students for an interval."""
        return bool(self.interval)

    @property
    def beats(self) -> bool:
        """Tell whether the whole interval lies above zero."""
        return self.low > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Methods in one setting, the best mean best top-1 first."""

    setting: Setting
    ranking: tuple[Accuracy, ...]

    @property
    def best(self) -> Accuracy:
        """Method with the highest mean best top-1."""
        return self.ranking[0]

    @property
    def others(self) -> tuple[tuple[Accuracy, Difference], ...]:
        """Compare every other method with the best."""
        return tuple((other, difference(self.best, other)) for other in self.ranking[1:])

    @property
    def is_won(self) -> bool:
        """Tell whether the best beats every other method."""
        return all(lead.beats for _, lead in self.others)

    @property
    def is_known(self) -> bool:
        """Tell whether every method has enough students to be compared."""
        return all(lead.is_known for _, lead in self.others)


def difference(one: Accuracy, other: Accuracy) -> Difference:
    """Compare the best top-1 of two methods; no interval with fewer than three students of one."""
    mean = one.best_mean - other.best_mean
    if min(one.n, other.n) < LEAST_STUDENTS:
        return Difference(mean=mean, low=math.nan, high=math.nan, interval="")
    paired = one.seeds == other.seeds and len(set(one.seeds)) == one.n
    bounds = paired_interval if paired else welch_interval
    low, high = bounds(np.array(one.best), np.array(other.best), CONFIDENCE)
    return Difference(mean=mean, low=low, high=high, interval="paired" if paired else "Welch")


def sample_std(values: Sequence[float]) -> float:
    """Sample standard deviation, divided by n - 1; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


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
    """Read the setting of one trained student."""
    return Setting(**{field.name: row[field.name] for field in fields(Setting)})


def _pooled(method: str, rows: list[Row]) -> Accuracy:
    ordered = sorted(rows, key=lambda row: (row["set_seed"], row["seed"], row["key"]))
    return Accuracy(
        method=method,
        best=tuple(row["top1_best"] for row in ordered),
        last=tuple(row["top1_last"] for row in ordered),
        digests=tuple(dict.fromkeys(row["set_digest"] for row in ordered)),
        seeds=tuple((row["set_seed"], row["seed"]) for row in ordered),
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
            "within_noise_of_best": _within_noise(lead),
            "behind_best": None if lead is None else lead.mean,
            "behind_best_low": None if lead is None else lead.low,
            "behind_best_high": None if lead is None else lead.high,
            "interval": "" if lead is None else lead.interval,
        }
        for comparison in compared
        for accuracy, lead in ((comparison.best, None), *comparison.others)
    ]


def _within_noise(lead: Difference | None) -> bool | None:
    """Tell whether a method may be as good as the best; None with too few students to tell."""
    if lead is None:
        return True
    return not lead.beats if lead.is_known else None
