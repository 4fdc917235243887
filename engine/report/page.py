"""Page of the report: gather, tabulate, draw, and fill the template."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from coreset.engine.artifacts.ledger import total_wall_seconds
from coreset.engine.evaluation.result_tables import CURVES, METRICS, STUDENTS
from coreset.engine.evaluation.results import Results
from coreset.engine.report import tables
from coreset.engine.report.classes import data_grids, score_figure
from coreset.engine.report.concepts import concept_parts
from coreset.engine.report.curves import training_figures
from coreset.engine.report.figures import (
    accuracy_figures,
    cost_figures,
    coverage_figures,
    curve_figures,
    look_of,
)
from coreset.engine.report.results import accuracy_records, comparisons, headline
from coreset.engine.report.sets import catalogue, gather, measurements, set_costs
from coreset.shards.errors import UsageError

FOLDER = Path(__file__).parent


class Rendered(NamedTuple):
    """Finished report."""

    html: bytes
    tables: Mapping[str, bytes]
    """By the end of their file's name."""
    headline: str
    notices: Sequence[str]
    """Notes on what was left out of the figures, and why."""


def render(
    results: Results, *, max_classes: int, images_per_row: int, data: Path | None
) -> Rendered:
    """Read the results and what lies behind them, and make the report."""
    students, metrics = results.complete_rows(STUDENTS), results.complete_rows(METRICS)
    curves = results.complete_rows(CURVES)  # after the students, whose curves came before them
    rows = [*students, *metrics]
    if not rows:
        state = "holds no rows" if results.path.exists() else "does not exist"
        raise UsageError(
            f"{results.path} {state}; run `coreset train SET VAL {results.path}` or "
            f"`coreset measure SET VAL {results.path}` first"
        )
    sets = catalogue(rows)
    compared, measured = comparisons(students, sets), measurements(metrics, sets)
    costs = set_costs(results, sets)
    seconds = {digest: total_wall_seconds(stages) for digest, stages in costs.items()}
    evidence, look = gather(results.path, sets.values(), data), look_of(sets.values())
    shares: dict[str, int] = {"max_classes": max_classes, "images_per_row": images_per_row}
    concepts, unexplained = concept_parts(evidence, **shares)
    notices = [*evidence.notices, *unexplained]
    shown = {
        "accuracy": tables.accuracy_table(compared),
        "taxonomy": tables.taxonomy_table(sets.values()),
        "metrics": tables.metric_table(measured),
        "cost": tables.cost_table(costs, sets),
        "sets": tables.set_table(rows, sets.values(), evidence.balances),
        "runtimes": tables.runtime_table(rows),
        "ledger": tables.ledger_table(results.ledger()),
    }
    records = {
        "accuracy": accuracy_records(compared),
        "metrics": tables.metric_records(measured),
        "cost": tables.cost_records(costs, sets),
    }
    page = _page(
        headline=headline(compared),
        compared=compared,
        results_name=results.path.resolve().name,
        n_students=len(students),
        n_sets=len(sets),
        tables=shown,
        accuracy_figures=accuracy_figures(compared, look),
        training_figures=training_figures(compared, curves, look),
        coverage_figures=[*coverage_figures(measured, look), *curve_figures(measured, look)],
        cost_figures=cost_figures(compared, seconds, look),
        uncosted=[entry for digest, entry in sets.items() if digest not in costs],
        score_figures=[
            score_figure(scores, evidence, look, max_classes=max_classes)
            for scores in evidence.scores
        ],
        concepts=concepts,
        grids=data_grids(evidence, **shares),
        notices=notices,
    )
    files = {f"-{name}.csv": tables.csv_bytes(records[name]) for name in records}
    files |= {f"-{name}.md": tables.markdown_bytes(shown[name]) for name in records}
    return Rendered(page, files, headline(compared), notices)


def _page(**values: object) -> bytes:
    """Fill the template; library, style and script are inlined as they are, all else is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        plotly=get_plotlyjs(),
        style=(FOLDER / "report.css").read_text(),
        script=(FOLDER / "report.js").read_text(),
        **values,
    )
    return page.encode()
