"""The images whose labels look wrong: hardest first, with what was given and what is predicted."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.scored import Scored
from engine.spreads import NUMBER_WIDTH, decimals
from engine.tables import aligned
from shards.atomic import write_atomically
from shards.errors import UsageError

# Sample and file, then the columns of cleanlab's tables of label issues.
CSV_COLUMNS = (
    "sample", "source", "given_label", "predicted_label", "label_quality", "is_label_issue",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """An image that may be mislabelled."""

    sample: int
    source: str
    """Path below the folder that was packed."""
    given_label: str
    predicted_label: str | None
    """Class that the trained network sees; None if it was not asked."""
    score: float
    label_quality: float
    """Share of the other images that are harder: 0 for the most suspicious, at most 1."""

    @property
    def is_label_issue(self) -> bool | None:
        """Whether the network sees another class; None if it was not asked."""
        return None if self.predicted_label is None else self.predicted_label != self.given_label


def find_suspects(
    scored: Scored, score: str, top: int, *, per_class: bool = False
) -> list[Suspect]:
    """The ``top`` images at the hard end of a score, hardest first; equals by sample id.

    Args:
        scored: Scores with their data set.
        score: Score that tells them.
        top: How many, at least 1.
        per_class: So many of every class, instead of all together.

    Raises:
        UsageError: The score was not stored.
        StoreError: An image has no value.
    """
    ease = scored.easiness(score, scored.ids)
    chosen = np.argsort(ease, kind="stable")
    if per_class:
        chosen = chosen[_place_in_class(scored.dataset.labels[scored.ids[chosen]]) < top]
    else:
        chosen = chosen[:top]
    n_harder = np.searchsorted(np.sort(ease), ease[chosen])
    qualities = n_harder / max(1, ease.size - 1)
    return _described(scored, score, scored.ids[chosen], qualities)


def _place_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same class come before each position."""
    order = np.argsort(labels, kind="stable")
    place = np.empty(labels.size, np.int64)
    place[order] = np.arange(labels.size) - np.searchsorted(labels[order], labels[order])
    return place


def _described(
    scored: Scored, score: str, ids: NDArray[np.int64], qualities: NDArray[np.float64]
) -> list[Suspect]:
    dataset, predicted = scored.dataset, scored.predicted
    given = [dataset.classes[label] for label in dataset.labels[ids]]
    seen = [None] * ids.size if predicted is None else [dataset.classes[c] for c in predicted[ids]]
    columns = (
        ids.tolist(),
        dataset.table(["source"])["source"].take(ids).to_pylist(),
        given,
        seen,
        scored.values(score)[ids].tolist(),
        qualities.tolist(),
    )
    return [
        Suspect(
            sample=sample,
            source=source,
            given_label=label,
            predicted_label=predicted_label,
            score=value,
            label_quality=quality,
        )
        for sample, source, label, predicted_label, value, quality in zip(*columns, strict=True)
    ]


def suspect_table(score: str, suspects: Sequence[Suspect]) -> tuple[str, ...]:
    """Lines of a table for a terminal; a dash for what was not predicted."""
    header = ("sample", "source", "given", "predicted", score.rjust(NUMBER_WIDTH))
    rows = [
        (
            str(one.sample),
            one.source,
            one.given_label,
            one.predicted_label or "-",
            decimals(one.score),
        )
        for one in suspects
    ]
    return aligned(header, rows)


def require_replaceable(path: Path) -> None:
    """Check that a table may take the name ``path``.

    Raises:
        UsageError: Its folder does not exist, or something that is no regular file is there.
    """
    if not path.parent.is_dir():
        raise UsageError(f"csv {path} lies in a folder that does not exist; make {path.parent}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"csv {path} is no regular file and is not replaced; choose another name")


def write_suspects(path: Path, suspects: Sequence[Suspect]) -> None:
    """Write a CSV table of ``CSV_COLUMNS``; what was not predicted is an empty cell."""
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(_csv_row(one) for one in suspects)
    write_atomically(path, text.getvalue().encode())


def _csv_row(one: Suspect) -> tuple[object, ...]:
    quality = f"{one.label_quality:.7f}"  # tells the ranks of ten million images apart
    return (
        one.sample,
        one.source,
        one.given_label,
        one.predicted_label,
        quality,
        one.is_label_issue,
    )
