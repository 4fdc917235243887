"""Interactive figures: plotly descriptions as JSON, drawn by the page with the inlined library."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import cycle
from operator import attrgetter
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from coreset.engine.evaluation.metrics import METRICS, PAIRS
from coreset.engine.evaluation.subject import CURVE
from coreset.engine.report.results import Accuracy, Comparison, plus_minus, sample_std
from coreset.engine.report.sets import BASELINE, Measurement, ReportedSet

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito, "Color universal design" (2008): told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
BASELINE_COLOUR = "#7f7f7f"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
SHORTEST_SECONDS = 1e-3
"""Resolution of the ledger: what a log axis shows for a cost of zero."""
GRID_COLOUR = "rgba(128, 128, 128, 0.25)"


class Figure(NamedTuple):
    """One figure of the page."""

    title: str
    caption: str
    description: str
    json: str
    height: int


class Look(NamedTuple):
    """Colours by method and symbols by IPC, the same in every figure."""

    colours: Mapping[str, str]
    symbols: Mapping[int, str]


def look_of(sets: Iterable[ReportedSet]) -> Look:
    """Choose the look of sets; the baseline is grey."""
    methods, ipcs = map(set, zip(*((entry.method, entry.ipc) for entry in sets), strict=True))
    colours = dict(zip(sorted(methods - {BASELINE}), cycle(COLOURS), strict=False))
    symbols = dict(zip(sorted(ipcs), cycle(SYMBOLS), strict=False))
    return Look(colours | {BASELINE: BASELINE_COLOUR}, symbols)


def accuracy_figures(compared: Sequence[Comparison], look: Look) -> Iterator[Figure]:
    """Draw mean, spread and single students: a figure per setting, one scale per data set."""
    import plotly.graph_objects as go

    shown: dict[str, list[float]] = defaultdict(list)
    for comparison in compared:
        for accuracy in comparison.ranking:
            spread = sample_std(accuracy.best)
            ends = (accuracy.mean - spread, accuracy.mean + spread)
            shown[comparison.setting.data] += [*accuracy.best, *ends]
    for comparison in compared:
        figure = go.Figure()
        for accuracy in comparison.ranking:
            _add_accuracy(figure, accuracy, comparison.setting.ipc, look)
        span = span_of(shown[comparison.setting.data], 0.05, 0.05)
        figure.update_xaxes(title_text="best top-1 accuracy (%)", range=span)
        figure.update_yaxes(autorange="reversed")
        yield finished(
            figure,
            title=f"Best top-1 accuracy: {comparison.title}",
            caption="Large marks are means with one sample standard deviation, small marks single "
            "students.",
            description=f"Dot plot of best top-1 accuracy; {comparison.best.method} leads.",
            height=110 + 34 * len(comparison.ranking),
        )


def _add_accuracy(figure: "go.Figure", accuracy: Accuracy, ipc: int, look: Look) -> None:
    name, colour = plain(accuracy.method), look.colours[accuracy.method]
    common: dict[str, Any] = {"mode": "markers", "showlegend": False}
    figure.add_scatter(
        x=[accuracy.mean],
        y=[name],
        error_x=_error_bar(accuracy, thickness=2, width=5),
        marker={"color": colour, "size": 13, "symbol": look.symbols[ipc]},
        hovertemplate=f"{plus_minus(accuracy.best)} %<extra></extra>",
        **common,
    )
    figure.add_scatter(
        x=accuracy.best,
        y=[name] * accuracy.n,
        marker={"color": "white", "size": 5, "line": {"color": colour, "width": 1.5}},
        hovertemplate="student: %{x:.2f} %<extra></extra>",
        **common,
    )


def coverage_figures(measured: Sequence[Measurement], look: Look) -> Iterator[Figure]:
    """Draw R1/D1 above R2/D2: a figure per data set, validation set and backbone."""
    from plotly.subplots import make_subplots

    groups: dict[tuple[str, ...], list[Measurement]] = defaultdict(list)
    key = attrgetter("measured.data", "val", "backbone", "weights", "version")
    for entry in measured:
        if not math.isnan(entry.values["r1"]):  # else it was measured in other ways alone
            groups[key(entry)].append(entry)
    for (data, val, backbone, *_), group in groups.items():
        figure = make_subplots(rows=2, cols=1, vertical_spacing=0.13)
        for row, (across, up) in enumerate(PAIRS, start=1):
            for entry in group:
                method, ipc = entry.measured.method, entry.measured.ipc
                at = (entry.values[across], entry.values[up])
                _add_mark(figure, method, ipc, at, look, row=row, col=1)
            span = span_of([entry.values[across] for entry in group], 0.07, 0.4)
            title = f"{METRICS[across].axis} (cosine)"
            figure.update_xaxes(range=span, title_text=title, row=row, col=1)
            figure.update_yaxes(title_text=METRICS[up].axis, row=row, col=1)
        missing = sum(math.isnan(entry.values["d1"]) for entry in group)
        note = f" {missing} sets of one image per class have no diversity and no mark."
        yield finished(
            figure,
            title=f"Representativeness and diversity on {data}",
            caption=f"Each mark is a set; up and to the right is better. Features of {backbone}, "
            f"validation images of {val}.{note if missing else ''}",
            description="Two scatter plots of diversity against representativeness; the table "
            "above holds the numbers.",
            height=720,
        )


def curve_figures(measured: Sequence[Measurement], look: Look) -> Iterator[Figure]:
    """Draw coverage by the first images of a class: per data set, reference and backbone."""
    import plotly.graph_objects as go

    key = attrgetter("measured.data", "val", "backbone")
    curves: dict[tuple[str, ...], list[tuple[ReportedSet, dict[int, float]]]] = defaultdict(list)
    for entry in measured:
        values = {n: entry.values.get(f"r2_at_{n}", math.nan) for n in CURVE}
        known = {n: value for n, value in values.items() if not math.isnan(value)}
        if known:
            curves[key(entry)].append((entry.measured, known))
    for (data, val, backbone), group in curves.items():
        figure = go.Figure()
        for reported, values in group:
            figure.add_scatter(
                x=list(values),
                y=list(values.values()),
                mode="lines+markers",
                name=plain(f"{reported.method}, IPC {reported.ipc}"),
                line={"color": look.colours[reported.method]},
                marker={"symbol": look.symbols[reported.ipc]},
            )
        figure.update_xaxes(type="log", tickvals=list(CURVE), title_text="images a class")
        figure.update_yaxes(title_text=METRICS["r2"].axis)
        figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.25})
        yield finished(
            figure,
            title=f"Coverage of {data} by the first images of each class",
            caption="In the order in which they were chosen. Where the last point of a distilled "
            "set has the height of a coreset's curve, that many real images cover as much. "
            f"Features of {backbone}, images of {val}.",
            description="Lines of the mean match of the reference by images a class.",
            height=430,
        )


def cost_figures(
    compared: Sequence[Comparison], seconds: Mapping[str, float], look: Look
) -> Iterator[Figure]:
    """Draw accuracy against mean construction cost; ``seconds`` holds that of sets by digest."""
    import plotly.graph_objects as go

    groups: dict[str, list[tuple[float, int, Accuracy]]] = defaultdict(list)
    for comparison in compared:
        setting = comparison.setting
        where = f"{setting.data}, validated on {setting.val}, {setting.training}"
        for accuracy in comparison.ranking:
            known = [seconds[digest] for digest in accuracy.digests if digest in seconds]
            if known:
                groups[where].append((max(mean(known), SHORTEST_SECONDS), setting.ipc, accuracy))
    for where, points in groups.items():
        figure = go.Figure()
        for cost, ipc, accuracy in points:
            bar = _error_bar(accuracy, thickness=1.5)
            _add_mark(figure, accuracy.method, ipc, (cost, accuracy.mean), look, error_y=bar)
        exponents = [math.log10(cost) for cost, _, _ in points]
        span = span_of(exponents, 0.07, 0.4)
        figure.update_xaxes(type="log", range=span, **_log_ticks(exponents))
        figure.update_xaxes(title_text="construction cost (wall seconds, log scale)")
        figure.update_yaxes(title_text="best top-1 accuracy (%)")
        yield finished(
            figure,
            title=f"Accuracy against construction cost: {where}",
            caption="Up and to the left is better. The cost is that of making the set, its inputs "
            "included; training the students is not in it.",
            description="Scatter plot of accuracy against cost; the tables hold the numbers.",
            height=430,
        )


def _error_bar(accuracy: Accuracy, **look: float) -> dict[str, Any] | None:
    return {"array": [sample_std(accuracy.best)], **look} if accuracy.n > 1 else None


def _add_mark(
    figure: "go.Figure", method: str, ipc: int, at: tuple[float, float], look: Look, **more: object
) -> None:
    name = plain(f"{method}, IPC {ipc}")
    figure.add_scatter(
        x=at[:1],
        y=at[1:],
        mode="markers+text",
        text=[name],
        textposition="middle right",
        textfont={"size": 11},
        cliponaxis=False,
        marker={"color": look.colours[method], "symbol": look.symbols[ipc], "size": 12},
        hovertemplate=f"{name}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>",
        showlegend=False,
        **more,
    )


def span_of(values: Iterable[float], before: float, after: float) -> list[float] | None:
    """Give an axis room on both sides, in shares of its width; None for no number."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return None
    low, high = min(numbers), max(numbers)
    width = (high - low) or 0.2 * abs(high) or 1.0
    return [low - before * width, high + after * width]


