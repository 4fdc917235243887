"""Cost of stage runs in ``ledger.jsonl``, one JSON line a run; the only reader of the clock.

An artifact's ledger holds its own lines and, marked with their digests, those of its inputs.
"""

import json
import math
import os
import resource
import socket
import time
from collections import defaultdict
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from coreset.engine.artifacts.provenance import versions
from coreset.shards.format.files import parse, write_atomically

LEDGER_NAME = "ledger.jsonl"
RUNNING_NAME = "ledger.running.json"
Line = dict[str, Any]
_one_of_several: ContextVar[bool] = ContextVar("one_of_several", default=False)
_SUMMED = {
    "stage": str, "device": str, "wall_seconds": int | float, "cpu_seconds": int | float,
    "images": int | float, "interrupted": int | float,
    "peak_rss_bytes": int | None,  # None where stages share a process
}  # fmt: skip
_KINDS: dict[str, Any] = _SUMMED | {
    "artifact": str, "config_digest": str, "started": str, "host": str,
    "images_per_second": int | float, "cores": int | float,
}  # fmt: skip


def _cpu_seconds() -> float:
    """Return user and system time of this process and of its ended children."""
    return sum(os.times()[:4])


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Stopwatch for parts of a stage; running from its construction."""

    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started


@dataclass(slots=True)
class Meter:
    """Measurement of one stage run, from the construction of the meter to ``line()``."""

    stage: str
    config_digest: str
    device: str = "cpu"
    images: int = 0
    """Image passes: an image seen in ten epochs counts ten times."""
    bytes_read: int = 0
    bytes_written: int = 0
    notes: dict[str, Any] = field(default_factory=dict[str, Any])
    _started: datetime = field(default_factory=partial(datetime.now, UTC))
    _watch: Stopwatch = field(default_factory=Stopwatch)
    _cpu: float = field(default_factory=_cpu_seconds)

    @property
    def wall_seconds(self) -> float:
        """Seconds since this meter was made."""
        return self._watch.seconds

    def line(self, *, interrupted: bool = False) -> Line:
        """Return the ledger line as of now."""
        wall = self.wall_seconds
        return {
            "stage": self.stage,
            "config_digest": self.config_digest,
            "started": self._started.isoformat(timespec="milliseconds"),
            "wall_seconds": round(wall, 3),
            "cpu_seconds": round(_cpu_seconds() - self._cpu, 3),
            "images": self.images,
            "images_per_second": round(self.images / wall, 1) if wall > 0 else 0.0,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "peak_rss_bytes": peak_rss_bytes(),
            "device": self.device,
            "cores": len(os.sched_getaffinity(0)),
            "host": socket.gethostname(),
            "interrupted": interrupted,
            "versions": versions(),
            **self.notes,
        }

    def checkpoint(self, scratch: Path) -> None:
        """Write the cost so far to ``scratch``, so that a killed run is still paid for."""
        line = json.dumps(self.line(interrupted=True)) + "\n"
        write_atomically(scratch / RUNNING_NAME, line.encode())


@contextmanager
def several_stages() -> Generator[None]:
    """Leave peak memory, which is that of the process, out of the lines of stages that share it."""
    token = _one_of_several.set(True)
    try:
        yield
    finally:
        _one_of_several.reset(token)


def peak_rss_bytes() -> int | None:
    """Return the largest resident set of this process so far; None within `several_stages`."""
    if _one_of_several.get():
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_ledger(artifact: Path) -> list[Line]:
    """Read the lines of an artifact's ledger without damaged ones, such as one cut by a crash."""
    lines: list[Line] = []
    path = artifact / LEDGER_NAME
    for text in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            lines.append(parse(text))
    return lines_with(lines, "stage")


def lines_with(lines: Iterable[Any], *fields: str) -> list[Line]:
    """Keep the lines of a ledger that have some fields, and no field of a wrong type."""
    return [
        line
        for line in lines
        if isinstance(line, dict)
        and all(name in line for name in fields)
        and all(_is_sound(line[name], kind) for name, kind in _KINDS.items() if name in line)
    ]


def _is_sound(value: object, kind: Any) -> bool:  # noqa: ANN401 - a type, or a union of some
    """Test the type, and of a number that it is one: at least 0 and finite."""
    return isinstance(value, kind) and (not isinstance(value, int | float) or 0 <= value < math.inf)


def append_lines(artifact: Path, lines: Iterable[Line]) -> None:
    """Append lines to the ledger of ``artifact``, except those that it has."""
    known = {_key(line) for line in read_ledger(artifact)}
    new = {_key(line): json.dumps(line) + "\n" for line in lines if _key(line) not in known}
    path = artifact / LEDGER_NAME
    cut = path.is_file() and path.read_bytes()[-1:] not in {b"", b"\n"}
    with path.open("a") as file:
        file.write("\n" if cut else "")  # a line that a crash cut must not swallow the next one
        file.writelines(new.values())
        file.flush()
        os.fsync(file.fileno())


def collect_interrupted(scratch: Path) -> None:
    """Turn the cost that a killed run left in ``scratch`` into a ledger line."""
    path = scratch / RUNNING_NAME
    if path.is_file():
        with suppress(ValueError):  # an unreadable cost is lost
            append_lines(scratch, lines_with([parse(path.read_bytes())], "stage"))
        path.unlink()


def _key(line: Line) -> tuple[Any, ...]:
    """Return what identifies a stage run, so that a line inherited along two ways counts once."""
    return line.get("stage"), line.get("config_digest"), line.get("started"), line.get("host")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Cost of one stage of one artifact over all its runs, interrupted ones included."""

    artifact: str
    stage: str
    runs: int
    interrupted: int
    """Runs that were stopped; their time counts too."""
    wall_seconds: float
    cpu_seconds: float
    images: int
    peak_rss_bytes: int | None
    device: str

    @property
    def images_per_second(self) -> float:
        """Image passes per wall second; 0 if no time passed."""
        return self.images / self.wall_seconds if self.wall_seconds > 0 else 0.0


def distinct_runs(lines: Iterable[Line]) -> list[Line]:
    """Return whole lines of a ledger; one that was inherited along two ways comes once."""
    return list({_key(line): line for line in lines_with(lines, *_SUMMED)}.values())


def construction_cost(lines: Iterable[Line]) -> list[StageCost]:
    """Sum the lines of a ledger by (artifact, stage); one inherited along two ways counts once."""
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in distinct_runs(lines):
        groups[line.get("artifact", ""), line["stage"]].append(line)
    summed = ("wall_seconds", "cpu_seconds", "images")
    return [
        StageCost(
            artifact=artifact,
            stage=stage,
            runs=len(runs),
            interrupted=sum(bool(run["interrupted"]) for run in runs),
            **{name: sum(run[name] for run in runs) for name in summed},
            peak_rss_bytes=largest(run["peak_rss_bytes"] for run in runs),
            device=", ".join(dict.fromkeys(run["device"] for run in runs)),
        )
        for (artifact, stage), runs in groups.items()
    ]


def total_wall_seconds(costs: Iterable[StageCost]) -> float:
    """Return the construction cost: the wall time of all stages, one after the other."""
    return sum(cost.wall_seconds for cost in costs)


def largest(peaks: Iterable[int | None]) -> int | None:
    """Return the largest measured peak; None if none was measured."""
    return max((peak for peak in peaks if peak is not None), default=None)
