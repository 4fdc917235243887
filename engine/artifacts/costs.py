"""Cost of an artifact by what it depends on, and its growth: T = fixed + per image * images.

Seconds are those of devices: wall time, times the ranks where a ledger line has them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coreset.engine.artifacts.ledger import Line, distinct_runs
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance

PARTS: tuple[str, ...] = ("assets", "passes", "classes", "images")
# Shards, teachers and banks serve every set of the data: assets. A draw sorts the classes of scores
# that are there. Scores, features and whatever is unknown are passes, which the own cost counts.
_PART_OF = {
    **dict.fromkeys(("pack", "synth", "teach", "concepts"), "assets"),
    "select": "classes",
    "ingest": "classes",
    "distill": "images",
}
OTHERS = "the work of others"


def part_seconds(lines: Iterable[Line]) -> dict[str, float]:
    """Sum the seconds of a ledger by part.

    What a synthesis did not time itself, mostly the packing of its images, counts as images.
    """
    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for line in distinct_runs(lines):
        timed = dict(_timed(line))
        for part, spent in timed.items():
            seconds[part] += spent
        rest = _device_seconds(line) - sum(timed.values())
        seconds[_PART_OF.get(line["stage"].partition(" ")[0], "passes")] += max(0.0, rest)
    return seconds


def _timed(line: Line) -> Iterator[tuple[str, float]]:
    """Yield the parts that a line has, which are sums over ranks."""
    parts = line.get("parts")
    for name, spent in parts.items() if isinstance(parts, dict) else ():
        if name in PARTS and isinstance(spent, int | float):
            yield name, spent


def _device_seconds(line: Line) -> float:
    ranks = line.get("ranks", 1)
    return line["wall_seconds"] * (ranks if isinstance(ranks, int) else 1)


def gpu_and_core_seconds(lines: Iterable[Line]) -> tuple[float, float]:
    """Return GPU seconds of the runs on a GPU, and processor seconds of the others."""
    gpu = core = 0.0
    for line in distinct_runs(lines):
        if line["device"] == "cpu":
            core += line["cpu_seconds"]
        else:
            gpu += _device_seconds(line)
    return gpu, core


def unrecorded(artifact: Path) -> tuple[str, ...]:
    """Name what no ledger behind an artifact has: weights from files, and work of others."""
    if not (artifact / PROVENANCE_NAME).is_file():
        return ()
    provenance = Provenance.read(artifact)
    return tuple(
        dict.fromkeys(
            name
            for entry in (provenance.document(), *(entry for _, entry in provenance.lineage()))
            for name in _unrecorded(entry)
        )
    )


def _unrecorded(entry: Mapping[str, Any]) -> Iterator[str]:
    config: Mapping[str, Any] = entry.get("config") or {}
    if entry.get("stage") == "ingest":
        yield OTHERS
    if "weights" in config:
        yield f"training of {config.get('backbone')}"
    folders = sum(parent["role"].startswith("teacher ") for parent in entry["inputs"])
    files = len(config.get("teachers", ())) - folders
    if files > 0:
        yield f"training of {files} teacher" + ("s" if files > 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearCost:
    """Line through the costs of sets of several sizes."""

    fixed: float
    """Seconds that no number of images changes."""
    per_image: float
    residual: float
    """Largest distance of a cost from the line, in seconds; 0 by construction for two sets."""
    n: int
    """Sets."""

    @staticmethod
    def fit(images: Sequence[int], seconds: Sequence[float]) -> "LinearCost":
        """Fit by least squares; ``ValueError`` unless there are two different numbers of images."""
        if len(set(images)) < 2:
            raise ValueError(f"a line needs two numbers of images, got {sorted(set(images))}")
        design = np.stack([np.ones(len(images)), np.asarray(images, np.float64)], axis=1)
        (fixed, slope), *_ = np.linalg.lstsq(design, np.asarray(seconds), rcond=None)
        residual = np.abs(design @ (fixed, slope) - seconds).max() if len(images) > 2 else 0.0
        return LinearCost(
            fixed=float(fixed), per_image=float(slope), residual=float(residual), n=len(images)
        )
