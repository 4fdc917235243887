"""Which method is best, in words that do not claim more than the spread over students allows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.report.accuracy import Accuracy, Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer of one comparison."""

    where: str
    """Data, IPC, protocol and student."""
    sentence: str
    caveat: str
    """What weakens it; may be empty."""


def verdicts(compared: Sequence[Comparison]) -> list[Verdict]:
    """One verdict per comparison."""
    return [
        Verdict(where=_where(one), sentence=_sentence(one), caveat=_caveat(one)) for one in compared
    ]


def headline(compared: Sequence[Comparison]) -> str:
    """The answer of all comparisons in one line."""
    if not compared:
        return "No student was trained yet"
    contests = [one for one in compared if len(one.ranking) > 1]
    if not contests:
        best = compared[0].best
        return f"{best.method} alone was trained: {percent(best)}"
    if len(compared) == 1:
        return _sentence(compared[0])
    wins = Counter(one.best.method for one in contests if not one.tied)
    if not wins:
        return "No method is clearly best: the leaders are within noise of each other"
    told = ", ".join(f"{method} in {n}" for method, n in wins.most_common())
    n_open = len(contests) - wins.total()
    undecided = f", {n_open} within noise" if n_open else ""
    return f"Best of {len(contests)} comparisons: {told}{undecided}"


def percent(accuracy: Accuracy) -> str:
    """Mean and spread of the best top-1: ``57.2 ± 0.5 %``."""
    return f"{plus_minus(accuracy.best_mean, accuracy.best_std)} %"


def plus_minus(mean: float, std: float) -> str:
    """``57.2 ± 0.5``."""
    return f"{mean:.1f} ± {std:.1f}"


def _where(comparison: Comparison) -> str:
    setting = comparison.setting
    return f"{setting.data}, IPC {setting.ipc}, {setting.protocol}, {setting.student}"


def _sentence(comparison: Comparison) -> str:
    best, tied, beaten = comparison.best, comparison.tied, comparison.beaten
    told = [f"is within noise of {_listed(tied)}"] if tied else []
    told += [f"beats {_listed(beaten)}"] if beaten else []
    if not told:
        return f"{_named(best)}; no other method was trained"
    return f"{_named(best)} {', and '.join(told)}"


def _caveat(comparison: Comparison) -> str:
    single = [accuracy.method for accuracy in comparison.ranking if accuracy.n == 1]
    caveats = [f"one student of {_and(single)}: spread unknown"] if single else []
    caveats += ["a shortened protocol"] if comparison.setting.short else []
    return "; ".join(caveats)


def _listed(accuracies: Sequence[Accuracy]) -> str:
    return _and([_named(accuracy) for accuracy in accuracies])


def _named(accuracy: Accuracy) -> str:
    return f"{accuracy.method} {plus_minus(accuracy.best_mean, accuracy.best_std)}"


def _and(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
