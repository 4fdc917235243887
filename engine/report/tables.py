"""Tables for people (HTML and Markdown, from one description) and for machines (CSV)."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coreset.engine.artifacts.ledger import Line, largest, lines_with
from coreset.engine.evaluation.metrics import METRICS
from coreset.engine.report.measures import Measurement, SetCost
from coreset.engine.report.results import (
    Accuracy,
    Comparison,
    Difference,
)
from coreset.engine.report.sets import ReportedSet, Row, method_order
from coreset.engine.report.verdict import plus_minus
from coreset.engine.runtime.text import readable_bytes, readable_seconds
from coreset.shards.tables.csv_cells import csv_table

NOTHING = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a table for people."""

    text: str
    detail: str = ""
    """Second, smaller line."""
    numeric: bool = False
    emphasis: str = ""
    """``best`` or ``tied`` (within noise of the best) among accuracies, ``total`` in a sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table for people."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def numeric_columns(self) -> tuple[bool, ...]:
        """Columns whose header stands to the right, over numbers."""
        return tuple(
            any(row[column].numeric for row in self.rows) for column in range(len(self.header))
        )


def accuracy_table(compared: Sequence[Comparison]) -> Table:
    """Settings down, methods across; mean and spread of best and last top-1."""
    methods = sorted({one.method for row in compared for one in row.ranking}, key=method_order)
    header = ("data", "validation", "protocol", "student", "training", "IPC", *methods)
    return Table(
        caption="Top-1 accuracy in percent, mean ± sample standard deviation over students",
        header=header,
        rows=tuple(_accuracy_row(comparison, methods) for comparison in compared),
    )


def metric_table(measured: Sequence[Measurement]) -> Table:
    """Measured sets down, metrics across."""
    return Table(
        caption="Representativeness and diversity, mean over classes; higher is better",
        header=("data", "set", "validation", "backbone", *map(_metric_title, METRICS)),
        rows=tuple(
            (
                _text(one.measured.data),
                _text(one.measured.name),
                _text(one.val),
                _text(one.backbone),
                *(_number(_decimals(one.value(metric))) for metric in METRICS),
            )
            for one in measured
        ),
    )


def _metric_title(short: str) -> str:
    notes = [] if METRICS[short].by_class else ["whole set"]
    notes += [] if METRICS[short].higher_is_better else ["low is good"]
    return f"{short.upper()} ({', '.join(notes)})" if notes else short.upper()


def cost_table(costs: Sequence[SetCost]) -> Table:
    """Stages of each set down, followed by their sum."""
    header = ("data", "set", "stage", "runs", "wall time", "CPU time", "image passes", "images/s",
              "peak memory", "device")  # fmt: skip
    return Table(
        caption="Construction cost by stage, the inputs of a set included",
        header=header,
        rows=tuple(row for cost in costs for row in _cost_rows(cost)),
    )


def csv_bytes(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Records of equal fields as CSV with a header; a number that does not exist stays empty."""
    if not records:
        return b""
    rows = (["" if _is_nan(value) else value for value in one.values()] for one in records)
    return csv_table(list(records[0]), rows)


