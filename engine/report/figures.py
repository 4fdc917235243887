"""Interactive figures: plotly descriptions as JSON, drawn by the page with the inlined library.

Colours name methods and symbols name IPC, the same in every figure. The page sets the colour of the
text, so that figures follow its light or dark scheme.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from engine.report.accuracy import Accuracy, Comparison
from engine.report.catalogue import BASELINE, method_order
from engine.report.measures import PAIRS, Measurement, SetCost

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito, "Color universal design" (2008): told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#a6761d")
BASELINE_COLOUR = "#7f7f7f"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
GRID_COLOUR = "rgba(128, 128, 128, 0.25)"
AXIS_NAMES = {"r1": "R1, worst match of the set", "d1": "D1, 1 - nearest pair",
              "r2": "R2, mean match of the validation images", "d2": "D2, 1 - mean pair"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of the page."""

    title: str
    caption: str
    description: str
    """What a reader who cannot see it should know."""
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
        """The look of these (method, IPC) pairs."""
        told = list(pairs)
        methods = {method for method, _ in told} - {BASELINE}
        return Look(tuple(sorted(methods, key=method_order)), tuple(sorted({ipc for _, ipc in told})))

    def colour(self, method: str) -> str:
        """Colour of a method; the baseline is grey."""
        if method == BASELINE:
            return BASELINE_COLOUR
        return COLOURS[self.methods.index(method) % len(COLOURS)]

    def symbol(self, ipc: int) -> str:
        """Symbol of an IPC."""
        return SYMBOLS[self.ipcs.index(ipc) % len(SYMBOLS)]


def accuracy_figure(compared: Sequence[Comparison], look: Look) -> Figure:
    """Mean, spread and the single students of every method, settings below one another."""
    import plotly.graph_objects as go

    rows = [(one.setting, accuracy) for one in compared for accuracy in one.ranking]
    names = [_plain(accuracy.method) for _, accuracy in rows]
    settings = [_plain(_setting_name(one)) for one in compared for _ in one.ranking]
    figure = go.Figure()
    for position, (setting, accuracy) in enumerate(rows):
        where = [[settings[position]], [names[position]]]
        colour = look.colour(accuracy.method)
        figure.add_scatter(
            x=accuracy.best,
            y=[where[0] * accuracy.n, where[1] * accuracy.n],
            mode="markers",
            marker={"color": colour, "size": 5, "opacity": 0.45},
            hovertemplate="student: %{x:.2f} %<extra></extra>",
        )
        figure.add_scatter(
            x=[accuracy.best_mean],
            y=where,
            error_x={"array": [accuracy.best_std], "thickness": 2, "width": 5},
            mode="markers+text",
            text=[f"{accuracy.best_mean:.1f}"],
            textposition="top center",
            marker={"color": colour, "size": 12, "symbol": look.symbol(setting.ipc)},
            hovertemplate="mean %{x:.2f} % ± %{error_x.array:.2f}<extra></extra>",
        )
    height = 90 + 46 * len(rows) + 14 * len(compared)
    figure.update_layout(
        xaxis={"title": "best top-1 accuracy (%)", "zeroline": False},
        yaxis={"autorange": "reversed", "automargin": True, "showdividers": True},
        showlegend=False,
    )
    best = "; ".join(f"{_setting_name(one)}: {one.best.method} leads" for one in compared)
    return _finished(
        figure,
        title="Best top-1 accuracy",
        caption="Large marks are means with one standard deviation, small marks single students.",
        description=f"Dot plot of best top-1 accuracy by setting and method. {best}.",
        height=height,
    )


def coverage_figure(measured: Sequence[Measurement], look: Look) -> Figure:
    """R1/D1 and R2/D2 of sets measured on one data set by one backbone, side by side."""
    from plotly.subplots import make_subplots

    first = measured[0]
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.13)
    for column, (across, up) in enumerate(PAIRS, start=1):
        for one in measured:
            _add_set(figure, one.measured.method, one.measured.ipc, look, one.value(across),
                     one.value(up), row=1, col=column)  # fmt: skip
        figure.update_xaxes(title_text=f"{AXIS_NAMES[across]} (cosine)", row=1, col=column)
        figure.update_yaxes(title_text=f"{AXIS_NAMES[up]} (1 - cosine)", row=1, col=column)
    missing = sum(one.value(up) != one.value(up) for one in measured for _, up in PAIRS[:1])
    note = f" {missing} sets have no diversity (one image per class) and no mark." if missing else ""
    return _finished(
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


def cost_figure(points: Sequence[tuple[SetCost, Accuracy]], where: str, look: Look) -> Figure:
    """Accuracy of one setting against the construction cost of the sets, on a log axis."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for cost, accuracy in points:
        _add_set(figure, accuracy.method, cost.paid.ipc, look, cost.wall_seconds,
                 accuracy.best_mean, spread=accuracy.best_std)  # fmt: skip
    figure.update_xaxes(type="log", title_text="construction cost (wall seconds, log scale)")
    figure.update_yaxes(title_text="best top-1 accuracy (%)")
    return _finished(
        figure,
        title=f"Accuracy against construction cost: {where}",
        caption="Up and to the left is better. The cost is that of making the set, inputs included; "
        "training the students is not in it.",
        description="Scatter plot of accuracy against construction cost; the tables hold the numbers.",
        height=430,
    )


def _add_set(
    figure: "go.Figure",
    method: str,
    ipc: int,
    look: Look,
    across: float,
    up: float,
    *,
    spread: float | None = None,
    **place: int,
) -> None:
    name = _plain(f"{method}, IPC {ipc}")
    figure.add_scatter(
        x=[across],
        y=[up],
        error_y=None if spread is None else {"array": [spread], "thickness": 1.5},
        mode="markers+text",
        text=[name],
        textposition="top center",
        textfont={"size": 11},
        cliponaxis=False,
        marker={"color": look.colour(method), "symbol": look.symbol(ipc), "size": 12},
        hovertemplate=f"{name}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>",
        showlegend=False,
        **place,
    )


def _setting_name(comparison: Comparison) -> str:
    one = comparison.setting
    return f"{one.data}, IPC {one.ipc}<br>{one.protocol}, {one.student}"


def finished(figure: "go.Figure", *, title: str, caption: str, description: str, height: int) -> Figure:
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
    return Figure(
        title=title, caption=caption, description=description, json=text, height=height
    )


_finished = finished


def _plain(text: str) -> str:
    """Text that plotly, which reads a few HTML tags, shows as it is."""
    return escape(text, quote=False)
