"""Accuracies of trained students, side by side where they are comparable, and who is best.

That is told by the interval of the difference of means: paired (Student) where both methods have
students of the same seeds, else Welch's.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from coreset.engine.report.sets import ReportedSet, Row, method_order
from coreset.engine.report.settings import Setting
from coreset.kernels.measures import difference_interval

LEAST_STUDENTS = 3
"""Students that a method needs to be compared: the spread of two says next to nothing."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 accuracies in percent of the students of one method in one setting, by seed."""

    method: str
    best: tuple[float, ...]
    last: tuple[float, ...]
    digests: tuple[str, ...]
    """Sets that the students were trained on, each once."""
    seeds: tuple[tuple[int, int], ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Students."""
        return len(self.best)

    @property
    def mean(self) -> float:
        """Mean best top-1."""
        return float(np.mean(self.best))

    def __str__(self) -> str:
        return f"{self.method} {plus_minus(self.best)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Best top-1 of one method minus that of another, in points of a percent."""

    mean: float
    low: float = math.nan
    """Lower end of the interval; NaN where there are not enough students to tell."""
    high: float = math.nan
    interval: str = ""
    """``paired`` or ``Welch``; empty where there are not enough students to tell."""

    @property
    def is_noise(self) -> bool | None:
        """Tell whether the interval reaches below zero; None with too few students to tell."""
        return self.low <= 0 if self.interval else None

    def __str__(self) -> str:
        return f"{self.low:.1f} to {self.high:.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Methods in one setting, the best mean best top-1 first."""

    setting: Setting
    ranking: tuple[Accuracy, ...]
    title: str
    """Setting in words, with the digest of its protocol where they are those of another too."""

    @property
    def best(self) -> Accuracy:
        """Method with the highest mean best top-1."""
        return self.ranking[0]

    @property
    def others(self) -> tuple[tuple[Accuracy, Difference], ...]:
        """Every other method, and the lead of the best over it."""
        return tuple((other, difference(self.best, other)) for other in self.ranking[1:])

    @property
    def is_known(self) -> bool:
        """Tell whether every method has enough students to be compared."""
        return all(lead.interval for _, lead in self.others)

    @property
    def sentence(self) -> str:
        """Say which method is best, in words that follow the intervals."""
        others = self.others
        tied = [f"{rival} ({lead})" for rival, lead in others if lead.is_noise]
        beaten = [f"{rival} (by {lead})" for rival, lead in others if lead.is_noise is False]
        few = [str(rival) for rival, lead in others if lead.is_noise is None]
        parts = [f"is within noise of {_and(tied)}"] if tied else []
        parts += [f"beats {_and(beaten)}"] if beaten else []
        parts += [f"leads {_and(few)}: not enough students to tell"] if few else []
        if not parts:
            return f"{self.best}; no other method was trained"
        return f"{self.best} {', and '.join(parts)}"

    @property
    def caveat(self) -> str:
        """Name the weaknesses of the comparison, if there are any."""
        few = [f"{each.method} {each.n}" for each in self.ranking if each.n < LEAST_STUDENTS]
        needed = f"{LEAST_STUDENTS} are needed to compare"
        caveats = [f"students: {', '.join(few)}; {needed}"] if few else []
        caveats += ["a shortened protocol"] if self.setting.short else []
        return "; ".join(caveats)


def difference(best: Accuracy, rival: Accuracy) -> Difference:
    """Compare the best top-1 of two methods; no interval with fewer than three students of one."""
    mean = best.mean - rival.mean
    if min(best.n, rival.n) < LEAST_STUDENTS:
        return Difference(mean=mean)
    paired = best.seeds == rival.seeds and len(set(best.seeds)) == best.n
    first, second = np.array(best.best), np.array(rival.best)
    low, high = difference_interval(first, second, CONFIDENCE, paired=paired)
    return Difference(mean=mean, low=low, high=high, interval="paired" if paired else "Welch")


def sample_std(values: Sequence[float]) -> float:
    """Return the sample standard deviation, divided by n - 1; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def population_std(values: Sequence[float]) -> float:
    """Return ``np.std``, divided by n, as published; NaN for a single value, where that is 0."""
    return float(np.std(values)) if len(values) > 1 else math.nan


def plus_minus(values: Sequence[float], sign: str = "±") -> str:
    """Format mean and spread, ``57.2 ± 0.5``; the mean alone of a single value."""
    spread = f" {sign} {sample_std(values):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def comparisons(students: Iterable[Row], sets: Mapping[str, ReportedSet]) -> list[Comparison]:
    """Group the rows of ``students`` by setting and method, in the order of the settings."""
    groups: dict[Setting, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in students:
        columns = {field.name: row.get(field.name) for field in fields(Setting)}
        setting = Setting(**{name: value for name, value in columns.items() if value is not None})
        groups[setting][sets[row["set_digest"]].method].append(row)
    namesakes = Counter(setting.title for setting in groups)
    compared: list[Comparison] = []
    for setting, by_method in sorted(groups.items()):
        pooled = [_pooled(method, rows) for method, rows in by_method.items()]
        pooled.sort(key=lambda accuracy: (-accuracy.mean, *method_order(accuracy.method)))
        title = setting.title
        if namesakes[title] > 1:
            title += f", {setting.digest or 'no digest'}"
        compared.append(Comparison(setting=setting, ranking=tuple(pooled), title=title))
    return compared


def _pooled(method: str, rows: list[Row]) -> Accuracy:
    ordered = sorted(rows, key=lambda row: (row["set_seed"], row["seed"], row["key"]))
    return Accuracy(
        method=method,
        best=tuple(row["top1_best"] for row in ordered),
        last=tuple(row["top1_last"] for row in ordered),
        digests=tuple(dict.fromkeys(row["set_digest"] for row in ordered)),
        seeds=tuple((row["set_seed"], row["seed"]) for row in ordered),
        keys=tuple(row["key"] for row in ordered),
    )


def accuracy_records(compared: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Make one flat record per setting and method, for the CSV file; accuracies in percent."""
    return [
        {
            **asdict(comparison.setting),
            "method": accuracy.method,
            "students": accuracy.n,
            "sets": len(accuracy.digests),
            "top1_best_mean": accuracy.mean,
            "top1_best_std": sample_std(accuracy.best),
            "top1_best_std_population": population_std(accuracy.best),
            "top1_last_mean": float(np.mean(accuracy.last)),
            "top1_last_std": sample_std(accuracy.last),
            "top1_last_std_population": population_std(accuracy.last),
            "within_noise_of_best": lead is None or lead.is_noise,
            "behind_best": lead and lead.mean,
            "behind_best_low": lead and lead.low,
            "behind_best_high": lead and lead.high,
            "interval": lead.interval if lead else "",
        }
        for comparison in compared
        for accuracy, lead in ((comparison.best, None), *comparison.others)
    ]


def headline(compared: Sequence[Comparison]) -> str:
    """Sum all comparisons up in one line."""
    contests = [comparison for comparison in compared if len(comparison.ranking) > 1]
    if not compared:
        return "No student was trained yet"
    if not contests:
        best = compared[0].best
        return f"{best.method} alone was trained: {plus_minus(best.best)} %"
    if len(compared) == 1:
        return compared[0].sentence
    clear = [each for each in contests if all(lead.is_noise is False for _, lead in each.others)]
    wins = Counter(contest.best.method for contest in clear)
    n_few = sum(not contest.is_known for contest in contests)
    n_noise = len(contests) - wins.total() - n_few
    if not wins:
        reasons = ["the leaders are within noise of each other"] if n_noise else []
        reasons += ["not enough students to tell"] if n_few else []
        return f"No method is clearly best: {_and(reasons)}"
    parts = [f"{method} in {n}" for method, n in wins.most_common()]
    parts += [f"{n_noise} within noise"] if n_noise else []
    parts += [f"{n_few} with too few students to tell"] if n_few else []
    return f"Best of {len(contests)} comparisons: {', '.join(parts)}"


def _and(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
