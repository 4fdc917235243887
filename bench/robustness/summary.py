"""Tables of the recorded scoreboard of faults, for ``bench.docs``: one function per block."""

from collections.abc import Iterable, Sequence
from typing import Any

from coreset.bench.record import read
from coreset.bench.robustness.outcomes import Outcome

Row = dict[str, Any]
_CONTENDERS = ("webdataset", "dali", "img2dataset", "coreset")
_ERRORS = (Outcome.NAMED, Outcome.NAMELESS)
_SPEAKS_FOR_ITSELF = (Outcome.RIGHT, Outcome.TOLD, Outcome.RUNS_CODE, Outcome.HOSTILE)


def robustness() -> str:
    """What each contender did with each fault."""
    rows = read("robustness")
    faults = dict.fromkeys((one["row"], one["fault"], one["injected"]) for one in rows)
    cells = {(one["fault"], one["contender"]): _cell(one) for one in rows}
    table = [
        (f"{row}", f"**{fault}**: {injected}", *(cells[fault, name] for name in _CONTENDERS))
        for row, fault, injected in sorted(faults, key=lambda one: one[0])
    ]
    return _markdown(("row", "fault", *_CONTENDERS), table)


def robustness_summary() -> str:
    """How often each outcome came."""
    rows = read("robustness")
    outcomes = [*Outcome, *dict.fromkeys(one["outcome"] for one in rows)]
    table = [
        (outcome, *(str(_count(rows, name, outcome)) for name in _CONTENDERS))
        for outcome in dict.fromkeys(map(str, outcomes))
        if any(_count(rows, name, outcome) for name in _CONTENDERS)
    ]
    return _markdown(("outcome", *_CONTENDERS), table)


def robustness_circumstances() -> str:
    """With which versions, and where; a program that was not there has the date of its records."""
    rows = read("robustness")
    one = max(rows, key=_date)
    of_peer = {name: row for row in sorted(rows, key=_date) for name in row["peers"]}
    peers = ", ".join(
        f"{name} {row['peers'][name]}" + (f" ({row['date']})" if row["date"] < one["date"] else "")
        for name, row in of_peer.items()
    )
    versions = ", ".join(f"{name} {one['versions'][name]}" for name in ("python", "pillow"))
    return (
        f"{peers}, {versions}; {one['hardware']['cores']} cores, {one['date']}, "
        f"commit {one['commit']}."
    )


def _date(one: Row) -> str:
    return one["date"]


def _count(rows: Iterable[Row], contender: str, outcome: str) -> int:
    return sum((one["contender"], one["outcome"]) == (contender, outcome) for one in rows)


def _cell(one: Row) -> str:
    outcome, detail = one["outcome"], one["detail"]
    if one["contender"] == "coreset" and outcome in _ERRORS and "exit_code" in one:
        return f"{outcome} (exit {one['exit_code']})"
    if outcome in _SPEAKS_FOR_ITSELF and "exit_code" in one:
        return outcome
    return f"{outcome} ({detail})" if detail else outcome


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
