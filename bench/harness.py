"""Harness of the benchmarks: contenders by turns, checked outputs, and records of what they took.

The speed of a machine changes from minute to minute, so contenders take turns on the same cores
(A B C A B C ...), and a ratio is the median of the ratios within a round. A first round warms up
(imports, compiled kernels, page cache): it is checked but not timed. Each run gets an empty folder
after a ``sync``, so that no contender waits for the disk writes of the one before. A record holds
hardware, versions and commit; ``bench/results/NAME.jsonl`` holds one record a line.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

from coreset.engine.artifacts.provenance import versions
from coreset.engine.doctor.machine import check_gpu

Role: TypeAlias = Literal["ours", "peer", "limit"]
Row: TypeAlias = dict[str, Any]
_UNPRINTED = {"note", "date", "commit", "hardware", "versions", "peer_versions", "input_note"}
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to do the work."""

    name: str
    run: Callable[[Path], object]
    """Does the whole work once, through fsync, into an empty folder."""
    role: Role = "peer"
    check: Callable[[Path], str] = lambda _out: ""
    """Returns the error of the output in the folder; empty if the output is right."""
    note: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of packages that ``record`` does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A contender that cannot run here."""

    name: str
    reason: str

    def row(self) -> Row:
        """Return its measurement."""
        return {"contender": self.name, "role": "peer", "absent": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of one contender by round, and the errors of its outputs."""

    contender: Contender
    seconds: tuple[float, ...]
    errors: tuple[str, ...]  # one per round, the warm-up included

    @property
    def median_seconds(self) -> float:
        """Median over the timed rounds."""
        return median(self.seconds)

    @property
    def failed(self) -> str:
        """First error of an output; empty if every output was right."""
        return next(filter(None, self.errors), "")

    def ratios_over(self, other: "Measured") -> list[float]:
        """Return, round by round, how many times as fast as ``other`` it was."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return [theirs / ours for ours, theirs in pairs]


def interleave(
    contenders: Sequence[Contender],
    *,
    repeats: int,
    work: Path,
    clock: Callable[[], float] = time.perf_counter,
    tell: Callable[[str], object] = print,
) -> list[Measured]:
    """Run all contenders by turns, once to warm up and ``repeats`` times by the clock.

    Args:
        contenders: In the order of their turns.
        repeats: Timed rounds.
        work: Existing folder; each run gets an empty one in it.
        clock: Seconds.
        tell: Prints one line per run.
    """
    runs: dict[str, list[tuple[float, str]]] = {contender.name: [] for contender in contenders}
    if len(runs) != len(contenders):
        raise ValueError(f"contenders must have different names, got {[*runs]} for some of them")
    for turn in range(repeats + 1):
        for contender in contenders:
            seconds, error = _run(contender, work / "out", clock)
            runs[contender.name].append((seconds, error))
            stage = f"round {turn}" if turn else "warm-up"
            failure = f"; FAILED: {error}" if error else ""
            tell(f"  {stage}: {contender.name}: {seconds:.2f} s{failure}")
    return [
        Measured(
            contender=contender,
            seconds=tuple(seconds for seconds, _ in runs[contender.name][1:]),
            errors=tuple(error for _, error in runs[contender.name]),
        )
        for contender in contenders
    ]


def interleave_in_scratch(
    contenders: Sequence[Contender], *, repeats: int, work: Path
) -> list[Measured]:
    """Run contenders by turns in a folder of their own below ``work``."""
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        return interleave(contenders, repeats=repeats, work=Path(scratch))


def _run(contender: Contender, out: Path, clock: Callable[[], float]) -> tuple[float, str]:
    out.mkdir()
    try:
        os.sync()
        started = clock()
        contender.run(out)
        seconds = clock() - started
        return seconds, contender.check(out)
    finally:
        shutil.rmtree(out)


def measurements(measured: Sequence[Measured], *, images: int, source_bytes: int) -> list[Row]:
    """Return one row per contender; one with a wrong output has ``failed`` and no speed.

    Rates are those of the images and bytes that were read; without images (0) there are none.
    """
    return [_measurement(each, measured, images, source_bytes) for each in measured]


def _measurement(
    timed: Measured, everyone: Sequence[Measured], images: int, source_bytes: int
) -> Row:
    contender, seconds = timed.contender, timed.median_seconds
    row: Row = {
        "contender": contender.name,
        "role": contender.role,
        "note": contender.note,
        "peer_versions": dict(contender.versions),
        "seconds": [round(each, 4) for each in timed.seconds],
    }
    if timed.failed:
        return row | {"failed": timed.failed}
    if images:
        row |= {
            "images": images,
            "source_bytes": source_bytes,
            "images_per_second": round(images / seconds, 1),
            "mb_per_second": round(source_bytes / seconds / 1e6, 1),
        }
    others = (other for other in everyone if other is not timed and not other.failed)
    return row | {
        "median_seconds": round(seconds, 4),
        "min_seconds": round(min(timed.seconds), 4),
        "max_seconds": round(max(timed.seconds), 4),
        "speed_over": {
            other.contender.name: round(median(timed.ratios_over(other)), 3) for other in others
        },
    }


def rows_of_all(
    entries: Sequence[Contender | Absent],
    *,
    repeats: int,
    work: Path,
    images: int = 0,
    source_bytes: int = 0,
) -> list[Row]:
    """Run those that can run by turns; return a row of each, the absent last."""
    present = [entry for entry in entries if isinstance(entry, Contender)]
    measured = interleave(present, repeats=repeats, work=work)
    rows = measurements(measured, images=images, source_bytes=source_bytes)
    return [*rows, *(entry.row() for entry in entries if isinstance(entry, Absent))]


def hardware() -> Row:
    """Return processor, usable cores, memory in GiB, and GPU if any."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "processor": models[0] if models else platform.machine(),
        "bfloat16": [name for name in ("avx512_bf16", "amx_bf16") if name in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "gpu": dict(next(check_gpu(RESULTS)).facts) or None,
    }


