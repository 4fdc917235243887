"""Draws of coresets: from which images, by what budgets; class by class where features are read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.checkpoints import COMMIT_NAME
from coreset.engine.runtime.fields import NoParameters
from coreset.engine.runtime.progress import progress
from coreset.engine.scoring.score_table import ScoreTable
from coreset.kernels.samplers import ClassTooSmallError, Selection, positions_by_class
from coreset.kernels.seeds import Stream, derived_seed
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import MANIFEST_NAME, Dataset
from coreset.shards.format.files import missing

Ints: TypeAlias = NDArray[np.int64]


def open_choice(source: Path, data: Path | None) -> tuple[Dataset, ScoreTable | None]:
    """Open the data set to choose from, and the scores if ``source`` holds some."""
    if (source / MANIFEST_NAME).is_file():
        return Dataset.open(source), None
    if not (source / COMMIT_NAME).is_file():
        remedy = "make one with `coreset score` or `coreset pack`"
        raise missing(source, remedy, otherwise="is neither scores nor a packed data set")
    table = ScoreTable.open(source, data)
    return table.dataset, table


def require_reveal(table: ScoreTable | None, *, given: bool) -> ScoreTable | None:
    """Return scores that have groups in place of classes, for which --reveal must be given."""
    if table is not None and table.suffix:
        if given:
            return table
        raise UsageError(
            f"{table.path} was made without labels ({table.labelled_by}), and a coreset needs "
            "them; --reveal takes the true labels of the chosen images alone"
        )
    if given:
        raise UsageError(
            "reveal goes with scores of --labels zero-shot or clusters, and these have the labels "
            "of the data set; leave it out"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Samples of a data set that a coreset may be drawn from, with what a sampler needs."""

    dataset: Dataset
    ids: Ints
    table: ScoreTable | None = None
    """Scores that know the groups to choose from; else these are the classes."""
    score: str = ""
    easiness: Any = None
    """Score of each candidate, floating of shape (n,), turned so that low is hard."""
    features: Any = None
    """Features of every sample of the data set, floating of shape (samples, d); may be mapped."""

    @property
    def labels(self) -> Ints:
        """Label of each candidate, or what stood for it in the scores."""
        return (self.table or self.dataset).labels[self.ids]

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each class, or group of the scores."""
        return self.dataset.classes if self.table is None else self.table.label_names

    @property
    def sizes(self) -> Ints:
        """Candidates of each class."""
        return np.bincount(self.labels, minlength=len(self.names))

    @property
    def kind(self) -> str:
        """Unit of the choice: class, or group by pseudo-labels."""
        return "group" if self.table is not None and self.table.suffix else "class"

    def groups_of(self, positions: Ints) -> NDArray[np.str_] | None:
        """Return the name of the group of some candidates; None if these are the classes."""
        if self.kind == "class":
            return None
        return np.array(self.names)[self.labels[positions]]

    def budgets(self, ipc: int) -> Ints:
        """Ask ``ipc`` of every class, or of every group that has images in the data set."""
        asked = np.full(len(self.names), ipc)
        if self.table is not None and self.table.suffix:
            asked[np.bincount(self.table.labels, minlength=asked.size) == 0] = 0
        return asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A way to draw a coreset."""

    summary: str
    draw: Callable[[Candidates, Ints, int, Any], Selection]
    """Draw from candidates by budgets of the classes, seed and parameters."""
    stream: int = Stream.RANDOM
    """Stream of its draws; of no account where nothing is drawn."""
    needs: tuple[Literal["scores", "features"], ...] = ()
    parameters: type[Any] = NoParameters
    complete: Callable[[Any, Candidates, Ints], tuple[Any, str]] | None = None
    """Fill in the parameters that were not given; returns them and a line on what was assumed."""


class ClassCandidates(NamedTuple):
    """Candidates of one class, and what is asked of them."""

    features: NDArray[np.float32]
    easiness: Any
    budget: int
    seed: int
    parameters: Any


def by_class(
    choose: Callable[[ClassCandidates], Ints],
) -> Callable[[Candidates, Ints, int, Any], Selection]:
    """Draw class by class, of which one is in memory, by a function of its candidates."""

    def draw(candidates: Candidates, budgets: Ints, seed: int, parameters: object) -> Selection:
        chosen: list[Ints] = []
        members_by_class = positions_by_class(candidates.labels, budgets.size)
        with progress("select", candidates.ids.size) as bar:
            for c, members in enumerate(members_by_class):
                if budgets[c] == 0:
                    continue  # an empty group
                if members.size < budgets[c]:
                    raise ClassTooSmallError(c, members.size)
                rows = candidates.features[candidates.ids[members]].astype(np.float32)
                easiness = None if candidates.easiness is None else candidates.easiness[members]
                own = rows, easiness, int(budgets[c]), derived_seed(seed, c), parameters
                try:
                    order = choose(ClassCandidates(*own))
                except ValueError as error:
                    name = f"{candidates.kind} {candidates.names[c]}"
                    raise UsageError(f"{name}: {error}") from error
                chosen.append(members[order])
                bar.advance(members.size)
        positions = np.concatenate(chosen)
        ranks, ascending = np.concatenate([np.arange(n) for n in budgets]), np.argsort(positions)
        return Selection(positions=positions[ascending], ranks=ranks[ascending])

    return draw
