"""Class by class: how a score is distributed, where coresets take from, and grids of images."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.engine.data.reader import ShardReader
from coreset.engine.report.figures import Figure, Look, finished, plain, span_of
from coreset.engine.report.sets import UNREADABLE, Evidence, FoundScores, FoundSet
from coreset.kernels.samplers import n_hardest
from coreset.kernels.scores import SCORES
from coreset.shards.format.dataset import Dataset
from coreset.shards.images.probe import opened

if TYPE_CHECKING:
    import plotly.graph_objects as go

BINS = 32
COLUMNS = 4
PANEL_HEIGHT = 185
NAME_CHARACTERS = 28
RUG_DEPTH = 0.09
"""Depth of the marks of chosen images below the axis, as a share of the highest bar."""
ALL_COLOUR = "rgba(128, 128, 128, 0.45)"
SIDE = 96
JPEG_QUALITY = 85


def score_figure(
    scores: FoundScores, evidence: Evidence, look: Look, *, max_classes: int
) -> Figure:
    """Draw a score's histogram in each of the first classes, with chosen images and cuts."""
    from plotly.subplots import make_subplots

    classes, coresets = scores.table.label_names[:max_classes], _coresets_of(scores, evidence.sets)
    n_columns = min(COLUMNS, len(classes))
    places = [divmod(label, n_columns) for label in range(len(classes))]
    n_rows = places[-1][0] + 1
    height = 100 + PANEL_HEIGHT * n_rows
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        specs=[
            [{} if (row, column) in places else None for column in range(n_columns)]
            for row in range(n_rows)
        ],
        vertical_spacing=56 / height,
        horizontal_spacing=0.05,
        subplot_titles=[
            plain(name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…")
            for name in classes
        ],
    )
    for label, (row, column) in enumerate(places):
        for trace in _panel(label, scores, coresets, look):
            figure.add_trace(trace, row=row + 1, col=column + 1)
    figure.update_annotations(font_size=12)
    by = "group" if scores.table.suffix else "class"
    ends = (float(scores.values.min()), float(scores.values.max()))
    figure.update_xaxes(range=span_of(ends, 0.03, 0.03))
    figure.update_xaxes(title_text=f"{scores.score} ({SCORES[scores.score].unit})", row=n_rows)
    figure.update_yaxes(title_text="images", col=1)
    figure.update_layout(legend={"orientation": "h", "y": -70 / height, "yanchor": "top"})
    name, table = scores.table.dataset.manifest.name, scores.table
    return finished(
        figure,
        title=f"{table.name_of(scores.score)} of {name} by {by}",
        caption=_caption(scores, coresets, len(classes)),
        description=f"{len(classes)} histograms of {scores.score} by {by}.",
        height=height,
    )


def _coresets_of(scores: FoundScores, sets: Iterable[FoundSet]) -> list[FoundSet]:
    """List the coresets of the scored data, those chosen by this very score first."""
    infos = ((entry, entry.condensed.info) for entry in sets)
    identity = scores.table.dataset.manifest.identity
    coresets = [f for f, i in infos if i.kind == "coreset" and i.source_identity == identity]
    return sorted(coresets, key=lambda entry: not _was_chosen_by(entry, scores))


def _was_chosen_by(entry: FoundSet, scores: FoundScores) -> bool:
    ancestor = entry.condensed.provenance.ancestor("scores") or {}
    same = ancestor.get("digest") == scores.digest
    return same and entry.condensed.info.parameters.get("score") == scores.score


def _panel(
    label: int, scores: FoundScores, coresets: Sequence[FoundSet], look: Look
) -> "Iterator[go.Bar | go.Scatter]":
    """Yield the traces of one class: all images, then what each coreset chose and where it cut."""
    import plotly.graph_objects as go

    values, members = scores.values, scores.labels == label
    edges = np.linspace(values.min(), np.nextafter(values.max(), np.inf), BINS + 1)
    counts, edges = np.histogram(values[members], bins=edges.astype(np.float64))
    top = int(counts.max())
    yield go.Bar(
        x=((edges[:-1] + edges[1:]) / 2).tolist(),
        y=counts.tolist(),
        width=float(edges[1] - edges[0]),
        marker={"color": ALL_COLOUR, "line": {"width": 0}},
        name="all images",
        showlegend=label == 0,
        legendgroup="all",
        hovertemplate="%{y} images at %{x:.3g}<extra></extra>",
    )
    for entry in coresets:
        ids = entry.condensed.ids[members[entry.condensed.ids]]
        colour = look.colours[entry.reported.method]
        common = {"name": plain(entry.reported.name), "legendgroup": entry.reported.digest}
        common |= {"visible": True if entry is coresets[0] else "legendonly"}
        yield go.Scatter(
            x=values[ids].tolist(),
            y=[-RUG_DEPTH * top] * len(ids),
            mode="markers",
            marker={"symbol": "line-ns", "size": 9, "line": {"color": colour, "width": 1.6}},
            hovertemplate="chosen: %{x:.3g}<extra></extra>",
            showlegend=label == 0,
            **common,
        )
        misratio = entry.condensed.info.parameters.get("misratio")
        if misratio is not None and _was_chosen_by(entry, scores):
            cut = cut_of_class(scores.easiness[members], len(ids), misratio)
            cut = cut if SCORES[scores.score].low_is_hard else -cut
            yield go.Scatter(
                x=[cut, cut],
                y=[0, top],
                mode="lines",
                line={"color": colour, "width": 1.5, "dash": "dash"},
                hovertemplate=f"misratio {misratio} cuts at {cut:.3g}<extra></extra>",
                showlegend=False,
                **common,
            )


