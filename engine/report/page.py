"""Page of the report: gather, tabulate, draw, and fill the template."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean

from coreset.engine.artifacts.ledger import read_ledger
from coreset.engine.evaluation.results import METRICS, STUDENTS, Results
from coreset.engine.report.figures import (
    Figure,
    Look,
    accuracy_figure,
    cost_figure,
    coverage_figure,
)
from coreset.engine.report.images import data_grids
from coreset.engine.report.measures import (
    Measurement,
    SetCost,
    cost_records,
    measurements,
    metric_records,
    set_costs,
)
from coreset.engine.report.results import (
    Comparison,
    accuracy_records,
    comparisons,
)
from coreset.engine.report.score_figures import score_figure
from coreset.engine.report.sets import ReportedSet, catalogue, gather
from coreset.engine.report.tables import (
    accuracy_table,
    cost_table,
    csv_bytes,
    markdown_bytes,
    metric_table,
    origins,
)
from coreset.engine.report.verdict import headline, verdicts
from coreset.shards.errors import UsageError

FOLDER = Path(__file__).parent
TEMPLATE_NAME, STYLE_NAME, SCRIPT_NAME = "report.html.j2", "report.css", "report.js"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Finished files of a report."""

    html: bytes
    tables: Mapping[str, bytes]
    """By the end of their name: ``-accuracy.csv``, ``-accuracy.md`` ..."""
    headline: str
    notices: tuple[str, ...]
    """What was left out of the figures, and why."""


def render(
    results: Results, *, max_classes: int, images_per_row: int, data: Path | None
) -> Rendered:
    """Read the results and what lies behind them, and make the report.

    Args:
        results: Rows of trained students and measured sets.
        max_classes: Classes shown in grids and histograms.
        images_per_row: Images of each row of a grid.
        data: Where the data set of the coresets lies now, if it was moved.

    Raises:
        UsageError: There are no rows.
        StoreError: A table of the results cannot be read.
    """
    students, metrics = results.complete_rows(STUDENTS), results.complete_rows(METRICS)
    if not students and not metrics:
        fact = "holds no rows" if results.path.exists() else "does not exist"
        raise UsageError(
            f"{results.path} {fact}; run `coreset train SET VAL {results.path}` or "
            f"`coreset measure SET VAL {results.path}` first"
        )
    sets = catalogue([*students, *metrics])
    compared, measured = comparisons(students, sets), measurements(metrics, sets)
    costs = set_costs(results, sets.values())
    evidence = gather(results.path, sets.values(), data)
    look = Look.of((one.method, one.ipc) for one in sets.values())
    tables = {
        "accuracy": (accuracy_table(compared), accuracy_records(compared)),
        "metrics": (metric_table(measured), metric_records(measured)),
        "cost": (cost_table(costs), cost_records(costs)),
    }
    page = _page(
        headline=headline(compared),
        verdicts=verdicts(compared),
        results_name=results.path.resolve().name,
        n_students=len(students),
        n_sets=len(sets),
        tables={name: table for name, (table, _) in tables.items()},
        any_short=any(one.setting.short for one in compared),
        accuracy_figures=[
            accuracy_figure(list(group), look)
            for _, group in groupby(compared, key=lambda one: one.setting.data)
        ],
        coverage_figures=list(_coverage_figures(measured, look)),
        cost_figures=list(_cost_figures(compared, costs, look)),
        uncosted=_uncosted(sets, costs),
        score_figures=[
            score_figure(one, evidence, look, max_classes=max_classes) for one in evidence.scores
        ],
        grids=data_grids(evidence, max_classes=max_classes, images_per_row=images_per_row),
        notices=evidence.notices,
        origins=origins([*students, *metrics], sets.values(), read_ledger(results.path)),
    )
    files = {f"-{name}.csv": csv_bytes(records) for name, (_, records) in tables.items()}
    files |= {f"-{name}.md": markdown_bytes(table) for name, (table, _) in tables.items()}
    return Rendered(html=page, tables=files, headline=headline(compared), notices=evidence.notices)


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
    page = environment.get_template(TEMPLATE_NAME).render(
        plotly=get_plotlyjs(),
        style=(FOLDER / STYLE_NAME).read_text(),
        script=(FOLDER / SCRIPT_NAME).read_text(),
        **values,
    )
    return page.encode()


def _coverage_figures(measured: Sequence[Measurement], look: Look) -> Iterator[Figure]:
    """One figure per data set, validation set and backbone."""
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for one in measured:
        key = (one.measured.data, one.val, one.backbone, one.weights, one.version)
        groups.setdefault(key, []).append(one)
    yield from (coverage_figure(group, look) for group in groups.values())


def _cost_figures(
    compared: Sequence[Comparison], costs: Sequence[SetCost], look: Look
) -> Iterator[Figure]:
    """One figure per data set, protocol and student; a point is a method at an IPC.

    Where several sets were pooled in one accuracy, their mean cost counts.
    """
    seconds = {cost.paid.digest: cost.wall_seconds for cost in costs}
    groups: dict[str, list[Comparison]] = {}
    for one in compared:
        setting = one.setting
        where = f"{setting.data}, validated on {setting.val}, {setting.protocol}, {setting.student}"
        groups.setdefault(where, []).append(one)
    for where, group in groups.items():
        points = [
            (mean(known), one.setting.ipc, accuracy)
            for one in group
            for accuracy in one.ranking
            if (known := [seconds[digest] for digest in accuracy.digests if digest in seconds])
        ]
        if points:
            yield cost_figure(points, where, look)


def _uncosted(sets: Mapping[str, ReportedSet], costs: Sequence[SetCost]) -> list[str]:
    """Names of the sets whose cost RESULTS does not keep."""
    known = {cost.paid.digest for cost in costs}
    return [f"{one.data}, {one.name}" for one in sets.values() if one.digest not in known]
