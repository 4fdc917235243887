"""Comparison of two scorings of one data set: agreement, overlap of coresets, and cost."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import construction_cost, read_ledger, total_wall_seconds
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.selection import Candidates, CcsParameters, complete_ccs, draw_coreset
from coreset.engine.runtime.text import NUMBER_WIDTH, aligned, readable_seconds, short
from coreset.engine.scoring.score_table import ScoreTable, identity_of
from coreset.kernels.scores import easiness
from coreset.shards.errors import UsageError

SHUFFLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of both scorings on one score; NaN where nothing can be said."""

    score: str
    spearman: float
    spearman_within_class: float
    roc_area: float | None = None
    """Area under the ROC of the first scoring's hard end for flipped labels; None if not known."""
    other_roc_area: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoresetOverlap:
    """Overlap of two coresets of the same size, seed and misratio."""

    ipc: int
    misratio: float
    assumption: str
    """Source of the misratio where it is neither given nor the study's; else empty."""
    share: float
    """Share of the first coreset's images that the second has too."""
    unrelated: float
    """The same share where the second's scores are shuffled within every class. Above ``chance``:
    with one seed both coresets take the samples of the smallest random keys, bin by bin."""
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringCost:
    """Cost of a scores artifact by its ledger."""

    path: Path
    recipe: str
    epochs: int
    wall_seconds: float
    """Time of the scoring itself, interrupted runs included."""
    images: int
    wall_seconds_with_inputs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two scorings of one data set, and the samples that both could train on."""

    one: ScoreTable
    other: ScoreTable
    ids: NDArray[np.int64]

    @staticmethod
    def open(one: Path, other: Path, data: Path | None = None) -> "Pair":
        """Open both with the data set of the first."""
        identities = identity_of(one), identity_of(other)
        if identities[0] != identities[1]:
            raise UsageError(
                f"{one} scores the data set {identities[0][:12]} and {other} the data set "
                f"{identities[1][:12]}; compare scores of one data set"
            )
        first = ScoreTable.open(one, data)
        second = ScoreTable.open(other, first.dataset.path)
        return Pair(one=first, other=second, ids=np.intersect1d(first.ids, second.ids))

    def agreement(self, score: str, flipped: NDArray[np.bool_] | None = None) -> Agreement:
        """Measure the agreement on a score; ``flipped`` marks wrong labels by id, shape (n,)."""
        from coreset.kernels.measures import spearman, spearman_by_class

        both = (self.one.values(score), self.other.values(score))
        ids = self.ids[np.isfinite(both[0][self.ids]) & np.isfinite(both[1][self.ids])]
        dataset = self.one.dataset
        a, b, labels = both[0][ids], both[1][ids], dataset.labels[ids]
        by_class = spearman_by_class(a, b, labels, len(dataset.classes))
        known = by_class[~np.isnan(by_class)]
        return Agreement(
            score=score,
            spearman=spearman(a, b),
            spearman_within_class=float(known.mean()) if known.size else math.nan,
            roc_area=None if flipped is None else _area(score, a, flipped[ids]),
            other_roc_area=None if flipped is None else _area(score, b, flipped[ids]),
        )

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """Number of samples that both scored, by class."""
        dataset = self.one.dataset
        return np.bincount(dataset.labels[self.ids], minlength=len(dataset.classes))

    def coreset_overlap(
        self, score: str, ipc: int, *, misratio: float | None, n_bins: int, seed: int
    ) -> CoresetOverlap:
        """Choose by CCS from both, with one seed, and count what is chosen twice."""
        from coreset.kernels.measures import shuffled_within_classes

        dataset, ids = self.one.dataset, self.ids
        candidates = Candidates(dataset=dataset, ids=ids, score=score)
        given = CcsParameters(misratio=misratio, bins=n_bins)
        parameters, assumption = complete_ccs(given, candidates, ipc)

        draw = partial(draw_coreset, "ccs", candidates, ipc=ipc, seed=seed, parameters=parameters)
        first, _ = draw(self.one.easiness(score, ids))
        second = self.other.easiness(score, ids)
        unrelated = [
            np.isin(first, draw(shuffled_within_classes(second, candidates.labels, deal))[0])
            for deal in range(SHUFFLES)
        ]
        return CoresetOverlap(
            ipc=ipc,
            misratio=parameters.misratio or 0.0,  # never None once completed
            assumption=assumption,
            share=float(np.isin(first, draw(second)[0]).mean()),
            unrelated=float(np.mean(unrelated)),
            chance=float(np.mean(ipc / self.class_sizes)),
        )


def cost_of(scored: ScoreTable) -> ScoringCost:
    """Read what a scores artifact cost from its ledger."""
    costs = construction_cost(read_ledger(scored.path))
    own = [cost for cost in costs if not cost.artifact]
    return ScoringCost(
        path=scored.path,
        recipe=str(Provenance.read(scored.path).config.get("recipe", "-")),
        epochs=scored.epochs,
        wall_seconds=total_wall_seconds(own),
        images=sum(cost.images for cost in own),
        wall_seconds_with_inputs=total_wall_seconds(costs),
    )


def _area(score: str, values: NDArray[np.float32], flipped: NDArray[np.bool_]) -> float:
    """Area under the ROC of the hard end for flipped labels; NaN without both kinds."""
    if flipped.all() or not flipped.any():
        return math.nan
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(flipped, -easiness(score, values)))


def agreement_table(agreements: Sequence[Agreement]) -> tuple[str, ...]:
    """Return a table of one score or more; areas under the ROC where the truth is known."""
    header = ("Spearman", "in class", "ROC area", "of other")
    rows = [
        (score, *(short(number, ".4f") for number in numbers if number is not None))
        for score, *numbers in map(astuple, agreements)
    ]
    shown = header[: len(rows[0]) - 1]
    return aligned(("score", *(name.rjust(NUMBER_WIDTH) for name in shown)), rows)


def overlap_table(coresets: Sequence[CoresetOverlap]) -> tuple[str, ...]:
    """Return a table of shares in per cent."""
    header = ("ipc", "misratio", "overlap", "if unrelated", "by chance")
    shares = attrgetter("share", "unrelated", "chance")
    rows = [
        (str(drawn.ipc), f"{drawn.misratio:g}", *(f"{100 * part:.1f} %" for part in shares(drawn)))
        for drawn in coresets
    ]
    return aligned(header, rows)


def cost_table(costs: Sequence[ScoringCost]) -> tuple[str, ...]:
    """Return a table of what scorings cost."""
    header = ("scores", "recipe", "epochs", "wall time", "image passes", "with inputs")
    rows = [
        (
            str(cost.path),
            cost.recipe,
            str(cost.epochs),
            readable_seconds(cost.wall_seconds),
            f"{cost.images:,}",
            readable_seconds(cost.wall_seconds_with_inputs),
        )
        for cost in costs
    ]
    return aligned(header, rows)
