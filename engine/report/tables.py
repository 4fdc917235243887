"""Tables for people (HTML and Markdown, from one description) and for machines (CSV)."""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from coreset.engine.artifacts.ledger import Line, StageCost, largest, lines_with, total_wall_seconds
from coreset.engine.condensed.systems import SYSTEMS, system_of
from coreset.engine.evaluation.metrics import METRICS, PAIRS
from coreset.engine.report.results import Comparison, plus_minus
from coreset.engine.report.sets import Measurement, ReportedSet, Row, method_order
from coreset.engine.runtime.text import readable_bytes, readable_seconds
from coreset.shards.tables.formats import csv_table

NOTHING = "-"
_ALWAYS_SHOWN = {short for pair in PAIRS for short in pair}
MARKS = {"best": "**", "total": "**", "tied": "*"}


class Cell(NamedTuple):
    """One cell of a table for people."""

    text: str
    detail: str = ""
    emphasis: str = ""
    """``best`` or ``tied`` (within noise of the best) among accuracies, ``total`` in a sum."""


class Table:
    """A table for people."""

    def __init__(
        self,
        caption: str,
        header: Iterable[str],
        numbers: Collection[str],
        rows: Iterable[Iterable[str | Cell]],
    ) -> None:
        """Make the cells that are plain text; ``numbers`` names the columns of numbers."""
        self.caption, self.header = caption, list(header)
        self.numeric = [name in numbers for name in self.header]
        self.rows = [
            [Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows
        ]


def accuracy_table(compared: Sequence[Comparison]) -> Table:
    """Lay out settings down and methods across; mean and spread of best and last top-1."""
    methods = sorted(
        {accuracy.method for each in compared for accuracy in each.ranking}, key=method_order
    )
    return Table(
        "Top-1 accuracy in percent, mean ± sample standard deviation over students",
        ("data", "validation", "protocol", "student", "training", "IPC", *methods),
        ("IPC", *methods),
        (_accuracy_row(comparison, methods) for comparison in compared),
    )


def _accuracy_row(comparison: Comparison, methods: Sequence[str]) -> tuple[str | Cell, ...]:
    setting = comparison.setting
    emphasis = {other.method: "tied" for other, lead in comparison.others if lead.is_noise}
    if comparison.others and comparison.is_known:
        emphasis[comparison.best.method] = "best"
    cells = dict.fromkeys(methods, Cell(NOTHING))
    for accuracy in comparison.ranking:
        detail = f"last {plus_minus(accuracy.last)}, n = {accuracy.n}"
        name = accuracy.method
        cells[name] = Cell(plus_minus(accuracy.best), detail, emphasis.get(name, ""))
    return (
        setting.data,
        Cell(setting.val, f"{setting.n_val:,} images"),
        Cell(setting.protocol, "; ".join(filter(None, (*setting.unusual, setting.digest)))),
        setting.student,
        Cell(f"{setting.epochs} epochs", setting.pixels_and_evaluations),
        str(setting.ipc),
        *cells.values(),
    )


def taxonomy_table(sets: Iterable[ReportedSet]) -> Table:
    """Say of the systems of the study that sets belong to what each of them needs."""
    columns = {
        "family": "family",
        "needs the full data": "needs_full_data",
        "generative model": "generative_use",
        "classifier": "classifier",
        "cost grows with IPC": "grows_with_ipc",
        "new data ask for": "new_data_needs",
    }
    present = {system_of(entry.method) for entry in sets}
    rows = (
        (name, *(getattr(system, field) for field in columns.values()))
        for name, system in SYSTEMS.items()
        if name in present
    )
    return Table("What each method needs", ("method", *columns), (), rows)


def metric_table(measured: Sequence[Measurement]) -> Table:
    """Lay out measured sets down and metrics across."""
    in_figure = {short for short, metric in METRICS.items() if metric.group == "curve"}
    shorts = [short for short in _measured_metrics(measured) if short not in in_figure]
    titles = [_metric_title(short) for short in shorts]
    described = attrgetter("measured.data", "measured.name", "val", "backbone")
    numbers = ([entry.values.get(short, math.nan) for short in shorts] for entry in measured)
    rows = (
        (*described(entry), *(NOTHING if math.isnan(value) else f"{value:.4f}" for value in values))
        for entry, values in zip(measured, numbers, strict=True)
    )
    caption = "Means over classes, and higher is better, where a column says nothing else"
    return Table(caption, ("data", "set", "validation", "backbone", *titles), titles, rows)


def _measured_metrics(measured: Iterable[Measurement]) -> list[str]:
    """Return the metrics that some set has, in the order of the registry, those of none last."""
    found = {
        short: None
        for entry in measured
        for short, value in entry.values.items()
        if not math.isnan(value) or short in _ALWAYS_SHOWN
    }
    return sorted(found, key=lambda short: [*METRICS, short].index(short))


def _metric_title(short: str) -> str:
    if short not in METRICS:
        return short
    notes = [] if METRICS[short].by_class else ["whole set"]
    notes += [] if METRICS[short].higher_is_better else ["low is good"]
    return f"{short.upper()} ({', '.join(notes)})" if notes else short.upper()


def cost_table(costs: Mapping[str, Sequence[StageCost]], sets: Mapping[str, ReportedSet]) -> Table:
    """Lay out the stages of each set, followed by their sum."""
    numbers = ("runs", "wall time", "CPU time", "image passes", "images/s", "peak memory")
    return Table(
        "Construction cost by stage, the inputs of a set included",
        ("data", "set", "stage", *numbers, "device"),
        numbers,
        (row for digest, stages in costs.items() for row in _cost_rows(sets[digest], stages)),
    )


def _cost_rows(paid: ReportedSet, stages: Sequence[StageCost]) -> Iterator[list[str | Cell]]:
    shown = [paid.data, paid.name]
    for stage in stages:
        interrupted = f"{stage.interrupted} interrupted" if stage.interrupted else ""
        runs = Cell(str(stage.runs), interrupted)
        rate = f"{stage.images_per_second:,.1f}"
        yield [*shown, stage.stage, runs, *_costs([stage], rate), stage.device]
        shown = ["", ""]
    total = ["", "", "total", str(sum(stage.runs for stage in stages)), *_costs(stages, ""), ""]
    yield [Cell(text, emphasis="total") for text in total]


def _costs(stages: Sequence[StageCost], rate: str) -> list[str]:
    return [
        readable_seconds(total_wall_seconds(stages)),
        readable_seconds(sum(stage.cpu_seconds for stage in stages)),
        f"{sum(stage.images for stage in stages):,}",
        rate,
        readable_bytes(largest(stage.peak_rss_bytes for stage in stages)),
    ]


def metric_records(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Make one flat record per set, validation set and backbone, for the CSV file."""
    shorts = _measured_metrics(measured)
    return [
        {
            **_set_columns(entry.measured),
            **{name: getattr(entry, name) for name in ("val", "backbone", "weights", "version")},
            **{short: entry.values.get(short, math.nan) for short in shorts},
        }
        for entry in measured
    ]


_COST_FIELDS = {
    **{name: name for name in ("stage", "runs", "interrupted", "wall_seconds", "cpu_seconds")},
    "image_passes": "images",
    **{name: name for name in ("images_per_second", "peak_rss_bytes", "device")},
}


def cost_records(
    costs: Mapping[str, Sequence[StageCost]], sets: Mapping[str, ReportedSet]
) -> list[dict[str, Any]]:
    """Make one flat record per set and stage, for the CSV file."""
    return [
        {
            **_set_columns(sets[digest]),
            **{name: getattr(stage, field) for name, field in _COST_FIELDS.items()},
            "set_wall_seconds": total_wall_seconds(stages),
        }
        for digest, stages in costs.items()
        for stage in stages
    ]


def _set_columns(entry: ReportedSet) -> dict[str, Any]:
    return {
        "data": entry.data,
        "method": entry.method,
        "ipc": entry.ipc,
        "set_seed": entry.seed,
        "set_digest": entry.digest,
    }


def set_table(
    rows: Sequence[Row], sets: Iterable[ReportedSet], balances: Mapping[str, str]
) -> Table:
    """Describe the condensed sets that the rows speak of, with `Evidence.balances` of some."""
    stored = {row["set_digest"]: row["image_bytes"] for row in rows if "image_bytes" in row}
    columns: dict[str, Callable[[ReportedSet], str]] = {
        "data": lambda entry: entry.data,
        "set": lambda entry: entry.name,
        "kind": lambda entry: entry.kind,
        "seed": lambda entry: str(entry.seed),
        "parameters": lambda entry: _pairs(entry.parameters),
        "images stored in": lambda entry: readable_bytes(stored.get(entry.digest)),
        "digest": lambda entry: entry.digest[:16],
        "place": lambda entry: entry.path,
    }
    if balances:
        columns["balance"] = lambda entry: balances.get(entry.digest, NOTHING)
    cells = ([cell(entry) for cell in columns.values()] for entry in sets)
    return Table("Condensed sets", columns, ("seed", "images stored in"), cells)


def runtime_table(rows: Sequence[Row]) -> Table:
    """Count the rows of students and metrics made under each protocol, runtime and versions."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        runtime = json.loads(row["runtime"])
        versions = {name: of for name, of in runtime.pop("versions", {}).items() if of != "absent"}
        trained = "protocol" in row
        made_by = f"train, {row['protocol']}" if trained else f"measure, {row['backbone']}"
        counts[made_by, _pairs(runtime) or NOTHING, _pairs(versions)] += 1
    cells = ((made_by, str(n), *how) for (made_by, *how), n in sorted(counts.items()))
    header = ("made by", "rows", "runtime", "versions")
    return Table("Protocols, devices and versions", header, ("rows",), cells)


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def ledger_table(lines: Iterable[Line]) -> Table:
    """Lay out the ledger of RESULTS."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "started (UTC)": ("started", lambda text: text[:19].replace("T", " ")),
        "stage": ("stage", str),
        "wall time": ("wall_seconds", readable_seconds),
        "image passes": ("images", "{:,}".format),
        "images/s": ("images_per_second", "{:,.1f}".format),
        "peak memory": ("peak_rss_bytes", readable_bytes),
        "device": ("device", str),
        "cores": ("cores", str),
        "host": ("host", str),
    }
    numbers = ("wall time", "image passes", "images/s", "peak memory", "cores")
    shown = lines_with(lines, *(field for field, _ in columns.values()))
    cells = ([cell(line[field]) for field, cell in columns.values()] for line in shown)
    return Table("Ledger of these results: training and measuring", columns, numbers, cells)


def csv_bytes(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Encode records of equal fields as CSV with a header; NaN leaves a cell empty."""
    if not records:
        return b""
    rows = (
        ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in record.values()]
        for record in records
    )
    return csv_table(list(records[0]), rows)


def markdown_bytes(shown: Table) -> bytes:
    """Encode a table in Markdown; the best of a row is bold, what is within noise of it italic."""
    rows = [list(map(_escaped, shown.header)), ["--:" if each else "---" for each in shown.numeric]]
    rows += [list(map(_markdown_cell, row)) for row in shown.rows]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"{shown.caption}.", "", *lines, ""]).encode()


def _markdown_cell(cell: Cell) -> str:
    mark = MARKS.get(cell.emphasis, "") if cell.text else ""
    text = f"{mark}{_escaped(cell.text)}{mark}"
    return f"{text} ({_escaped(cell.detail)})" if cell.detail else text


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