def _log_ticks(exponents: Sequence[float]) -> dict[str, Any]:
    """Set ticks at 1, 2 and 5 of every decade, at 1 alone if there are many, or at the points."""
    if max(exponents) - min(exponents) < math.log10(2):  # no 1, 2 or 5 need lie between
        costs = [10**exponent for exponent in {min(exponents), max(exponents)}]
        return {"tickvals": costs, "ticktext": [f"{cost:,.3g}" for cost in costs]}
    first, last = math.floor(min(exponents)) - 1, math.ceil(max(exponents)) + 2
    steps = (1, 2, 5) if last - first < 7 else (1,)
    values = [step * 10.0**decade for decade in range(first, last) for step in steps]
    return {"tickvals": values, "ticktext": [f"{value:,g}" for value in values]}


def finished(
    figure: "go.Figure", *, title: str, caption: str, description: str, height: int
) -> Figure:
    """Give a figure the look of the page and turn it into JSON."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 30, "b": 55},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    axis: dict[str, Any] = {"gridcolor": GRID_COLOUR, "linecolor": GRID_COLOUR, "showline": True,
                            "zeroline": False, "automargin": True}  # fmt: skip
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    text = str(figure.to_json()).replace("<", "\\u003c")  # no end tag inside the script element
    return Figure(title=title, caption=caption, description=description, json=text, height=height)


def plain(text: str) -> str:
    """Escape text for plotly, which reads a few HTML tags."""
    return escape(text, quote=False)
