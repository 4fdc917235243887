"""Scoreboard of packers and readers that meet faulty data: the fault matrix about packing.

    python -m coreset.bench.robustness [--peers FOLDER] [--row 6 7 ...]

Each fault is made anew for each contender, which meets it in a process of its own: ``coreset``
through its command line, webdataset's ``ShardWriter`` and reader, DALI on a CPU, and img2dataset if
its whole package is in FOLDER/img2dataset (``bench/peers/faults_img2dataset.py`` says how). The
outcome is judged by the output (``bench.robustness.outcomes``). Writes
``bench/results/robustness.jsonl``.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from coreset.bench.docs import Block, Table
from coreset.bench.harness import RESULTS, Row, portable, read, record, write
from coreset.bench.robustness import contenders, forgeries, processes, uses
from coreset.bench.robustness.cases import Case, Inputs, image_cases, packed_cases, shard_cases
from coreset.bench.robustness.folders import folder_cases
from coreset.bench.robustness.outcomes import Judged, Observed, Outcome, judge
from coreset.bench.robustness.tables import table_cases

Contender = Callable[[Case, Inputs, Path], Observed]
CONTENDERS = ("webdataset", "dali", "img2dataset", "coreset")
DOES_NOT_APPLY = "does not apply"
NOT_INSTALLED = "not installed here"
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """Run the scoreboard."""

    peers: Path = Path("/tmp/peers")  # noqa: S108 - thrown away, and holds nothing of ours
    """Folder with a folder of packages per peer."""
    row: tuple[int, ...] = ()
    """Rows of the fault matrix to run; all by default. Records of other rows are kept, and of
    programs that are not installed."""
    contender: tuple[str, ...] = CONTENDERS
    """Who is to run."""

    def run(self) -> None:
        """Run every case and record it."""
        packages = self.peers / "img2dataset"
        installed = contenders.img2dataset_version(packages)
        versions = contenders.versions() | ({"img2dataset": installed} if installed else {})
        rows: list[Row] = []
        for row in self._rows(packages if installed else None):
            print(f"{row['row']:>3} {row['fault']:<30} {row['contender']:<12} {row['outcome']}"
                  f" ({row['detail']})", flush=True)  # fmt: skip
            rows.append(row)
        # Only now: it imports torch, whose memory a child would be charged for.
        circumstances = record("robustness", {"peers": versions})
        recorded = read("robustness") if (RESULTS / "robustness.jsonl").is_file() else []
        kept = merged(recorded, [{**circumstances, **row} for row in rows])
        print(f"written: {write('robustness', kept)}")

    def _rows(self, img2dataset: Path | None) -> Iterator[Row]:
        known = _contenders(img2dataset)
        chosen = {name: known[name] for name in self.contender}
        for case in chain(
            image_cases(), folder_cases(), shard_cases(), packed_cases(), table_cases()
        ):
            if not self.row or case.row in self.row:
                for name, contender in chosen.items():
                    yield _named(case.row, case.fault, case.injected, name,
                                 _met(case, name, contender))  # fmt: skip
        for case in (*processes.CASES, *uses.CASES, *forgeries.CASES):
            if not self.row or case.row in self.row:
                for name in self.contender:
                    yield _named(case.row, case.fault, case.injected, name, _went(case, name))


def merged(recorded: Iterable[Row], rows: Iterable[Row]) -> list[Row]:
    """Replace records by newer ones; the absence of a program replaces none."""
    kept = {(row["fault"], row["contender"]): row for row in recorded}
    for row in rows:
        place = row["fault"], row["contender"]
        if row["outcome"] != NOT_INSTALLED or place not in kept:
            kept[place] = row
    return list(kept.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    outcome: str
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=Row)


def _contenders(img2dataset: Path | None) -> dict[str, Contender | None]:
    return {
        "webdataset": contenders.webdataset,
        "dali": contenders.dali,
        "img2dataset": contenders.img2dataset(img2dataset) if img2dataset else None,
        "coreset": contenders.coreset,
    }


def _met(case: Case, name: str, contender: Contender | None) -> _Cell:
    """Run one contender on one case, in an empty folder."""
    if name != "coreset" and case.kind == "table":
        return _Cell(outcome=DOES_NOT_APPLY, detail="its caller reads the list")
    if name == "img2dataset" and case.kind != "folder":
        return _Cell(outcome=DOES_NOT_APPLY, detail="it reads no shards")
    if contender is None:
        return _Cell(outcome=NOT_INSTALLED)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        work = Path(folder)
        inputs = case.prepare(work)
        observed = contender(case, inputs, work)
        return _cell(judge(observed, inputs.expected), observed)


def _cell(judged: Judged, observed: Observed) -> _Cell:
    lines = [line for line in observed.ran.text.splitlines() if line.strip()]
    facts = {
        "exit_code": observed.ran.code,
        "peak_mb": observed.ran.peak_mb,
        "delivered": len(observed.samples),
        "said": portable("\n".join(lines[-4:]))[:600],  # before a cut could halve a place
    }
    return _Cell(outcome=judged.outcome, detail=judged.detail, facts=facts)


def _went(case: processes.ProcessCase, name: str) -> _Cell:
    run = {"coreset": case.coreset, "webdataset": case.webdataset}.get(name)
    if run is None:
        unmet = NOT_MEASURED if name == "img2dataset" and case.packs else DOES_NOT_APPLY
        return _Cell(outcome=unmet)
    if (reason := case.cannot_run()) is not None:
        return _Cell(outcome=NOT_MEASURED, detail=reason)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        outcome, detail = run(Path(folder))
    return _Cell(outcome=outcome, detail=detail)


def _named(row: int, fault: str, injected: str, contender: str, cell: _Cell) -> Row:
    return {
        "row": row,
        "fault": fault,
        "injected": injected,
        "contender": contender,
        "outcome": str(cell.outcome),
        "detail": cell.detail,
        **cell.facts,
    }


_ERRORS = (Outcome.NAMED, Outcome.NAMELESS)
_SPEAKS_FOR_ITSELF = (Outcome.RIGHT, Outcome.TOLD, Outcome.RUNS_CODE, Outcome.HOSTILE)


def _faults() -> Iterator[Row]:
    """Return what each contender did with each fault."""
    records = read("robustness")
    cells = {(each["fault"], each["contender"]): _outcome(each) for each in records}
    faults = {each["fault"]: each for each in records}
    for fault in sorted(faults.values(), key=lambda each: each["row"]):
        yield fault | {name: cells[fault["fault"], name] for name in CONTENDERS}


def _outcome(row: Row) -> str:
    outcome, detail = row["outcome"], row["detail"]
    if row["contender"] == "coreset" and outcome in _ERRORS and "exit_code" in row:
        return f"{outcome} (exit {row['exit_code']})"
    if outcome in _SPEAKS_FOR_ITSELF and "exit_code" in row:
        return outcome
    return f"{outcome} ({detail})" if detail else outcome


def _counts() -> Iterator[Row]:
    """Return how often each outcome came."""
    records = read("robustness")
    counted = Counter((each["contender"], each["outcome"]) for each in records)
    for outcome in dict.fromkeys([*map(str, Outcome), *(each["outcome"] for each in records)]):
        counts = {name: counted[name, outcome] for name in CONTENDERS}
        if any(counts.values()):
            yield {"outcome": outcome, **counts}


def _circumstances() -> str:
    """List versions and place; a program that was absent has the date of its records."""
    rows = sorted(read("robustness"), key=lambda row: row["date"])
    newest = next(row for row in rows if row["date"] == rows[-1]["date"])
    of_peer = {name: row for row in rows for name in row["peers"]}
    peers = ", ".join(
        f"{name} {row['peers'][name]}"
        + (f" ({row['date']})" if row["date"] < newest["date"] else "")
        for name, row in of_peer.items()
    )
    text = (
        "{of_peers}, python {versions[python]}, pillow {versions[pillow]}; {hardware[cores]} "
        "cores, {date}, commit {commit}."
    )
    return text.format_map(newest | {"of_peers": peers})


_BY_CONTENDER = {name: f"{{{name}}}" for name in CONTENDERS}
BLOCKS: Mapping[str, Block] = {
    "robustness": Table(
        _faults, {"row": "{row}", "fault": "**{fault}**: {injected}", **_BY_CONTENDER}
    ),
    "robustness_summary": Table(_counts, {"outcome": "{outcome}", **_BY_CONTENDER}),
    "robustness_circumstances": _circumstances,
}