def cut_of_class(easiness: NDArray[np.float32], chosen: int, misratio: float) -> float:
    """Find where the misratio cuts a class, in easiness; NaN if nothing is cut."""
    ordered = np.sort(easiness)
    n_cut = min(n_hardest(len(ordered), misratio), len(ordered) - chosen)
    return float(ordered[n_cut - 1 : n_cut + 1].mean()) if n_cut > 0 else float("nan")


def _caption(scores: FoundScores, coresets: list[FoundSet], n_shown: int) -> str:
    meaning, n = SCORES[scores.score], len(scores.table.label_names)
    hard_end = "left" if meaning.low_is_hard else "right"
    caption = f"{scores.score}: {meaning.summary}; the hard end is {hard_end}."
    if scores.table.suffix:
        caption += " Groups of pseudo-labels stand for the classes."
    if n_shown < n:
        caption += f" The first {n_shown} of {n:,}{'' if scores.table.suffix else ' classes'}."
    if coresets:
        caption += (
            f" Ticks below the axis are the images chosen by {coresets[0].reported.name}; a dashed "
            "line is the misratio's cut, beyond which nothing is chosen."
        )
    if len(coresets) > 1:
        caption += " Click a name in the legend to show or hide a set."
    return caption


def data_grids(
    evidence: Evidence, *, max_classes: int, images_per_row: int
) -> Iterator[dict[str, Any]]:
    """Yield a grid per condensed data: of every method the set with the smallest IPC and seed.

    A grid holds rows of images by their titles, for each of the first classes by name.
    """
    by_identity: dict[str, dict[str, FoundSet]] = defaultdict(dict)
    for entry in evidence.sets:  # sorted by IPC and seed within a method
        # Nobody knows from which packing the images of others come.
        identity = entry.condensed.info.source_identity or entry.reported.data
        by_identity[identity].setdefault(entry.reported.method, entry)
    known = [entry for entry in evidence.scores if not entry.table.suffix]
    scores = {entry.table.dataset.manifest.identity: entry for entry in reversed(known)}
    for identity, of_method in by_identity.items():
        sets, behind = list(of_method.values()), scores.get(identity)
        classes = sets[0].condensed.dataset.classes
        yield {
            "data": sets[0].reported.data,
            "n_classes": len(classes),
            "score": behind.score if behind else "",
            "classes": {
                name: dict(_rows(label, sets, behind, images_per_row))
                for label, name in enumerate(classes[:max_classes])
            },
        }


def _rows(
    label: int, sets: Iterable[FoundSet], scores: FoundScores | None, n: int
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    if scores is not None:
        by_easiness = hardest_first(scores, label)
        yield "easiest", thumbnails(scores.table.dataset, by_easiness[::-1][:n], scores)
        yield "hardest", thumbnails(scores.table.dataset, by_easiness[:n], scores)
    for entry in sets:
        condensed, made = entry.condensed, entry.condensed.info.kind == "distilled"
        ids = condensed.ids[condensed.labels == label]
        if made or scores is None:
            row = thumbnails(condensed.dataset, ids[:n], None)
        else:
            ordered = ids[np.argsort(scores.easiness[ids], kind="stable")]
            row = thumbnails(condensed.dataset, evenly_spread(ordered, n), scores)
        yield f"{'made' if made else 'chosen'} by {entry.reported.name}", row


def evenly_spread(ids: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Take at most ``n`` of ``ids`` at equal distances, the first and the last among them."""
    return ids[np.linspace(0, len(ids) - 1, min(n, len(ids))).round().astype(np.int64)]


def hardest_first(scores: FoundScores, label: int) -> NDArray[np.int64]:
    """Return the ids of a class, hardest first."""
    members = np.flatnonzero(scores.labels == label)
    return members[np.argsort(scores.easiness[members], kind="stable")]


def thumbnails(
    dataset: Dataset, ids: NDArray[np.int64], scores: FoundScores | None
) -> list[dict[str, str]]:
    """Make ``uri`` (empty where an image cannot be read), ``alt`` and ``caption``, the score."""
    shown: list[dict[str, str]] = []
    # Counts (forgetting, correctness) are whole numbers, probabilities and logits are not.
    whole = scores is not None and np.array_equal(scores.values, scores.values.round())
    with ShardReader(dataset) as reader:
        for sample_id in ids.tolist():
            try:
                uri = thumbnail_uri(reader.read_one(sample_id))
            except UNREADABLE:  # a shard is gone or damaged: `coreset verify` tells which
                uri = ""
            alt, caption = str(dataset.samples["key"][sample_id]), ""
            if scores is not None:
                caption = f"{scores.values[sample_id]:.{0 if whole else 3}f}"
                alt += f", {scores.score} {caption}"
            shown.append({"uri": uri, "alt": alt, "caption": caption})
    return shown


def thumbnail_uri(image: bytes) -> str:
    """Make a data URI of the central square of an image, or raise a ``ValueError``.

    A small image is enlarged to equal blocks: blurring 8 x 8 digits would hide what a network sees.
    """
    with opened(image) as header:
        side = min(SIDE, *header.size)
    square = Image.fromarray(decode_with_pillow(image, Geometry(side, side)))
    sink = io.BytesIO()
    if side < SIDE:
        square.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(sink, "PNG", optimize=True)
    else:
        square.save(sink, "JPEG", quality=JPEG_QUALITY)
    kind = "png" if side < SIDE else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"
