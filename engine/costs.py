"""What it cost to construct an artifact: the lines of its ledger, summed by artifact and stage."""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.ledger import Line, line_key, lines_with

_SUMMED = ("stage", "wall_seconds", "cpu_seconds", "images", "peak_rss_bytes", "interrupted",
           "device")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Cost of one stage of one artifact over all its runs, the interrupted ones included."""

    artifact: str
    """Digest of the input that the stage made; empty for the artifact that holds the ledger."""
    stage: str
    runs: int
    interrupted: int
    """Runs that were stopped before their end; their time was spent all the same."""
    wall_seconds: float
    cpu_seconds: float
    """User and system time of the process and its children."""
    images: int
    """Image passes: an image seen in ten epochs counts ten times."""
    peak_rss_bytes: int | None
    """Largest of the runs; None if it was measured in none of them."""
    device: str
    """Names of the devices, in order of use."""

    @property
    def images_per_second(self) -> float:
        """Image passes per wall second; 0 if no time passed."""
        return self.images / self.wall_seconds if self.wall_seconds > 0 else 0.0


def construction_cost(lines: Iterable[Line]) -> list[StageCost]:
    """Sum the distinct lines of a ledger by (artifact, stage), in the order of the ledger.

    A line that came along two ways (a data set that is an input of scores and of the set) counts
    once.
    """
    distinct = {line_key(line): line for line in lines_with(lines, *_SUMMED)}
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in distinct.values():
        groups.setdefault((line.get("artifact", ""), line["stage"]), []).append(line)
    return [_sum(artifact, stage, runs) for (artifact, stage), runs in groups.items()]


def total_wall_seconds(costs: Iterable[StageCost]) -> float:
    """The construction cost: wall time of all stages, one after the other."""
    return sum(cost.wall_seconds for cost in costs)


def largest(peaks: Iterable[int | None]) -> int | None:
    """Largest of the peaks that were measured; None if none was."""
    return max((peak for peak in peaks if peak is not None), default=None)


def _sum(artifact: str, stage: str, runs: list[Line]) -> StageCost:
    return StageCost(
        artifact=artifact,
        stage=stage,
        runs=len(runs),
        interrupted=sum(bool(run["interrupted"]) for run in runs),
        wall_seconds=sum(run["wall_seconds"] for run in runs),
        cpu_seconds=sum(run["cpu_seconds"] for run in runs),
        images=sum(run["images"] for run in runs),
        peak_rss_bytes=largest(run["peak_rss_bytes"] for run in runs),
        device=", ".join(dict.fromkeys(run["device"] for run in runs)),
    )
