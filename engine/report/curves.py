"""Figures of training curves."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from coreset.engine.report.figures import Figure, Look, finished, plain
from coreset.engine.report.results import Comparison


def training_figures(
    compared: Iterable[Comparison], curves: Iterable[Mapping[str, Any]], look: Look
) -> Iterator[Figure]:
    """Draw top-1 by epoch: a figure per setting, a line per method, the mean of its students."""
    import plotly.graph_objects as go

    evaluations: dict[str, dict[int, float]] = defaultdict(dict)
    for row in curves:
        if row["top1"] is not None:
            evaluations[row["key"]][row["epoch"]] = row["top1"]
    for comparison in compared:
        figure = go.Figure()
        for accuracy in comparison.ranking:
            if means := _means([evaluations[key] for key in accuracy.keys if key in evaluations]):
                figure.add_scatter(
                    x=list(means),
                    y=list(means.values()),
                    mode="lines" if len(means) > 1 else "markers",
                    name=plain(accuracy.method),
                    line={"color": look.colours[accuracy.method], "width": 1.2},
                )
        if not figure.data:
            continue
        figure.update_xaxes(title_text="epochs")
        figure.update_yaxes(title_text="top-1 accuracy (%)")
        figure.update_layout(
            showlegend=True, legend={"orientation": "h", "y": 1, "yanchor": "bottom"}
        )
        yield finished(
            figure,
            title=f"Training: {comparison.title}",
            caption="Each line is the mean of the students of a method, evaluation by evaluation.",
            description="Lines of the accuracy by epoch; the table above holds the best and last.",
            height=330,
        )


def _means(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    epochs = sorted({epoch for curve in curves for epoch in curve})
    return {e: fmean(curve[e] for curve in curves if e in curve) for e in epochs}
