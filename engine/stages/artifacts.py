"""``coreset ls``, ``cost`` and ``report``: the artifacts in a folder, their cost, their results."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from coreset.engine.artifacts.ledger import construction_cost, read_ledger, total_wall_seconds
from coreset.engine.artifacts.provenance import PROVENANCE_NAME, Provenance
from coreset.engine.artifacts.writer import output_folder, require_output
from coreset.engine.evaluation.results import Results
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.runtime.text import aligned, readable_bytes, readable_seconds
from coreset.engine.stages.options import HtmlPath, Result, ResultsPath, SetPath
from coreset.shards.errors import StoreError, UsageError
from coreset.shards.format.files import files_below, missing, write_atomically
from coreset.shards.format.manifest import Manifest

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
        artifacts, rows = list[dict[str, Any]](), list[tuple[str, ...]]()
        for path in sorted([*self.folder.glob("*"), *self.folder.glob("*/*")]):
            name, origin = path.relative_to(self.folder).as_posix(), _origin(path)
            if origin is not None and "/." not in f"/{name}":
                kind, stage, digest = origin
                size = sum(file.stat().st_size for file in files_below(path))
                artifacts.append({"kind": kind, "name": name, "made_by": stage})
                artifacts[-1] |= {"size_bytes": size, "digest": digest}
                short = digest[:DIGEST_CHARACTERS] or "-"
                rows.append((kind, name, stage, readable_bytes(size), short))
        none = (f"no artifacts in {self.folder}; `coreset demo` makes some",)
        return Result(aligned(_ARTIFACTS, rows) if rows else none, {"artifacts": artifacts})


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Write the report of RESULTS: one HTML file, and its tables as CSV and Markdown beside it.

    Says which method is best, and shows accuracies, representativeness and diversity, construction
    costs, the scores of each class and the chosen images. What was moved is left out and named.
    """

    results: ResultsPath
    """Results folder (`coreset train`, `coreset measure`)."""
    html: HtmlPath
    """File to write; an older one is replaced."""
    max_classes: int = 12
    """Classes shown in image grids and histograms."""
    images_per_row: int = 8
    """Images per row of a grid."""
    data: Path | None = None
    """Where the data set of the coresets lies now, if it was moved."""

    def __post_init__(self) -> None:
        require_at_least("max_classes", self.max_classes, 1)
        require_at_least("images_per_row", self.images_per_row, 1)
        if self.html.suffix.lower() not in {".html", ".htm"}:
            raise UsageError(f"html must end in .html, got {self.html}; name a file to write")

    def run(self) -> Result:
        """Read the rows and what lies behind them, render, write every file atomically."""
        from coreset.engine.report.page import render

        require_output(self.html)
        if self.data is not None:
            Manifest.read(self.data)  # a mistyped path should not pass for a moved data set
        rendered = render(
            Results(self.results),
            max_classes=self.max_classes,
            images_per_row=self.images_per_row,
            data=self.data,
        )
        tables = {
            self.html.with_name(f"{self.html.stem}{ending}"): table
            for ending, table in rendered.tables.items()
        }
        with output_folder(self.html):
            for path, content in {self.html: rendered.html, **tables}.items():
                write_atomically(path, content)
        lines = (
            *(f"left out: {notice}" for notice in rendered.notices),
            *(f"table: {path}" for path in tables),
            f"{rendered.headline}; report of {readable_bytes(len(rendered.html))}: {self.html}",
            f"next: open {self.html} in a browser",
        )
        return Result(lines, {"html": str(self.html), "tables": [str(path) for path in tables]})
