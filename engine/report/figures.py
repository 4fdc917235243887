"""Interactive figures: plotly descriptions as JSON, drawn by the page with the inlined library.

Colours name methods and symbols name IPC, the same in every figure. The page sets the colour of the
text, so that figures follow its light or dark scheme.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from coreset.engine.evaluation.metrics import METRICS, PAIRS
from coreset.engine.report.measures import Measurement
from coreset.engine.report.results import (
    Accuracy,
    Comparison,
)
from coreset.engine.report.sets import BASELINE, method_order
from coreset.engine.report.verdict import percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito, "Color universal design" (2008): told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
BASELINE_COLOUR = "#7f7f7f"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
SHORTEST_SECONDS = 1e-3
"""Resolution of the ledger: what a log axis shows for a cost of zero."""
PANEL_GAP = 66
"""Pixels between panels, for tick labels and the next title."""
GRID_COLOUR = "rgba(128, 128, 128, 0.25)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of the page."""

    title: str
    caption: str
    description: str
    """Text for a reader who cannot see it."""
    json: str
    """Plotly's data and layout, safe inside a script element."""
    height: int


@dataclass(frozen=True, slots=True)
class Look:
    """Colour by method, symbol by IPC."""

    methods: tuple[str, ...]
    ipcs: tuple[int, ...]

    @staticmethod
    def of(pairs: Iterable[tuple[str, int]]) -> "Look":
        """Choose the look of these (method, IPC) pairs."""
        listed = list(pairs)
        methods = {method for method, _ in listed} - {BASELINE}
        return Look(
            tuple(sorted(methods, key=method_order)), tuple(sorted({ipc for _, ipc in listed}))
        )

    def colour(self, method: str) -> str:
        """Colour of a method; the baseline is grey."""
        if method == BASELINE:
            return BASELINE_COLOUR
        return COLOURS[self.methods.index(method) % len(COLOURS)]

    def symbol(self, ipc: int) -> str:
        """Symbol of an IPC."""
        return SYMBOLS[self.ipcs.index(ipc) % len(SYMBOLS)]


def accuracy_figure(compared: Sequence[Comparison], look: Look) -> Figure:
    """Mean, spread and single students of every method on one data set, one panel per setting."""
    from plotly.subplots import make_subplots

    counts = [len(one.ranking) for one in compared]
    height = 80 + sum(34 * count + PANEL_GAP for count in counts)
    figure = make_subplots(
        rows=len(compared),
        cols=1,
        shared_xaxes=True,
        row_heights=[count + 0.5 for count in counts],
        vertical_spacing=min(PANEL_GAP / height, 0.9 / len(compared)),
        subplot_titles=[plain(setting_name(one)) for one in compared],
    )
    for row, one in enumerate(compared, start=1):
        for accuracy in one.ranking:
            _add_accuracy(figure, accuracy, one.setting.ipc, look, row=row)
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    figure.update_xaxes(showticklabels=True)
    figure.update_xaxes(title_text="best top-1 accuracy (%)", row=len(compared))
    figure.update_yaxes(autorange="reversed")
    leads = "; ".join(f"{setting_name(one)}: {one.best.method} leads" for one in compared)
    return finished(
        figure,
        title=f"Best top-1 accuracy on {compared[0].setting.data}",
        caption="Large marks are means with one sample standard deviation, small marks single "
        "students.",
        description=f"Dot plot of best top-1 accuracy by setting and method. {leads}.",
        height=height,
    )


def _add_accuracy(
    figure: "go.Figure", accuracy: Accuracy, ipc: int, look: Look, *, row: int
) -> None:
    name, colour = plain(accuracy.method), look.colour(accuracy.method)
    figure.add_scatter(
        x=[accuracy.best_mean],
        y=[name],
        error_x=_error_bar(accuracy.best_std, thickness=2, width=5),
        mode="markers",
        marker={"color": colour, "size": 13, "symbol": look.symbol(ipc)},
        hovertemplate=f"{percent(accuracy)}<extra></extra>",
        showlegend=False,
        row=row,
        col=1,
    )
    figure.add_scatter(
        x=accuracy.best,
        y=[name] * accuracy.n,
        mode="markers",
        marker={"color": "white", "size": 5, "line": {"color": colour, "width": 1.5}},
        hovertemplate="student: %{x:.2f} %<extra></extra>",
        showlegend=False,
        row=row,
        col=1,
    )


