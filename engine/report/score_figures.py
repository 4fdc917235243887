"""Small multiples: how a score is distributed in each class, and where each coreset takes from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.report.figures import Figure, Look, finished, plain
from coreset.engine.report.sets import Evidence, FoundScores, FoundSet, was_chosen_by
from coreset.kernels.samplers import n_hardest
from coreset.kernels.scores import SCORES

if TYPE_CHECKING:
    import plotly.graph_objects as go

BINS = 32
COLUMNS = 4
PANEL_HEIGHT = 185
NAME_CHARACTERS = 28
RUG_DEPTH = 0.09
"""Where the marks of the chosen images lie below the axis, as a share of the highest bar."""
ALL_COLOUR = "rgba(128, 128, 128, 0.45)"


def score_figure(
    scores: FoundScores, evidence: Evidence, look: Look, *, max_classes: int
) -> Figure:
    """Histogram of a score in each of the first classes, with chosen images and cuts by coreset.

    The first coreset is shown; the others appear when their name in the legend is clicked.
    """
    from plotly.subplots import make_subplots

    classes, coresets = scores.dataset.classes[:max_classes], evidence.coresets_of(scores)
    n_columns = min(COLUMNS, len(classes))
    n_rows = -(-len(classes) // n_columns)
    height = 100 + PANEL_HEIGHT * n_rows
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        specs=[
            [{} if row * n_columns + column < len(classes) else None for column in range(n_columns)]
            for row in range(n_rows)
        ],
        vertical_spacing=56 / height,
        horizontal_spacing=0.05,
        subplot_titles=[plain(_shortened(name)) for name in classes],
    )
    for label in range(len(classes)):
        panel = _Panel(figure=figure, label=label, n_columns=n_columns, scores=scores, look=look)
        panel.add_all_images()
        for position, one in enumerate(coresets):
            panel.add_coreset(one, shown=position == 0)
    figure.update_annotations(font_size=12)
    figure.update_xaxes(range=_padded(scores.values))
    figure.update_xaxes(title_text=f"{scores.score} ({SCORES[scores.score].unit})", row=n_rows)
    figure.update_yaxes(title_text="images", col=1)
    figure.update_layout(legend={"orientation": "h", "y": -70 / height, "yanchor": "top"})
    return finished(
        figure,
        title=f"{scores.score} of {scores.dataset.manifest.name} by class",
        caption=_caption(scores, coresets, len(classes)),
        description=f"Histograms of {scores.score} in {len(classes)} classes.",
        height=height,
    )


def cut_of_class(easiness: NDArray[np.float32], chosen: int, misratio: float) -> float:
    """Find where the misratio cuts a class, in easiness: between the last cut and the first kept.

    Args:
        easiness: Scores of the class, low = hard.
        chosen: Images that the coreset takes; so many are never cut.
        misratio: Share of the hardest images to cut.

    Returns:
        The cut; NaN if nothing is cut.
    """
    ordered = np.sort(easiness)
    n_cut = min(n_hardest(len(ordered), misratio), len(ordered) - chosen)
    return float(ordered[n_cut - 1 : n_cut + 1].mean()) if n_cut > 0 else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """Draw the histogram of one class."""

    figure: "go.Figure"
    label: int
    n_columns: int
    scores: FoundScores
    look: Look

    @property
    def place(self) -> dict[str, int]:
        row, column = divmod(self.label, self.n_columns)
        return {"row": row + 1, "col": column + 1}

    @property
    def members(self) -> NDArray[np.bool_]:
        return self.scores.dataset.labels == self.label

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Images per bin, and the edges of the bins, which all classes share."""
        values = self.scores.values
        edges = np.linspace(values.min(), np.nextafter(values.max(), np.inf), BINS + 1)
        return np.histogram(values[self.members], bins=edges.astype(np.float64))

    def add_all_images(self) -> None:
        counts, edges = self.counts()
        self.figure.add_bar(
            x=((edges[:-1] + edges[1:]) / 2).tolist(),
            y=counts.tolist(),
            width=float(edges[1] - edges[0]),
            marker={"color": ALL_COLOUR, "line": {"width": 0}},
            name="all images",
            showlegend=self.label == 0,
            legendgroup="all",
            hovertemplate="%{y} images at %{x:.3g}<extra></extra>",
            **self.place,
        )

    def add_coreset(self, one: FoundSet, *, shown: bool) -> None:
        ids = one.condensed.ids[one.condensed.labels == self.label]
        colour, top = self.look.colour(one.reported.method), int(self.counts()[0].max())
        common: dict[str, Any] = {
            "name": plain(one.reported.name),
            "legendgroup": one.reported.digest,
            "visible": True if shown else "legendonly",
            **self.place,
        }
        self.figure.add_scatter(
            x=self.scores.values[ids].tolist(),
            y=[-RUG_DEPTH * top] * len(ids),
            mode="markers",
            marker={"symbol": "line-ns", "size": 9, "line": {"color": colour, "width": 1.6}},
            hovertemplate="chosen: %{x:.3g}<extra></extra>",
            showlegend=self.label == 0,
            **common,
        )
        misratio = one.condensed.info.parameters.get("misratio")
        if misratio is not None and was_chosen_by(one, self.scores):
            easiness = self.scores.easiness[self.members]
            cut = cut_of_class(easiness, len(ids), misratio)
            cut = cut if self.scores.low_is_hard else -cut
            self.figure.add_scatter(
                x=[cut, cut],
                y=[0, top],
                mode="lines",
                line={"color": colour, "width": 1.5, "dash": "dash"},
                hovertemplate=f"misratio {misratio} cuts at {cut:.3g}<extra></extra>",
                showlegend=False,
                **common,
            )


def _caption(scores: FoundScores, coresets: list[FoundSet], n_shown: int) -> str:
    meaning, n = SCORES[scores.score], len(scores.dataset.classes)
    parts = [f"{scores.score}: {meaning.summary}; the hard end is {_hard_end(scores)}."]
    if n_shown < n:
        parts.append(f"The first {n_shown} of {n:,} classes.")
    if coresets:
        parts.append(
            f"Ticks below the axis are the images chosen by {coresets[0].reported.name}; a dashed "
            "line is the misratio's cut, beyond which nothing is chosen."
        )
    if len(coresets) > 1:
        parts.append("Click a name in the legend to show or hide a set.")
    return " ".join(parts)


def _padded(values: NDArray[np.float32]) -> list[float]:
    """Range of all values with a little room, the same for every class."""
    low, high = float(values.min()), float(values.max())
    room = 0.03 * (high - low) or 0.5
    return [low - room, high + room]


def _hard_end(scores: FoundScores) -> str:
    return "left" if scores.low_is_hard else "right"


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"
