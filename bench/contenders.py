"""Contenders side by side: A B C A B C ..., medians with their spread, every output checked.

What one machine does in one minute says little about the next minute, so contenders take turns,
and ratios are medians of the ratios within a round. A first round warms up (imports, compiled
kernels, page cache) and is checked but not timed. Each run gets an empty folder, after a ``sync``,
so that nobody pays for what the one before had left to the disk.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

Role: TypeAlias = Literal["ours", "peer", "limit"]


def nothing_to_check(_out: Path) -> str:
    """For contenders that write nothing, such as limits."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to do the work."""

    name: str
    run: Callable[[Path], object]
    """Does the whole work once, through the fsync of its output, into an empty folder."""
    role: Role = "peer"
    complaint: Callable[[Path], str] = nothing_to_check
    """What is wrong with the output in the folder; empty if it is what it should be."""
    note: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Versions of packages that ``coreset.bench.record`` does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A contender that cannot run here."""

    name: str
    reason: str

    def measured(self) -> dict[str, Any]:
        """What its record says."""
        return {"contender": self.name, "role": "peer", "absent": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of one contender, round by round, and what was wrong with its outputs."""

    contender: Contender
    seconds: tuple[float, ...]
    complaints: tuple[str, ...]
    """One per round, the warm-up included."""

    @property
    def median_seconds(self) -> float:
        """Median over the timed rounds."""
        return median(self.seconds)

    def speed_over(self, other: "Measured") -> float:
        """How many times as fast as ``other``: the median of the ratios within a round."""
        return median(
            theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True)
        )


def interleave(
    contenders: Sequence[Contender],
    *,
    repeats: int,
    work: Path,
    clock: Callable[[], float] = time.perf_counter,
    tell: Callable[[str], object] = print,
) -> list[Measured]:
    """Run all contenders in turn, once to warm up and ``repeats`` times by the clock.

    Args:
        contenders: In the order of their turns.
        repeats: Timed rounds.
        work: Existing folder; each run gets an empty one in it, removed after the check.
        clock: Seconds, read right before and right after each run.
        tell: Is given a line per run.
    """
    runs: dict[str, list[tuple[float, str]]] = {one.name: [] for one in contenders}
    if len(runs) != len(contenders):
        raise ValueError(f"contenders must have different names, got {[*runs]} for some of them")
    for turn in range(repeats + 1):
        for contender in contenders:
            seconds, complaint = _run(contender, work / "out", clock)
            runs[contender.name].append((seconds, complaint))
            fault = f"; FAILED: {complaint}" if complaint else ""
            stage = f"round {turn}" if turn else "warm-up"
            tell(f"  {stage}: {contender.name}: {seconds:.2f} s{fault}")
    return [
        Measured(
            contender=contender,
            seconds=tuple(seconds for seconds, _ in runs[contender.name][1:]),
            complaints=tuple(complaint for _, complaint in runs[contender.name]),
        )
        for contender in contenders
    ]


def _run(contender: Contender, out: Path, clock: Callable[[], float]) -> tuple[float, str]:
    out.mkdir()
    try:
        os.sync()
        started = clock()
        contender.run(out)
        seconds = clock() - started
        return seconds, contender.complaint(out)
    finally:
        shutil.rmtree(out)


def measurements(
    measured: Sequence[Measured], *, images: int, source_bytes: int
) -> list[dict[str, Any]]:
    """One mapping per contender, for ``coreset.bench.record.record``.

    Rates are those of the source: images and bytes that were read, whatever was written; without
    images (0) there are none. A contender with a wrong output has ``failed`` and no speed: doing
    less is none.
    """
    return [_measurement(one, measured, images, source_bytes) for one in measured]


def _measurement(
    one: Measured, everyone: Sequence[Measured], images: int, source_bytes: int
) -> dict[str, Any]:
    contender, middle = one.contender, one.median_seconds
    facts = {
        "contender": contender.name,
        "role": contender.role,
        "note": contender.note,
        "peer_versions": dict(contender.versions),
        "seconds": [round(seconds, 4) for seconds in one.seconds],
    }
    failed = next(filter(None, one.complaints), "")
    if failed:
        return facts | {"failed": failed}
    if images:
        facts |= {
            "images": images,
            "source_bytes": source_bytes,
            "images_per_second": round(images / middle, 1),
            "mb_per_second": round(source_bytes / middle / 1e6, 1),
        }
    return facts | {
        "median_seconds": round(middle, 4),
        "min_seconds": round(min(one.seconds), 4),
        "max_seconds": round(max(one.seconds), 4),
        "speed_over": {
            other.contender.name: round(one.speed_over(other), 3)
            for other in everyone
            if other is not one and not any(other.complaints)
        },
    }
