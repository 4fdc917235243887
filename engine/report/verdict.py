"""Verdicts: which method is best, in words that follow the intervals of the differences."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from coreset.engine.report.results import LEAST_STUDENTS, Accuracy, Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Answer of one comparison."""

    where: str
    """Data, IPC, protocol and student."""
    sentence: str
    caveat: str
    """Weakness of the comparison; may be empty."""


def verdicts(compared: Sequence[Comparison]) -> list[Verdict]:
    """One verdict per comparison."""
    return [
        Verdict(where=_where(one), sentence=_sentence(one), caveat=_caveat(one)) for one in compared
    ]


def headline(compared: Sequence[Comparison]) -> str:
    """Sum all comparisons up in one line."""
    if not compared:
        return "No student was trained yet"
    contests = [one for one in compared if len(one.ranking) > 1]
    if not contests:
        best = compared[0].best
        return f"{best.method} alone was trained: {percent(best)}"
    if len(compared) == 1:
        return _sentence(compared[0])
    wins = Counter(one.best.method for one in contests if one.is_won)
    undecided = [one for one in contests if not one.is_won]
    n_few = sum(not one.is_known for one in undecided)
    if not wins:
        reasons = ["the leaders are within noise of each other"] if n_few < len(undecided) else []
        reasons += ["not enough students to tell"] if n_few else []
        return f"No method is clearly best: {_and(reasons)}"
    parts = ", ".join(f"{method} in {n}" for method, n in wins.most_common())
    n_noise = len(undecided) - n_few
    parts += f", {n_noise} within noise" if n_noise else ""
    parts += f", {n_few} with too few students to tell" if n_few else ""
    return f"Best of {len(contests)} comparisons: {parts}"


def percent(accuracy: Accuracy) -> str:
    """Mean and spread of the best top-1: ``57.2 ± 0.5 %``."""
    return f"{plus_minus(accuracy.best_mean, accuracy.best_std)} %"


def plus_minus(mean: float, std: float, sign: str = "±") -> str:
    """``57.2 ± 0.5``; the mean alone where there is no deviation (NaN)."""
    return f"{mean:.1f}" if math.isnan(std) else f"{mean:.1f} {sign} {std:.1f}"


def _where(comparison: Comparison) -> str:
    setting = comparison.setting
    return f"{setting.data}, IPC {setting.ipc}, {setting.protocol}, {setting.student}"


def _sentence(comparison: Comparison) -> str:
    best, others = comparison.best, comparison.others
    tied = [
        f"{_named(other)} ({lead.low:.1f} to {lead.high:.1f})"
        for other, lead in others
        if lead.is_known and not lead.beats
    ]
    beaten = [
        f"{_named(other)} (by {lead.low:.1f} to {lead.high:.1f})"
        for other, lead in others
        if lead.beats
    ]
    few = [_named(other) for other, lead in others if not lead.is_known]
    parts = [f"is within noise of {_and(tied)}"] if tied else []
    parts += [f"beats {_and(beaten)}"] if beaten else []
    parts += [f"leads {_and(few)}: not enough students to tell"] if few else []
    if not parts:
        return f"{_named(best)}; no other method was trained"
    return f"{_named(best)} {', and '.join(parts)}"


def _caveat(comparison: Comparison) -> str:
    few = [f"{one.method} {one.n}" for one in comparison.ranking if one.n < LEAST_STUDENTS]
    caveats = [f"students: {', '.join(few)}; {LEAST_STUDENTS} are needed to compare"] if few else []
    caveats += ["a shortened protocol"] if comparison.setting.short else []
    return "; ".join(caveats)


def _named(accuracy: Accuracy) -> str:
    return f"{accuracy.method} {plus_minus(accuracy.best_mean, accuracy.best_std)}"


def _and(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