def coverage_figure(measured: Sequence[Measurement], look: Look) -> Figure:
    """R1/D1 and R2/D2 of sets measured on one data set by one backbone, side by side."""
    from plotly.subplots import make_subplots

    first = measured[0]
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.13)
    for column, (across, up) in enumerate(PAIRS, start=1):
        span = _span([one.value(across) for one in measured])
        figure.update_xaxes(range=span, row=1, col=column)
        for one in measured:
            mark = Mark(
                method=one.measured.method,
                ipc=one.measured.ipc,
                across=one.value(across),
                up=one.value(up),
            )
            _add_mark(figure, mark, look, row=1, col=column)
        figure.update_xaxes(title_text=f"{METRICS[across].axis} (cosine)", row=1, col=column)
        figure.update_yaxes(title_text=METRICS[up].axis, row=1, col=column)
    missing = sum(math.isnan(one.value("d1")) for one in measured)
    note = f" {missing} sets of one image per class have no diversity and no mark." * bool(missing)
    return finished(
        figure,
        title=f"Representativeness and diversity on {first.measured.data}",
        caption=(
            f"Each mark is a set; up and to the right is better. Features of {first.backbone}, "
            f"validation images of {first.val}.{note}"
        ),
        description="Two scatter plots of diversity against representativeness; the table above "
        "holds the numbers.",
        height=430,
    )


def cost_figure(points: Sequence[tuple[float, int, Accuracy]], where: str, look: Look) -> Figure:
    """Accuracy against construction cost, on a log axis.

    Args:
        points: Wall seconds that a set cost, its IPC, and the accuracy it gave.
        where: Data, protocol and student, for the title.
        look: Colours and symbols.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for wall_seconds, ipc, accuracy in points:
        mark = Mark(
            method=accuracy.method,
            ipc=ipc,
            across=max(wall_seconds, SHORTEST_SECONDS),
            up=accuracy.best_mean,
            spread=accuracy.best_std,
        )
        _add_mark(figure, mark, look)
    exponents = [math.log10(max(seconds, SHORTEST_SECONDS)) for seconds, _, _ in points]
    figure.update_xaxes(type="log", range=_span(exponents), **_log_ticks(exponents))
    figure.update_xaxes(title_text="construction cost (wall seconds, log scale)")
    figure.update_yaxes(title_text="best top-1 accuracy (%)")
    return finished(
        figure,
        title=f"Accuracy against construction cost: {where}",
        caption="Up and to the left is better. The cost is that of making the set, its inputs "
        "included; training the students is not in it.",
        description="Scatter plot of accuracy against cost; the tables hold the numbers.",
        height=430,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A set in a scatter plot."""

    method: str
    ipc: int
    across: float
    up: float
    spread: float = math.nan
    """Standard deviation of ``up``; NaN if it is not known."""


def _error_bar(deviation: float, **look: float) -> dict[str, Any] | None:
    """Bar of one standard deviation; None where it is NaN."""
    return None if math.isnan(deviation) else {"array": [deviation], **look}


def _add_mark(figure: "go.Figure", mark: Mark, look: Look, **place: int) -> None:
    name = plain(f"{mark.method}, IPC {mark.ipc}")
    figure.add_scatter(
        x=[mark.across],
        y=[mark.up],
        error_y=_error_bar(mark.spread, thickness=1.5),
        mode="markers+text",
        text=[name],
        textposition="middle right",
        textfont={"size": 11},
        cliponaxis=False,
        marker={"color": look.colour(mark.method), "symbol": look.symbol(mark.ipc), "size": 12},
        hovertemplate=f"{name}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>",
        showlegend=False,
        **place,
    )


def _span(values: Sequence[float]) -> list[float] | None:
    """Range of an axis with room for the names to the right of the marks; None for no number."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return None
    low, high = min(numbers), max(numbers)
    width = (high - low) or 0.2 * abs(high) or 1.0
    return [low - 0.07 * width, high + 0.4 * width]


def _log_ticks(exponents: Sequence[float]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 of every decade, or at 1 alone if there are many decades."""
    first, last = math.floor(min(exponents)) - 1, math.ceil(max(exponents)) + 2
    steps = (1, 2, 5) if last - first < 7 else (1,)
    values = [step * 10.0**decade for decade in range(first, last) for step in steps]
    return {"tickvals": values, "ticktext": [f"{value:,g}" for value in values]}


def setting_name(comparison: Comparison) -> str:
    """Data, IPC, protocol, student and, where the protocol was shortened, how."""
    one = comparison.setting
    short = f", {one.epochs} epochs, {one.pixels_and_evaluations}" if one.short else ""
    return f"{one.data}, IPC {one.ipc}, {one.protocol}, {one.student}{short}"


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
