"""``coreset report``: tables, plots and image grids of results in one file that opens offline."""

from dataclasses import dataclass

from coreset.engine.artifacts.writer import output_folder, require_output
from coreset.engine.evaluation.results import Results
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.runtime.text import readable_bytes
from coreset.engine.stages.options import HtmlPath, MovedData, Result, ResultsPath
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Manifest
from coreset.shards.format.files import write_atomically


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
    data: MovedData = None

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
