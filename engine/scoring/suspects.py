"""Images whose labels look wrong: hardest first, with the given and the predicted label."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from coreset.engine.runtime.text import NUMBER_WIDTH, aligned, short
from coreset.engine.scoring.recipes import GIVEN
from coreset.engine.scoring.score_table import ISSUE_OOF, ScoreTable
from coreset.kernels.samplers import positions_by_class
from coreset.shards.errors import UsageError
from coreset.shards.format.files import write_atomically
from coreset.shards.tables.formats import csv_table

# How well each score finds wrong labels is measured in docs/scores.md.
BEST_SCORES: Mapping[str, str] = {
    "confidence_oof": "by classifiers that never saw the label and cannot have memorised it",
    "el2n": "of the first epochs, before wrong labels are memorised; better still is "
    "`coreset score --proxy linear --folds 5`",
    "aum": "el2n was not stored",
    "mean_margin": "of features alone, which no training taught a wrong label",
}
"""Scores that find wrong labels, best first for any proxy, and why; the first that is stored is
the default."""

COLUMNS = ("sample", "source", "given_label", "predicted_label")
CLEANLAB_COLUMNS = ("label_quality", "is_label_issue")
"""In the sense of ``cleanlab.classification.CleanLearning.get_label_issues``; with folds."""
OWN_COLUMNS = ("share_harder", "predicted_otherwise")
"""In their place without folds, where nothing is out of sample."""

Suspect: TypeAlias = dict[str, Any]
"""The columns above and the score of one image; None where nothing was predicted."""


def best_score(table: ScoreTable) -> str:
    """Name the stored score that finds wrong labels best."""
    for name in BEST_SCORES:
        if name in table.names:
            return name
    raise UsageError(
        f"{table.path} has none of the scores {', '.join(BEST_SCORES)}; choose a --score of "
        f"{', '.join(table.names)}, or score again"
    )


def find_suspects(
    table: ScoreTable, score: str, top: int, *, per_class: bool = False
) -> list[Suspect]:
    """Return the ``top`` images (of every class) that are hardest; equals by sample id."""
    dataset, ease = table.dataset, table.easiness(score, table.ids)
    names = table.label_names
    chosen = np.argsort(ease, kind="stable")
    labels = table.labels[table.ids[chosen]]
    members = positions_by_class(labels, len(names)) if per_class else [np.arange(chosen.size)]
    chosen = chosen[np.sort(np.concatenate([positions[:top] for positions in members]))]
    n_harder = np.searchsorted(np.sort(ease), ease[chosen])
    ids, unknown = table.ids[chosen], [None] * chosen.size
    given, predicted = table.labels[ids], table.predicted
    quality, issues = table.columns.get("confidence_oof"), table.columns.get(ISSUE_OOF)
    columns = {
        "sample": ids.tolist(),
        "source": dataset.table(["source"])["source"].take(ids).to_pylist(),
        "given_label": [names[label] for label in given],
        "predicted_label": unknown,
        "score": table.values(score)[ids].tolist(),
        "share_harder": (n_harder / max(1, ease.size - 1)).tolist(),
        "predicted_otherwise": unknown,
        "label_quality": unknown if quality is None else quality[ids].tolist(),
        "is_label_issue": unknown if issues is None else issues[ids].tolist(),
    }
    if predicted is not None:
        columns["predicted_label"] = [names[label] for label in predicted[ids]]
        columns["predicted_otherwise"] = (predicted[ids] != given).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def suspect_table(
    score: str, suspects: Sequence[Suspect], *, label: str = GIVEN
) -> tuple[str, ...]:
    """Return a table for a terminal, a dash where nothing was predicted; labels are ``label``."""
    header = ("sample", "source", label, "predicted", score.rjust(NUMBER_WIDTH))
    texts = itemgetter("source", "given_label", "predicted_label")
    rows = [
        (str(row["sample"]), *(text or "-" for text in texts(row)), short(row["score"], ".4f"))
        for row in suspects
    ]
    return aligned(header, rows)


def require_replaceable(path: Path) -> None:
    """Check that a table may take the name ``path``."""
    if not path.parent.is_dir():
        raise UsageError(f"csv {path} lies in a folder that does not exist; make {path.parent}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"csv {path} is no regular file and is not replaced; choose another name")


def write_suspects(path: Path, suspects: Sequence[Suspect], *, label: str = GIVEN) -> None:
    """Write a CSV table of ``COLUMNS`` and cleanlab's or our own; unknown values are empty."""
    out_of_fold = suspects[0]["label_quality"] is not None
    names = (*COLUMNS, *(CLEANLAB_COLUMNS if out_of_fold else OWN_COLUMNS))
    values = ([suspect[name] for name in names] for suspect in suspects)
    # Seven digits tell the ranks of ten million images apart.
    rows = ([f"{v:.7g}" if isinstance(v, float) else v for v in row] for row in values)
    header = [name.replace(GIVEN, label) for name in names]
    write_atomically(path, csv_table(header, rows))
