"""Scoreboard of packers and readers that meet faulty data: the fault matrix about packing.

    python -m coreset.bench.robustness [--row 6 7 ...]

Each fault is made anew for each contender, which meets it in a process of its own: ``coreset``
through its command line, webdataset's ``ShardWriter`` and reader, and DALI on a CPU. The outcome is
judged by the output. Writes ``bench/results/robustness.jsonl``, keeping the records of rows that
were not run.
"""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from coreset.bench.docs import Block, Table
from coreset.bench.harness import Row, portable, read, record, write
from coreset.bench.processes import CORESET
from coreset.bench.robustness.cases import SAMPLES_PER_SHARD, Case, Inputs, cases
from coreset.bench.robustness.outcomes import (
    Outcome,
    Ran,
    Sample,
    judge,
    read_found,
    run,
)
from coreset.shards.format.dataset import Dataset
from coreset.shards.packing.encode import as_rgb

CONTENDERS = ("webdataset", "dali", "coreset")
SHOWN = ("webdataset", "dali", "img2dataset", "coreset")
"""Contenders that have records."""
_READERS = (sys.executable, "-m", "coreset.bench.robustness.readers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """Run the scoreboard."""

    row: tuple[int, ...] = ()
    """Rows of the fault matrix to run; all by default. Records of other rows are kept."""
    contender: tuple[str, ...] = CONTENDERS
    """Contenders to run."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run every case and record it."""
        rows: list[Row] = []
        for case in cases():
            if self.row and case.row not in self.row:
                continue
            for name in self.contender:
                row = _met(case, name)
                print("{row:>3} {fault:<30} {contender:<12} {outcome} ({detail})".format_map(row))
                rows.append(row)
        # Only now: it imports torch, whose memory a child would be charged for.
        peers = {"webdataset": version("webdataset"), "dali": version("nvidia-dali-cuda130")}
        circumstances = record("robustness", {"peers": peers})
        if not self.dry:
            kept = merged(read("robustness"), [{**circumstances, **row} for row in rows])
            print(f"written: {write('robustness', kept)}")


def merged(recorded: Iterable[Row], rows: Iterable[Row]) -> list[Row]:
    """Replace records by newer ones."""
    return list({(row["fault"], row["contender"]): row for row in (*recorded, *rows)}.values())


def _met(case: Case, name: str) -> Row:
    """Run one contender on one case, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        work = Path(folder)
        inputs = case.prepare(work)
        ran, samples = observe(case, inputs, work, name)
        outcome, detail = judge(ran, samples, inputs.expected)
    lines = [line for line in ran.text.splitlines() if line.strip()]
    return {
        "row": case.row,
        "fault": case.fault,
        "injected": case.injected,
        "contender": name,
        "outcome": str(outcome),
        "detail": detail,
        "exit_code": ran.code,
        "peak_mb": ran.peak_mb,
        "delivered": len(samples),
        "said": portable("\n".join(lines[-4:]))[:600],  # before a cut could halve a place
    }


def observe(case: Case, inputs: Inputs, work: Path, name: str) -> tuple[Ran, list[Sample]]:
    """Give the inputs to a contender, whose outputs go below ``work``."""
    if name == "coreset":
        return _by_coreset(case, inputs, work / "DATA")
    found, tars = work / "found", inputs.tars
    if case.kind == "folder":
        shards = work / "shards"
        shards.mkdir()
        written = run([*_READERS, "webdataset-write", inputs.place, shards, str(SAMPLES_PER_SHARD)])
        if written.code:
            return written, []
        tars = tuple(sorted(shards.glob("*.tar")))
    return run([*_READERS, name, found, *tars]), read_found(found)


def _by_coreset(case: Case, inputs: Inputs, data: Path) -> tuple[Ran, list[Sample]]:
    """Run ``coreset pack``, or ``coreset verify`` of what was packed before it was damaged."""
    if case.kind == "packed":
        ran = run([*CORESET, "verify", inputs.place])
        return ran, [] if ran.code else packed_samples(inputs.place)
    options = ["--samples-per-shard", str(SAMPLES_PER_SHARD), *inputs.options]
    ran = run([*CORESET, "pack", inputs.place, data, *options])
    if ran.code:
        return ran, []
    listed = run([*CORESET, "quarantine", "show", data])
    reported = Ran(code=0, text=ran.text + listed.text, peak_mb=ran.peak_mb)
    return reported, packed_samples(data)


def packed_samples(data: Path) -> list[Sample]:
    """Decode every sample of a packed data set; its class tells which sample it is."""
    return [_packed_sample(data, row) for row in Dataset.open(data).samples.to_pylist()]


def _packed_sample(data: Path, row: Row) -> Sample:
    with (data / f"shard-{row['shard']:06d}.tar").open("rb") as file:
        file.seek(row["offset"])
        stored = file.read(row["bytes"])
    with Image.open(BytesIO(stored)) as image:
        pixels = np.asarray(as_rgb(image))
    number = re.search(r"\d+", row["class"])  # c05; other names are no sample's
    label = int(number[0]) if number else None
    return Sample(label=label, key=row["key"], shape=pixels.shape, pixels=pixels)


_ERRORS = (Outcome.NAMED, Outcome.NAMELESS)
_SPEAKS_FOR_ITSELF = (Outcome.RIGHT, Outcome.TOLD, Outcome.RUNS_CODE, Outcome.HOSTILE)


def _faults() -> Iterator[Row]:
    """Return what each contender did with each fault."""
    records = read("robustness")
    cells = {(each["fault"], each["contender"]): _outcome(each) for each in records}
    faults = {each["fault"]: each for each in records}
    for fault in sorted(faults.values(), key=lambda each: each["row"]):
        yield fault | {name: cells[fault["fault"], name] for name in SHOWN}


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
        counts = {name: counted[name, outcome] for name in SHOWN}
        if any(counts.values()):
            yield {"outcome": outcome, **counts}


def _circumstances() -> str:
    """List versions and place; a program that was absent has the date of its records."""
    rows = sorted(read("robustness"), key=lambda row: row["date"])
    newest = next(row for row in rows if row["date"] == rows[-1]["date"])
    measured = {
        name: (version, row["date"]) for row in rows for name, version in row["peers"].items()
    }
    peers = ", ".join(
        f"{name} {version}" + (f" ({date})" if date < newest["date"] else "")
        for name, (version, date) in measured.items()
    )
    text = (
        "{of_peers}, python {versions[python]}, pillow {versions[pillow]}; {hardware[cores]} "
        "cores, {date}, commit {commit}."
    )
    return text.format_map(newest | {"of_peers": peers})


_BY_CONTENDER = {name: f"{{{name}}}" for name in SHOWN}
BLOCKS: Mapping[str, Block] = {
    "robustness": Table(
        _faults, {"row": "{row}", "fault": "**{fault}**: {injected}", **_BY_CONTENDER}
    ),
    "robustness_summary": Table(_counts, {"outcome": "{outcome}", **_BY_CONTENDER}),
    "robustness_circumstances": _circumstances,
}