def commit() -> str:
    """Return the commit of the checkout, with ``+`` if the tree differs from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        name, changes = (
            subprocess.run([*git, *words], capture_output=True, check=True).stdout.decode().strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changes else "")


def record(bench: str, measured: Mapping[str, Any]) -> Row:
    """Return a measurement with its circumstances."""
    return {
        "bench": bench,
        **measured,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
    }


def run_parts(
    name: str,
    parts: Mapping[str, Callable[[], Iterable[Row]]],
    *,
    dry: bool,
    replaces: Callable[[Row], bool] = lambda _record: True,
) -> None:
    """Run parts of a benchmark, print each row, and replace the records of each part that ran.

    Args:
        name: Of the benchmark and its results.
        parts: Function that yields the rows, by name of the part.
        dry: Record nothing.
        replaces: Tests whether a new run of its part replaces a record.
    """
    for part, rows in parts.items():
        print(part, flush=True)
        records = list(_printed(record(f"{name}.{part}", row) for row in rows()))
        if not dry:
            kept = [
                row
                for row in (read(name) if (RESULTS / f"{name}.jsonl").is_file() else [])
                if row["bench"] != f"{name}.{part}" or not replaces(row)
            ]
            print(f"written: {write(name, [*kept, *records])}", flush=True)


def _printed(records: Iterable[Row]) -> Iterator[Row]:
    for row in records:
        print({key: row[key] for key in row if key not in _UNPRINTED}, flush=True)
        yield row


def write(name: str, records: Iterable[Mapping[str, Any]]) -> Path:
    """Replace ``bench/results/NAME.jsonl`` by these records, without paths of this machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    path.write_text("".join(portable(json.dumps(row)) + "\n" for row in records))
    return path


def portable(text: str) -> str:
    """Replace this machine's folders, which programs print in messages, by names."""
    places = {
        sysconfig.get_path("purelib"): "SITE-PACKAGES",
        sysconfig.get_path("stdlib"): "PYTHON",
        str(ROOT): "CHECKOUT",
        tempfile.gettempdir(): "TMP",
    }
    for place, name in places.items():  # site-packages may lie in the checkout: the inner first
        text = re.sub(rf"(?<![\w.-]){re.escape(place)}(?=/|\b)", name, text)
    return text


def read(name: str) -> list[Row]:
    """Return the records of ``bench/results/NAME.jsonl``."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def records_of(bench: str) -> list[Row]:
    """Return the records of one part, such as ``pack.original``."""
    return [row for row in read(bench.partition(".")[0]) if row["bench"] == bench]
