"""What still lies on disk behind the rows: the sets, their images and the scores they came from.

Rows outlive artifacts. What was moved, removed or replaced is left out of the figures and named in
a notice; it never fails the report.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.generations import Generations
from engine.provenance import Provenance, locate
from engine.report.catalogue import ReportedSet
from engine.sets import CondensedSet, open_set
from engine.store import SCORES_NAME, read_columns
from kernels.scores import SCORES, easiness
from shards.dataset import Dataset
from shards.errors import CoresetError, UsageError

# What a moved, replaced or damaged artifact raises on the way in.
UNREADABLE = (CoresetError, OSError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSet:
    """A reported set that is still where it was, with its images."""

    reported: ReportedSet
    condensed: CondensedSet


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundScores:
    """One score of every image of a data set."""

    score: str
    digest: str
    """Digest of the scores artifact."""
    dataset: Dataset
    values: NDArray[np.float32]
    """In id order."""

    @property
    def easiness(self) -> NDArray[np.float32]:
        """The score turned so that low is hard."""
        return easiness(self.score, self.values)

    @property
    def low_is_hard(self) -> bool:
        """Whether the hard end of the score is its low end."""
        return SCORES[self.score].low_is_hard


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that was found, and one line on each thing that was not."""

    sets: tuple[FoundSet, ...]
    scores: tuple[FoundScores, ...]
    notices: tuple[str, ...]

    def coresets_of(self, scores: FoundScores) -> list[FoundSet]:
        """Coresets of the scored data, those chosen by this very score first."""
        identity = scores.dataset.manifest.identity
        found = [
            one
            for one in self.sets
            if one.condensed.info.kind == "coreset"
            and one.condensed.info.source_identity == identity
        ]
        return sorted(found, key=lambda one: not was_chosen_by(one, scores))


def was_chosen_by(found: FoundSet, scores: FoundScores) -> bool:
    """Whether a set was selected on this score of this scores artifact."""
    ancestor = found.condensed.provenance.ancestor("scores")
    same = ancestor is not None and ancestor["digest"] == scores.digest
    return same and found.condensed.info.parameters.get("score") == scores.score


def gather(results: Path, sets: Iterable[ReportedSet], data: Path | None) -> Evidence:
    """Open every reported set and the scores behind it.

    Args:
        results: The results directory; the sets' paths are relative to it.
        sets: What the rows speak of.
        data: Where the data set of the coresets lies now, if it was moved.
    """
    found: list[FoundSet] = []
    scores: dict[tuple[str, str], FoundScores] = {}
    notices: list[str] = []
    for one in sets:
        try:
            condensed = _opened(results, one, data)
        except UNREADABLE as error:
            notices.append(f"{one.data}, {one.name}: its images are left out, for {error}")
            continue
        found.append(FoundSet(reported=one, condensed=condensed))
        try:
            behind = _scores_behind(condensed, known=scores)
        except UNREADABLE as error:
            notices.append(f"{one.data}, {one.name}: its scores are left out, for {error}")
            continue
        if behind is not None:
            scores[behind.digest, behind.score] = behind
    return Evidence(
        sets=tuple(found), scores=tuple(scores.values()), notices=tuple(dict.fromkeys(notices))
    )


def _opened(results: Path, reported: ReportedSet, data: Path | None) -> CondensedSet:
    path = (results.resolve() / reported.path).resolve()
    try:
        condensed = open_set(path)
    except UsageError:
        if data is None or not path.is_dir():
            raise
        condensed = open_set(path, data=data)
    if condensed.provenance.digest != reported.digest:
        raise UsageError(
            f"{path} holds another set by now; train on that one, or restore the old one"
        )
    return condensed


def _scores_behind(
    condensed: CondensedSet, known: dict[tuple[str, str], FoundScores]
) -> FoundScores | None:
    """The scores that a coreset was chosen by; None if it was chosen without."""
    recorded, score = (
        condensed.provenance.ancestor("scores"),
        condensed.info.parameters.get("score"),
    )
    if recorded is None or score is None:
        return None
    digest = str(recorded["digest"])
    if (digest, score) in known:
        return known[digest, score]
    directory = locate(condensed.path, "scores")
    if directory is None or Provenance.read(directory).digest != digest:
        raise UsageError(f"{directory} does not hold the scores of this set any more")
    newest = Generations(directory).latest()
    if newest is None:
        raise UsageError(f"{directory} holds no finished scores")
    rows = len(condensed.dataset)
    values = read_columns(newest[1] / SCORES_NAME, [score], rows=rows)[score]
    return FoundScores(score=score, digest=digest, dataset=condensed.dataset, values=values)
