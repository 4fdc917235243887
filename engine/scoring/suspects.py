"""The images whose labels look wrong: hardest first, with what was given and what is predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from coreset.engine.runtime.text import NUMBER_WIDTH, aligned, decimals
from coreset.engine.scoring.score_table import ScoreTable
from coreset.shards.errors import UsageError
from coreset.shards.format.files import write_atomically
from coreset.shards.tables.csv_cells import csv_table

# How well each score finds wrong labels is measured in docs/scores.md.
BEST_SCORES: Mapping[str, str] = MappingProxyType(
    {
        "confidence_oof": "by classifiers that never saw the label and cannot have memorised it",
        "el2n": "of the first epochs, before wrong labels are memorised; better still is "
        "`coreset score --proxy linear --folds 5`",
        "aum": "el2n was not stored",
    }
)
"""Scores that find wrong labels, best first for either proxy, and why; the first that is stored is
the default."""

COLUMNS = ("sample", "source", "given_label", "predicted_label")
CLEANLAB_COLUMNS = ("label_quality", "is_label_issue")
"""In the sense of ``cleanlab.classification.CleanLearning.get_label_issues``; with folds."""
OWN_COLUMNS = ("share_harder", "predicted_otherwise")
"""In their place without folds, where nothing is out of sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """An image that may be mislabelled."""

    sample: int
    source: str
    """Path below the folder that was packed."""
    given_label: str
    predicted_label: str | None
    """Most probable class, out of fold where there are folds; None if none was predicted."""
    score: float
    share_harder: float
    """Share of the other images that are harder: 0 for the most suspicious, at most 1."""
    predicted_otherwise: bool | None
    """Whether another class is predicted; None if none was."""
    label_quality: float | None
    """Out-of-sample probability of the given label, 0 to 1; None without folds."""
    is_label_issue: bool | None
    """Whether confident learning takes the label for wrong; None without folds."""


def best_score(scored: ScoreTable) -> str:
    """Name the stored score that finds wrong labels best.

    Raises:
        UsageError: None of `BEST_SCORES` was stored.
    """
    for name in BEST_SCORES:
        if name in scored.names:
            return name
    raise UsageError(
        f"{scored.path} has none of the scores {', '.join(BEST_SCORES)}; choose a --score of "
        f"{', '.join(scored.names)}, or score again"
    )


def find_suspects(
    scored: ScoreTable, score: str, top: int, *, per_class: bool = False
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
    shares = n_harder / max(1, ease.size - 1)
    return _described(scored, score, scored.ids[chosen], shares)


def _place_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same class come before each position."""
    order = np.argsort(labels, kind="stable")
    place = np.empty(labels.size, np.int64)
    place[order] = np.arange(labels.size) - np.searchsorted(labels[order], labels[order])
    return place


def _described(
    scored: ScoreTable, score: str, ids: NDArray[np.int64], shares: NDArray[np.float64]
) -> list[Suspect]:
    dataset, unknown = scored.dataset, [None] * ids.size
    given, predicted = dataset.labels[ids], scored.predicted
    seen = unknown if predicted is None else [dataset.classes[c] for c in predicted[ids]]
    otherwise = unknown if predicted is None else (predicted[ids] != given).tolist()
    quality, issues = scored.columns.get("confidence_oof"), scored.label_issues
    columns = {
        "sample": ids.tolist(),
        "source": dataset.table(["source"])["source"].take(ids).to_pylist(),
        "given_label": [dataset.classes[label] for label in given],
        "predicted_label": seen,
        "score": scored.values(score)[ids].tolist(),
        "share_harder": shares.tolist(),
        "predicted_otherwise": otherwise,
        "label_quality": unknown if quality is None else quality[ids].tolist(),
        "is_label_issue": unknown if issues is None else issues[ids].tolist(),
    }
    rows = zip(*columns.values(), strict=True)
    return [Suspect(**dict(zip(columns, row, strict=True))) for row in rows]


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
    """Write a CSV table of ``COLUMNS`` and cleanlab's or our own; what is unknown is empty."""
    out_of_fold = suspects[0].label_quality is not None
    names = (*COLUMNS, *(CLEANLAB_COLUMNS if out_of_fold else OWN_COLUMNS))
    rows = ([_cell(getattr(one, name)) for name in names] for one in suspects)
    write_atomically(path, csv_table(names, rows))


def _cell(value: object) -> object:
    """Format a cell; seven digits tell the ranks of ten million images apart."""
    return f"{value:.7g}" if isinstance(value, float) else value
