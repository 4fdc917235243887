"""Two scorings of one data set side by side: how far they agree, choose alike, and what they cost.

What a cheaper recipe is worth is a question of order: of all images, of the images of a class (the
only one that class-wise selection sees), and of the flipped labels among the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import construction_cost, read_ledger, total_wall_seconds
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.misratio import Misratio, default_misratio
from coreset.engine.condensed.selection import Candidates, CcsParameters, draw_coreset
from coreset.engine.runtime.text import NUMBER_WIDTH, aligned, decimals, readable_seconds
from coreset.engine.scoring.score_table import ScoreTable, identity_of
from coreset.kernels.scores import easiness
from coreset.shards.errors import UsageError
from coreset.shards.format.classes import recognise

SHUFFLES = 5
"""Deals of shuffled scores that ``CoresetOverlap.unrelated`` is the mean of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of both scorings on one score; NaN where nothing can be said."""

    score: str
    spearman: float
    """Over all samples."""
    spearman_within_class: float
    """Mean over the classes."""
    roc_area: float | None = None
    """Area under the ROC of the first scoring's hard end for flipped labels; None if not known."""
    other_roc_area: float | None = None
    """Area of the second scoring."""

    @property
    def numbers(self) -> tuple[float | None, ...]:
        """Return all numbers in the order of a table."""
        return self.spearman, self.spearman_within_class, self.roc_area, self.other_roc_area


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
    """The same share for two independent draws: IPC over the size of the class, on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringCost:
    """Cost of a scores artifact by its ledger."""

    path: Path
    recipe: str
    """Stamp of the recipe."""
    epochs: int
    wall_seconds: float
    """Time of the scoring itself, interrupted runs included."""
    images: int
    """Image passes of the scoring."""
    wall_seconds_with_inputs: float
    """With packing, decoding and features, as far as it needed them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two scorings of one data set, and the samples that both could train on."""

    one: ScoreTable
    other: ScoreTable
    ids: NDArray[np.int64]

    @staticmethod
    def open(one: Path, other: Path, data: Path | None = None) -> "Pair":
        """Open both with the data set of the first.

        Raises:
            UsageError: One of them is no scores artifact, or they are of different data sets.
            StoreError: One of them is damaged.
        """
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
        """Agreement on a score that both hold, over the samples that have both values.

        Args:
            score: Name of the score.
            flipped: Samples whose label is wrong, by id, shape (n,).
        """
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
    ) -> CoresetOverlap | None:
        """Choose by CCS from both, with one seed, and count what is chosen twice.

        Nothing is chosen, and None returned, where no misratio is given and the score has none.

        Args:
            score: Score to stratify on.
            ipc: Images per class.
            misratio: Share of the hardest of each class to cut first; None takes the default.
            n_bins: Equal-width bins over the range of a class's scores.
            seed: Of both draws.

        Raises:
            UsageError: The score is not in both, or a class is too small.
            StoreError: A sample has no value.
        """
        from coreset.kernels.measures import shuffled_within_classes

        dataset, ids = self.one.dataset, self.ids
        used = Misratio(misratio) if misratio is not None else self._default(score, ipc)
        if used is None:
            return None
        labels = dataset.labels[ids]

        candidates = Candidates(dataset=dataset, ids=ids, score=score)
        parameters = CcsParameters(misratio=used.value, bins=n_bins)

        def chosen(easiness: NDArray[np.floating]) -> NDArray[np.int64]:
            drawn, _ = draw_coreset(
                "ccs", candidates, easiness, ipc=ipc, seed=seed, parameters=parameters
            )
            return drawn

        first = chosen(self.one.easiness(score, ids))
        second = self.other.easiness(score, ids)
        shuffled = [shuffled_within_classes(second, labels, deal) for deal in range(SHUFFLES)]
        return CoresetOverlap(
            ipc=ipc,
            misratio=used.value,
            assumption=used.assumption,
            share=float(np.isin(first, chosen(second)).mean()),
            unrelated=float(np.mean([np.isin(first, chosen(scores)) for scores in shuffled])),
            chance=float(np.mean(ipc / self.class_sizes)),
        )

    def _default(self, score: str, ipc: int) -> Misratio | None:
        data = recognise(self.one.dataset.classes)
        return default_misratio(score, data, ipc, float(self.class_sizes.mean()))


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
    """Lines of a table of one score or more; areas under the ROC where the truth is known."""
    header = ("Spearman", "in class", "ROC area", "of other")
    rows = [
        (one.score, *(decimals(number) for number in one.numbers if number is not None))
        for one in agreements
    ]
    shown = header[: len(rows[0]) - 1]
    return aligned(("score", *(name.rjust(NUMBER_WIDTH) for name in shown)), rows)


def overlap_table(coresets: Sequence[CoresetOverlap]) -> tuple[str, ...]:
    """Lines of a table of shares in per cent."""
    header = ("ipc", "misratio", "overlap", "if unrelated", "by chance")
    rows = [
        (
            str(one.ipc),
            f"{one.misratio:g}",
            *(f"{100 * share:.1f} %" for share in (one.share, one.unrelated, one.chance)),
        )
        for one in coresets
    ]
    return aligned(header, rows)


def cost_table(costs: Sequence[ScoringCost]) -> tuple[str, ...]:
    """Lines of a table of what scorings cost."""
    header = ("scores", "recipe", "epochs", "wall time", "image passes", "with inputs")
    rows = [
        (
            str(one.path),
            one.recipe,
            str(one.epochs),
            readable_seconds(one.wall_seconds),
            f"{one.images:,}",
            readable_seconds(one.wall_seconds_with_inputs),
        )
        for one in costs
    ]
    return aligned(header, rows)
