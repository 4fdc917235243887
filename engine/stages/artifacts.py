"""``coreset ls`` and ``coreset cost``: the artifacts in a folder, and what it took to make one."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from coreset.engine.artifacts.ledger import construction_cost, read_ledger, total_wall_seconds
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.runtime.text import aligned, readable_bytes, readable_seconds
from coreset.engine.stages.options import Result, SetPath
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.files import files_below, missing

RESULT_TABLES = {"students.parquet": "train", "metrics.parquet": "measure"}
DIGEST_CHARACTERS = 12
_ARTIFACTS = ("kind", "name", "made by", "size", "digest")
_COSTS = ("stage", "runs", "wall time", "CPU time", "images", "images/s", "peak memory", "device")


@dataclass(frozen=True, slots=True, kw_only=True)
class List:
    """List the artifacts and results in a folder and in its folders, from their provenance."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = Path()
    """Folder to look into; default: the current one."""

    def run(self) -> Result:
        """Read the provenance of every directory at most two levels below ``folder``."""
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder} is not a folder; name one that holds artifacts")
        artifacts = list(_artifacts(self.folder))
        rows = [
            (kind, name, made_by, readable_bytes(size), digest[:DIGEST_CHARACTERS] or "-")
            for kind, name, made_by, size, digest in artifacts
        ]
        none = (f"no artifacts in {self.folder}; `coreset demo` makes some",)
        fields = ("kind", "name", "made_by", "size_bytes", "digest")
        facts = [dict(zip(fields, artifact, strict=True)) for artifact in artifacts]
        return Result(aligned(_ARTIFACTS, rows) if rows else none, {"artifacts": facts})


def _artifacts(root: Path) -> Iterator[tuple[str, str, str, int, str]]:
    """Yield kind, name, stage, size and digest of the artifacts at most two levels below."""
    for path in sorted([*root.glob("*"), *root.glob("*/*")]):
        name, origin = path.relative_to(root).as_posix(), _origin(path)
        if origin is not None and "/." not in f"/{name}":
            size_bytes = sum(file.stat().st_size for file in files_below(path))
            yield origin[0], name, origin[1], size_bytes, origin[2]


def _origin(path: Path) -> tuple[str, str, str] | None:
    """Return kind, stage and digest of the artifact in ``path``; results grow and have none."""
    if (path / PROVENANCE_NAME).is_file():
        try:
            provenance = Provenance.read(path)
        except StoreError:
            return "damaged", "?", ""
        return provenance.kind, provenance.stage, provenance.digest
    stages = [stage for table, stage in RESULT_TABLES.items() if (path / table).is_file()]
    return ("results", ", ".join(stages), "") if stages else None


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
            if not self.artifact.exists():
                raise missing(self.artifact, remedy)
            raise UsageError(f"{self.artifact} has no ledger; {remedy}")
        rows = [
            (
                cost.stage,
                f"{cost.runs} ({cost.interrupted} interrupted)"
                if cost.interrupted
                else f"{cost.runs}",
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
        lines = (
            *aligned(_COSTS, rows),
            f"construction cost of {self.artifact}: {readable_seconds(total)} wall time",
        )
        stages = [{**asdict(cost), "images_per_second": cost.images_per_second} for cost in costs]
        return Result(lines, {"wall_seconds": total, "stages": stages})
