"""Images whose labels look wrong: hardest first, with the given and the predicted label."""

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from coreset.engine.runtime.text import NUMBER_WIDTH, aligned, short
from coreset.engine.scoring.reasons import Argument, ConceptModel, reasons
from coreset.engine.scoring.score_table import ISSUE_OOF, ScoreTable
from coreset.engine.scoring.setup import GIVEN
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
REASON_COLUMNS = ("rival_label", "reasons")
"""With reasons: the class that the concepts argue for, and the concepts, strongest first; ``no``
stands before one of which the image has less than the mean image."""
TEXT_SHOWN = 28
"""Characters of a concept in a table for a terminal."""

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


def with_reasons(table: ScoreTable, suspects: Sequence[Suspect]) -> list[Suspect]:
    """Add to each image the concepts that argue most against its given label.

    Raises:
        UsageError: The scores are not by concepts, or bank or features are not at hand.
    """
    model, classes = ConceptModel.open(table.path), table.label_names
    ids = np.array([suspect["sample"] for suspect in suspects], np.int64)
    predicted = None if table.predicted is None else table.predicted[ids]
    explained = reasons(model, ids, table.labels[ids], predicted)
    return [
        suspect | {"rival_label": classes[rival], "reasons": list(map(_described, arguments))}
        for suspect, (rival, arguments) in zip(suspects, explained, strict=True)
    ]


def _described(argument: Argument) -> dict[str, Any]:
    nearest = {"nearest": argument.concept.nearest} if argument.concept.nearest else {}
    numbers = {"logits": argument.logits, "similarity": argument.similarity}
    return {"concept": argument.concept.text, "text": argument.text, **numbers, **nearest}


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
    if all("reasons" in row for row in suspects):
        header = (*header, "argues against")
        rows = [(*row, _listed(suspect)) for row, suspect in zip(rows, suspects, strict=True)]
    return aligned(header, rows)


def _listed(suspect: Suspect) -> str:
    """Join the reasons; a visual prototype is named by its nearest image."""
    texts = [
        f"{'no ' if reason['similarity'] < 0 else ''}{reason.get('nearest', reason['concept'])}"
        for reason in suspect["reasons"]
    ]
    cut = (text if len(text) <= TEXT_SHOWN else f"{text[: TEXT_SHOWN - 3]}..." for text in texts)
    return "; ".join(cut) or "-"


def require_replaceable(path: Path) -> None:
    """Check that a table may take the name ``path``."""
    if not path.parent.is_dir():
        raise UsageError(f"csv {path} lies in a folder that does not exist; make {path.parent}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"csv {path} is no regular file and is not replaced; choose another name")


def write_suspects(path: Path, suspects: Sequence[Suspect], *, label: str = GIVEN) -> None:
    """Write a CSV table of ``COLUMNS`` and cleanlab's or our own; unknown values are empty.

    Reasons are one cell: concepts with a semicolon between, and the image nearest to each if known.
    """
    out_of_fold = suspects[0]["label_quality"] is not None
    names = (*COLUMNS, *(CLEANLAB_COLUMNS if out_of_fold else OWN_COLUMNS))
    names += REASON_COLUMNS if "reasons" in suspects[0] else ()
    cells = (suspect | {"reasons": _joined(suspect.get("reasons", ()))} for suspect in suspects)
    values = ([row[name] for name in names] for row in cells)
    # Seven digits tell the ranks of ten million images apart.
    rows = ([f"{v:.7g}" if isinstance(v, float) else v for v in row] for row in values)
    header = [name.replace(GIVEN, label) for name in names]
    write_atomically(path, csv_table(header, rows))


def _joined(arguments: Iterable[Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{reason['text']} ({reason['nearest']})" if "nearest" in reason else reason["text"]
        for reason in arguments
    )