def markdown_bytes(table: Table) -> bytes:
    """A table in Markdown; the best of a row is bold, what is within noise of it italic."""
    rule = ["--:" if numeric else "---" for numeric in table.numeric_columns]
    rows = [list(map(_markdown_text, table.header)), rule]
    rows += [[_markdown_cell(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"{table.caption}.", "", *lines, ""]).encode()


def _accuracy_row(comparison: Comparison, methods: Sequence[str]) -> tuple[Cell, ...]:
    setting = comparison.setting
    is_main = {other.method: (other, lead) for other, lead in comparison.others}
    by_method = is_main | {comparison.best.method: (comparison.best, None)}
    return (
        _text(setting.data),
        _text(setting.val, f"{setting.n_val:,} images"),
        _text(setting.protocol),
        _text(setting.student),
        _text(f"{setting.epochs} epochs", setting.pixels_and_evaluations),
        _number(str(setting.ipc)),
        *(_accuracy_cell(by_method.get(method), comparison) for method in methods),
    )


def _accuracy_cell(
    entry: tuple[Accuracy, Difference | None] | None, comparison: Comparison
) -> Cell:
    if entry is None:
        return _number(NOTHING)
    accuracy, lead = entry
    if lead is None:
        emphasis = "best" if len(comparison.ranking) > 1 and comparison.is_known else ""
    else:
        emphasis = "tied" if lead.is_known and not lead.beats else ""
    return Cell(
        text=plus_minus(accuracy.best_mean, accuracy.best_std),
        detail=f"last {plus_minus(accuracy.last_mean, accuracy.last_std)}, n = {accuracy.n}",
        numeric=True,
        emphasis=emphasis,
    )


def _cost_rows(cost: SetCost) -> list[tuple[Cell, ...]]:
    stages = cost.stages
    rows = [
        (
            _text(cost.paid.data if first else ""),
            _text(cost.paid.name if first else ""),
            _text(stage.stage),
            _number(
                str(stage.runs), f"{stage.interrupted} interrupted" if stage.interrupted else ""
            ),
            _number(readable_seconds(stage.wall_seconds)),
            _number(readable_seconds(stage.cpu_seconds)),
            _number(f"{stage.images:,}"),
            _number(f"{stage.images_per_second:,.1f}"),
            _number(readable_bytes(stage.peak_rss_bytes)),
            _text(stage.device),
        )
        for first, stage in zip([True] + [False] * len(stages), stages, strict=False)
    ]
    sums = (
        str(sum(stage.runs for stage in stages)),
        readable_seconds(cost.wall_seconds),
        readable_seconds(sum(stage.cpu_seconds for stage in stages)),
        f"{sum(stage.images for stage in stages):,}",
        "",
        readable_bytes(largest(stage.peak_rss_bytes for stage in stages)),
    )
    total = ("", "", "total", *sums, "")
    numeric = (False, False, False, *(True for _ in sums), False)
    cells = zip(total, numeric, strict=True)
    return [*rows, tuple(Cell(text=text, numeric=right, emphasis="total") for text, right in cells)]


def _text(text: str, detail: str = "") -> Cell:
    return Cell(text=text, detail=detail)


def _number(text: str, detail: str = "") -> Cell:
    return Cell(text=text, detail=detail, numeric=True)


def _decimals(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.4f}"


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _markdown_cell(cell: Cell) -> str:
    mark = {"best": "**", "total": "**", "tied": "*"}.get(cell.emphasis, "") if cell.text else ""
    text = f"{mark}{_markdown_text(cell.text)}{mark}"
    return f"{text} ({_markdown_text(cell.detail)})" if cell.detail else text


def _markdown_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


LEDGER_HEADER = ("started (UTC)", "stage", "wall time", "image passes", "images/s", "peak memory",
                 "device", "cores", "host")  # fmt: skip


_SHOWN = ("started", "stage", "wall_seconds", "images", "images_per_second", "peak_rss_bytes",
          "device", "cores", "host")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """Tables on where the numbers come from."""

    sets: Table
    runtimes: Table
    ledger: Table


def origins(rows: Sequence[Row], sets: Iterable[ReportedSet], ledger: Iterable[Line]) -> Origins:
    """Describe how the rows came about.

    Args:
        rows: All rows of students and metrics.
        sets: The sets that they speak of.
        ledger: Ledger of RESULTS.
    """
    return Origins(
        sets=_set_table(rows, sets), runtimes=_runtime_table(rows), ledger=_ledger(ledger)
    )


def _set_table(rows: Sequence[Row], sets: Iterable[ReportedSet]) -> Table:
    stored = {row["set_digest"]: row["image_bytes"] for row in rows if "image_bytes" in row}
    return Table(
        caption="Condensed sets",
        header=("data", "set", "kind", "seed", "parameters", "images stored in", "digest", "place"),
        rows=tuple(
            (
                Cell(text=one.data),
                Cell(text=one.name),
                Cell(text=one.kind),
                Cell(text=str(one.seed), numeric=True),
                Cell(text=", ".join(f"{name} {value}" for name, value in one.parameters.items())),
                Cell(text=readable_bytes(stored.get(one.digest)), numeric=True),
                Cell(text=one.digest[:16]),
                Cell(text=one.path),
            )
            for one in sets
        ),
    )


def _runtime_table(rows: Sequence[Row]) -> Table:
    """Distinct versions, devices and settings, with the number of rows made under each."""
    counts: dict[tuple[str, str, str], int] = {}
    for row in rows:
        runtime = json.loads(row["runtime"])
        versions = runtime.pop("versions", {})
        stamp = f"train, {row['protocol']}" if "protocol" in row else f"measure, {row['backbone']}"
        key = (stamp, _pairs(runtime), _pairs(versions))
        counts[key] = counts.get(key, 0) + 1
    return Table(
        caption="Protocols, devices and versions",
        header=("made by", "rows", "runtime", "versions"),
        rows=tuple(
            (
                Cell(text=stamp),
                Cell(text=str(count), numeric=True),
                Cell(text=runtime or NOTHING),
                Cell(text=versions),
            )
            for (stamp, runtime, versions), count in sorted(counts.items())
        ),
    )


def _ledger(lines: Iterable[Line]) -> Table:
    return Table(
        caption="Ledger of these results: training and measuring",
        header=LEDGER_HEADER,
        rows=tuple(
            (
                Cell(text=line["started"][:19].replace("T", " ")),
                Cell(text=line["stage"]),
                Cell(text=readable_seconds(line["wall_seconds"]), numeric=True),
                Cell(text=f"{line['images']:,}", numeric=True),
                Cell(text=f"{line['images_per_second']:,.1f}", numeric=True),
                Cell(text=readable_bytes(line["peak_rss_bytes"]), numeric=True),
                Cell(text=line["device"]),
                Cell(text=str(line["cores"]), numeric=True),
                Cell(text=line["host"]),
            )
            for line in lines_with(lines, *_SHOWN)
        ),
    )


def _pairs(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value != "absent")
