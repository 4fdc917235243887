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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

from coreset.engine.artifacts.provenance import versions
from coreset.engine.doctor.machine import check_gpu
from coreset.engine.runtime.progress import Display, choose_display

Role: TypeAlias = Literal["ours", "peer", "limit"]
Row: TypeAlias = dict[str, Any]
_UNPRINTED = {"note", "peer_versions", "input_note"}
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
    """Error of the output in the folder; empty if the output is right."""
    note: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Versions of packages that ``record`` does not know."""


def absent(name: str, reason: str) -> Row:
    """Return the row of a contender that cannot run here."""
    return {"contender": name, "role": "peer", "absent": reason}


def race(
    entries: Sequence[Contender | Row],
    *,
    repeats: int,
    work: Path,
    images: int = 0,
    source_bytes: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Run all contenders by turns, once to warm up and ``repeats`` times by the clock.

    Args:
        entries: Contenders in the order of their turns, and rows of absent ones.
        repeats: Timed rounds.
        work: Existing folder; each run gets an empty one in it.
        images: Images of a turn; 0 if there is no rate.
        source_bytes: Bytes of these.
        clock: Seconds.

    Returns:
        A row per contender, the absent last; one with a wrong output has ``failed`` and no speed.
    """
    contenders = {entry.name: entry for entry in entries if isinstance(entry, Contender)}
    rows = [entry for entry in entries if not isinstance(entry, Contender)]
    if len(contenders) + len(rows) < len(entries):
        raise ValueError(f"contenders must have different names, got {[*contenders]}")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    errors: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        for turn in range(repeats + 1):
            for name, contender in contenders.items():
                took, error = _run(contender, Path(scratch, "out"), clock)
                errors[name] = errors.get(name) or error
                seconds[name] += [took] if turn else []
                failure = f"; FAILED: {error}" if error else ""
                print(f"  round {turn} of {repeats}: {name}: {took:.2f} s{failure}", flush=True)
    right = {name: seconds[name] for name in contenders if not errors[name]}
    timed = [
        _about(contender, seconds[name], errors[name])
        | (_speed(name, right, images, source_bytes) if name in right else {})
        for name, contender in contenders.items()
    ]
    return [*timed, *rows]


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


def _about(contender: Contender, seconds: Sequence[float], error: str) -> Row:
    row: Row = {
        "contender": contender.name,
        "role": contender.role,
        "note": contender.note,
        "peer_versions": dict(contender.versions),
        "seconds": [round(each, 6) for each in seconds],
    }
    return row | ({"failed": error} if error else {})


def _speed(
    name: str, seconds: Mapping[str, Sequence[float]], images: int, source_bytes: int
) -> Row:
    """Return a contender's times, its rates, and how many times as fast as each other it was."""
    own = seconds[name]
    took = median(own)
    row: Row = {
        "median_seconds": round(took, 6),
        "min_seconds": round(min(own), 6),
        "max_seconds": round(max(own), 6),
        "speed_over": {
            rival: round(median(ratios(times, own)), 3)
            for rival, times in seconds.items()
            if rival != name
        },
    }
    if images:
        row |= {
            "images": images,
            "source_bytes": source_bytes,
            "images_per_second": round(images / took, 1),
            "mb_per_second": round(source_bytes / took / 1e6, 1),
        }
    return row


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Divide the seconds of two contenders round by round."""
    return [a / b for a, b in zip(first, second, strict=True)]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of every benchmark that has parts."""

    data: Path = Path("../shared/data")
    """Folder with ``imagenet-sample``, ``imagenette`` and ``labels``."""
    work: Path = ROOT / "runs"
    """Folder to work in. What is made there is removed, unless the benchmark says otherwise."""
    repeats: int = 5
    """Timed rounds, after one that warms up."""
    threads: int = 2
    """Cores, and threads or processes of every contender."""
    dry: bool = False
    """Record nothing."""

    def record_parts(self, name: str, parts: Mapping[str, Callable[[], Iterable[Row]]]) -> None:
        """Run parts of a benchmark, print each row, and replace the records of these parts.

        Args:
            name: Benchmark, and file of its results.
            parts: Function that yields the rows, by name of the part.
        """
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.threads])
        choose_display(Display.QUIET)
        self.work.mkdir(parents=True, exist_ok=True)
        for part, rows in parts.items():
            print(part, flush=True)
            records: list[Row] = []
            for row in rows():
                print({key: row[key] for key in row if key not in _UNPRINTED}, flush=True)
                records.append(record(f"{name}.{part}", row))
            if not self.dry:
                kept = [row for row in read(name) if row["bench"] != f"{name}.{part}"]
                print(f"written: {write(name, [*kept, *records])}", flush=True)


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
    """Return the records of ``bench/results/NAME.jsonl``; none if there is no such file."""
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def records_of(bench: str) -> list[Row]:
    """Return the records of one part, such as ``pack.original``."""
    return [row for row in read(bench.partition(".")[0]) if row["bench"] == bench]
