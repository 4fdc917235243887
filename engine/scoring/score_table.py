"""Reader of scores artifacts: the columns of the newest commit, and the data set they belong to."""

import contextlib
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.checkpoints import COMMIT_NAME, Checkpoints
from coreset.engine.artifacts.provenance import Provenance, open_source, require_same_data
from coreset.engine.artifacts.store import SCORES_NAME, Columns
from coreset.engine.models.concept_bank import BANK_KIND, CONCEPT, VISUAL, VISUAL_STAGE
from coreset.engine.runtime.text import Summary, aligned, spread_table
from coreset.engine.scoring.setup import GIVEN
from coreset.kernels.samplers import positions_by_class
from coreset.kernels.scores import SCORES, easiness
from coreset.shards.errors import CoresetError, StoreError, UsageError
from coreset.shards.format.dataset import Dataset, Manifest
from coreset.shards.format.files import missing, parse

VISITS = "visits"
ASSIGNED = "assigned"
"""Column of pseudo-labels, int32, in scores that were made with some."""
PREDICTED, PREDICTED_OOF, ISSUE_OOF = "predicted", "predicted_oof", "label_issue_oof"
UNDECODABLE_NAME = "undecodable.json"
USUAL_IPC, SOME_MISRATIO = 10, 0.5
USUAL_SCORE, UNTRAINED_SCORE = "aum", "mean_margin"
"""The study's score, and the one that a trained score has to beat."""


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """A finished scores artifact with its data set; columns are read when they are asked for."""

    path: Path
    dataset: Dataset

    @staticmethod
    def open(path: Path, data: Path | None = None) -> "ScoreTable":
        """Open a scores artifact and the data set behind it, at ``data`` if it was moved."""
        identity, dataset = identity_of(path), open_source(path, data)
        require_same_data(dataset, identity, f"the scores {path}")
        return ScoreTable(path=path, dataset=dataset)

    @cached_property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Columns of the newest undamaged commit by name, each of shape (n,) in id order."""
        return Columns(newest_commit(self.path) / SCORES_NAME, rows=len(self.dataset))

    @cached_property
    def undecodable(self) -> Mapping[int, str]:
        """Samples that could not be decoded, and why; their values mean nothing."""
        return undecodable_of(self.path)

    @cached_property
    def _provenance(self) -> Provenance:
        return Provenance.read(self.path)

    @cached_property
    def prefix(self) -> str:
        """Prefix of these scores in names of sets: ``concept_``, or nothing."""
        bank = self._provenance.ancestor(BANK_KIND)
        return f"{CONCEPT}{VISUAL if bank['stage'] == VISUAL_STAGE else ''}" if bank else ""

    @cached_property
    def labelled_by(self) -> str:
        """Origin of the labels behind the scores: given, zero-shot or clusters."""
        return str(self._provenance.config.get("labels", GIVEN))

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Group of each sample: its label, or the pseudo-label that stood for it."""
        if self.labelled_by == GIVEN:
            return self.dataset.labels
        labels, n = self.columns.get(ASSIGNED), len(self.dataset)
        if labels is None or labels.dtype.kind != "i" or not 0 <= labels.min() <= labels.max() < n:
            raise StoreError(f"{self.path} has no {ASSIGNED} of each image; score again")
        return labels.astype(np.int64)

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Names of the groups: the classes, but of clusters, of which none is empty."""
        if self.labelled_by != "clusters":
            return self.dataset.classes
        return tuple(f"cluster {number}" for number in range(int(self.labels.max()) + 1))

    @property
    def label_note(self) -> str:
        """A line on pseudo-labels; nothing where the labels are those of the data set."""
        if self.labelled_by == GIVEN:
            return ""
        return (
            f"labels were assigned ({self.labelled_by}, {len(self.label_names)} groups), those of "
            "the data set were not read; `coreset select --reveal` reads them of what it chooses"
        )

    @property
    def suffix(self) -> str:
        """What names of sets chosen by pseudo-labels end with: ``_clusters``; else nothing."""
        return "" if self.labelled_by == GIVEN else f"_{self.labelled_by}"

    def name_of(self, score: str) -> str:
        """Name a score by what made it, as names of sets do: ``concept_aum_clusters``."""
        return f"{self.prefix}{score}{self.suffix}"

    def smallest_group(self, ids: NDArray[np.int64]) -> int:
        """Count the images among ``ids`` of the smallest class, or group that is not empty."""
        sizes = np.bincount(self.labels[ids], minlength=len(self.label_names))
        return int(sizes.min() if self.labelled_by == GIVEN else sizes[sizes > 0].min())

    @property
    def names(self) -> tuple[str, ...]:
        """The scores in the store, in the order of `coreset.kernels.scores.SCORES`."""
        return tuple(name for name in SCORES if name in self.columns)

    @property
    def usual_score(self) -> str:
        """The score to take where none is asked for: aum, or the first that is stored."""
        return (*self.names, USUAL_SCORE)[0]

    @property
    def epochs(self) -> int:
        """Epochs behind the scores: the visits of a sample decoded every time; 0: no training."""
        if VISITS not in self.columns:
            raise StoreError(f"{self.path} holds no {VISITS}; score this data set again")
        return int(self.columns[VISITS].max())

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Ids of all samples but the undecodable ones, ascending."""
        lost = np.array(list(self.undecodable), np.int64)
        return np.setdiff1d(np.arange(len(self.dataset)), lost)

    @property
    def predicted(self) -> NDArray[np.int32] | None:
        """Class predicted for each sample, out of fold if there are folds; None if none was."""
        predicted = self.columns.get(PREDICTED_OOF, self.columns.get(PREDICTED))
        if predicted is None:
            return None
        n = len(self.label_names)
        if not -1 <= predicted.min() <= predicted.max() < n:
            raise StoreError(
                f"{self.path} has predictions that are no class of {n}; score it again"
            )
        return predicted

    def values(self, score: str) -> NDArray[np.float32]:
        """Return one score of every sample, as stored, or refuse one that is not."""
        if score not in self.names:
            why = "was not stored" if score in SCORES else "is no score"
            raise UsageError(
                f"score must be one of {', '.join(self.names)} in {self.path}, got {score}, which "
                f"{why}; choose one of these, or score again (`coreset score --list` has them all)"
            )
        return self.columns[score]

    def easiness(self, score: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return a score of some samples, each of which has one, turned so that low is hard."""
        values = self.values(score)
        odd = ids[~np.isfinite(values[ids])]
        if odd.size:
            key = self.dataset.keys[odd[0]]
            raise StoreError(
                f"{self.path} has {values[odd[0]]} as {score} of {key} ({odd.size} are not "
                "finite); choose another --score, or score this data set again"
            )
        return easiness(score, values[ids])

    def summary_by_class(self, score: str) -> dict[str, Summary]:
        """Summarise a score of the decodable samples class by class."""
        classes, values = self.label_names, self.values(score)[self.ids]
        members = positions_by_class(self.labels[self.ids], len(classes))
        return {name: Summary.of(values[at]) for name, at in zip(classes, members, strict=True)}


def newest_commit(scores: Path) -> Path:
    """Return the directory of the newest undamaged commit of a scores artifact, or refuse."""
    newest = Checkpoints(scores).latest()
    if newest is None:
        raise UsageError(f"{scores} holds no finished scores; run `coreset score` again")
    return newest[1]


def undecodable_of(scores: Path) -> dict[int, str]:
    """Read which samples of a scores artifact could not be decoded, and why."""
    listed = scores / UNDECODABLE_NAME
    try:
        document = parse(listed.read_bytes()) if listed.is_file() else {}
        undecodable = {int(sample): str(reason) for sample, reason in document.items()}
    except (OSError, ValueError) as error:
        raise StoreError(f"{listed} cannot be read ({error}); score again") from error
    if undecodable and not 0 <= min(undecodable) <= max(undecodable) < 1 << 62:
        raise StoreError(f"{listed} cannot be read (a sample id is out of range); score again")
    return undecodable


def class_table(score: str, by_class: Mapping[str, Summary], *, ends: int) -> Iterator[str]:
    """Yield the classes by their mean, hardest first; of many, only ``ends`` at either end."""

    def ease(name: str) -> float:
        mean = easiness(score, by_class[name].mean)
        return math.inf if math.isnan(mean) else mean  # no image of the class was scored

    rows = {name: (f"{by_class[name].n:,}", by_class[name]) for name in sorted(by_class, key=ease)}
    header, *lines = spread_table("class, hardest first", "images", rows)
    if (hidden := len(lines) - 2 * ends) > 0:
        lines[ends : len(lines) - ends] = [f"... {hidden:,} classes between ..."]
    yield from (header, *lines)


def identity_of(path: Path) -> str:
    """Return the identity of the data set that a scores artifact was made from, or refuse."""
    if not (path / COMMIT_NAME).is_file():
        if path.exists():
            raise UsageError(f"{path} holds no scores; name the output of `coreset score`")
        raise missing(path, f"make it with `coreset score DATA {path}`")
    return str(Provenance.read(path).binding("identity"))


def scores_beside(data: Path) -> Path:
    """Find the one scores artifact of a packed data set that lies in the same folder."""
    identity, scores = Manifest.read(data).identity, list[Path]()
    for path in sorted(data.resolve().parent.iterdir()):
        with contextlib.suppress(CoresetError):
            if not path.name.startswith(".") and identity_of(path) == identity:
                scores.append(path)
    if not scores:
        raise UsageError(
            f"no scores of {data} lie beside it; name them, or make some with "
            f"`coreset score {data} SCORES`"
        )
    if len(scores) > 1:
        names = ", ".join(map(str, scores))
        raise UsageError(f"{len(scores)} scores of {data} lie beside it; name one of {names}")
    return scores[0]


def selection_hint(
    table: ScoreTable,
    *,
    ipc: int = USUAL_IPC,
    score: str | None = None,
    misratio: float | None = None,
) -> str:
    """Name the command that chooses ``ipc`` images a class, or fewer, or shows the scores."""
    if table.prefix == CONCEPT + VISUAL:  # it has no default
        misratio = SOME_MISRATIO
    cut = "" if misratio is None else f" --misratio {misratio}"
    smallest, place = table.smallest_group(table.ids), shlex.quote(str(table.path))
    if not smallest:
        return f"coreset scores show {place}"
    reveal, score = " --reveal" if table.suffix else "", score or table.usual_score
    by = "" if score == USUAL_SCORE else f" --score {score}"
    return f"coreset select {place} SET --ipc {min(ipc, smallest)}{by}{reveal}{cut}"


def listing() -> tuple[str, ...]:
    """Return the lines of a table of all scores that `coreset score` can make."""
    rows = [(name, hard_end(name), s.unit, s.summary, s.source) for name, s in SCORES.items()]
    return aligned(("score", "hard end", "unit", "what it is", "source"), rows)


def hard_end(score: str) -> str:
    """Return the end of a score that marks hard samples: low or high."""
    return "low" if SCORES[score].low_is_hard else "high"
