"""Image grids: per class the easiest, the hardest and the chosen images, or the synthetic ones.

Images are read from the shards by offset, one seek each, and inlined as data URIs.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coreset.engine.data.decoders.pillow import decode_with_pillow
from coreset.engine.data.geometry import Geometry
from coreset.engine.report.sets import Evidence, FoundScores, FoundSet
from coreset.shards.format.dataset import Dataset
from coreset.shards.images.pillow import opened

SIDE = 96
"""Pixels of a thumbnail."""
JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """One image of a grid."""

    uri: str
    """Data URI; empty if the stored image cannot be read."""
    alt: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """Images of one class that have something in common."""

    title: str
    thumbnails: tuple[Thumbnail, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassGrid:
    """Image rows of one class."""

    name: str
    rows: tuple[ImageRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataGrid:
    """Grids of the first classes of one data set."""

    data: str
    n_classes: int
    score: str
    """Score under the images; empty if the data set has none."""
    classes: tuple[ClassGrid, ...]


def data_grids(evidence: Evidence, *, max_classes: int, images_per_row: int) -> list[DataGrid]:
    """One grid per condensed data set, in the order of the sets.

    Of every method the set with the smallest IPC and seed is shown; its images are spread evenly
    from the hardest to the easiest where scores are there.
    """
    by_identity: dict[str, list[FoundSet]] = {}
    for one in evidence.sets:
        by_identity.setdefault(one.condensed.info.source_identity, []).append(one)
    scores = {one.dataset.manifest.identity: one for one in reversed(evidence.scores)}
    return [
        _data_grid(_first_of_each_method(sets), scores.get(identity), max_classes, images_per_row)
        for identity, sets in by_identity.items()
    ]


def thumbnail_uri(image: bytes) -> str:
    """Data URI of the central square of an encoded image, ``SIDE`` pixels wide.

    A smaller image is enlarged to blocks of equal pixels (PNG), as blurring 8 x 8 digits would hide
    what a network sees.

    Raises:
        ValueError: The image cannot be decoded.
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


def stored_image(dataset: Dataset, sample_id: int) -> bytes:
    """Encoded bytes of one sample."""
    row = dataset.samples.slice(sample_id, 1).to_pylist()[0]
    with dataset.shard_paths()[row["shard"]].open("rb") as shard:
        shard.seek(row["offset"])
        return shard.read(row["bytes"])


def _first_of_each_method(sets: Sequence[FoundSet]) -> list[FoundSet]:
    """The catalogue sorts by IPC and seed within a method: the first one is the smallest."""
    first: dict[str, FoundSet] = {}
    for one in sets:
        first.setdefault(one.reported.method, one)
    return list(first.values())


def _data_grid(
    sets: Sequence[FoundSet], scores: FoundScores | None, max_classes: int, images_per_row: int
) -> DataGrid:
    classes = sets[0].condensed.dataset.classes
    return DataGrid(
        data=sets[0].reported.data,
        n_classes=len(classes),
        score=scores.score if scores else "",
        classes=tuple(
            ClassGrid(name=name, rows=tuple(_class_rows(label, sets, scores, images_per_row)))
            for label, name in enumerate(classes[:max_classes])
        ),
    )


def _class_rows(
    label: int, sets: Sequence[FoundSet], scores: FoundScores | None, n: int
) -> Iterator[ImageRow]:
    if scores is not None:
        members = np.flatnonzero(scores.dataset.labels == label)
        by_easiness = members[np.argsort(scores.easiness[members], kind="stable")]
        yield ImageRow(title="easiest", thumbnails=_scored(scores, by_easiness[::-1][:n]))
        yield ImageRow(title="hardest", thumbnails=_scored(scores, by_easiness[:n]))
    for one in sets:
        condensed = one.condensed
        ids = condensed.ids[condensed.labels == label]
        if condensed.info.kind == "distilled" or scores is None:
            thumbnails = _unscored(condensed.dataset, ids[:n])
        else:
            hardest_first = ids[np.argsort(scores.easiness[ids], kind="stable")]
            thumbnails = _scored(scores, evenly_spread(hardest_first, n))
        made = "made by" if condensed.info.kind == "distilled" else "chosen by"
        yield ImageRow(title=f"{made} {one.reported.name}", thumbnails=thumbnails)


def evenly_spread(ids: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """At most ``n`` of ``ids`` at equal distances, the first and the last among them."""
    if len(ids) <= n:
        return ids
    return ids[np.linspace(0, len(ids) - 1, n).round().astype(np.int64)]


def _scored(scores: FoundScores, ids: NDArray[np.int64]) -> tuple[Thumbnail, ...]:
    # Counts (forgetting, correctness) are whole numbers, probabilities and logits are not.
    decimals = 0 if np.array_equal(scores.values, scores.values.round()) else 3
    captions = [f"{scores.values[one]:.{decimals}f}" for one in ids]
    return _thumbnails(scores.dataset, ids, captions, f", {scores.score} ")


def _unscored(dataset: Dataset, ids: NDArray[np.int64]) -> tuple[Thumbnail, ...]:
    return _thumbnails(dataset, ids, [""] * len(ids), "")


def _thumbnails(
    dataset: Dataset, ids: NDArray[np.int64], captions: Sequence[str], joint: str
) -> tuple[Thumbnail, ...]:
    keys, thumbnails = dataset.samples["key"], list[Thumbnail]()
    for one, caption in zip(ids.tolist(), captions, strict=True):
        try:
            uri = thumbnail_uri(stored_image(dataset, one))
        except (OSError, ValueError):  # a shard is gone or damaged: `coreset verify` tells which
            uri = ""
        alt = f"{keys[one].as_py()}{joint}{caption}"
        thumbnails.append(Thumbnail(uri=uri, alt=alt, caption=caption))
    return tuple(thumbnails)
