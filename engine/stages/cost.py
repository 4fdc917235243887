"""``coreset cost``: list what it cost to construct an artifact, along its inputs."""

from dataclasses import asdict, dataclass

from coreset.engine.artifacts.ledger import construction_cost, read_ledger, total_wall_seconds
from coreset.engine.runtime.text import aligned, readable_bytes, readable_seconds
from coreset.engine.stages.options import Result, SetPath
from coreset.shards.format.files import missing

_COSTS = ("stage", "runs", "wall time", "CPU time", "images", "images/s", "peak memory", "device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Add up what every stage on the way to a set cost: its own runs and those of its inputs."""

    artifact: SetPath
    """A condensed set; a packed data set, scores or features will do."""

    def run(self) -> Result:
        """Read the ledger of the artifact and sum it by stage."""
        costs = construction_cost(read_ledger(self.artifact))
        if not costs:
            remedy = "name the output of a finished coreset command"
            raise missing(self.artifact, remedy, otherwise="has no ledger")
        rows = [
            (
                cost.stage,
                f"{cost.runs}" + (f" ({cost.interrupted} interrupted)" if cost.interrupted else ""),
                readable_seconds(cost.wall_seconds),
                readable_seconds(cost.cpu_seconds),
                f"{cost.images:,}",
                f"{cost.images_per_second:,.1f}",
                readable_bytes(cost.peak_rss_bytes),
                cost.device,
            )
            for cost in costs
        ]
        total = total_wall_seconds(costs)
        line = f"construction cost of {self.artifact}: {readable_seconds(total)} wall time"
        stages = [{**asdict(cost), "images_per_second": cost.images_per_second} for cost in costs]
        return Result((*aligned(_COSTS, rows), line), {"wall_seconds": total, "stages": stages})
