"""Comparison of two scorings of one data set: agreement, overlap of coresets, and cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreset.engine.artifacts.ledger import construction_cost, read_ledger, total_wall_seconds
from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.condensed.samplers import CcsParameters, complete_misratio, draw_coreset
from coreset.engine.condensed.selection import Candidates
from coreset.engine.runtime.text import NUMBER_WIDTH, aligned, readable_seconds, short
from coreset.engine.scoring.score_table import ScoreTable, identity_of
from coreset.kernels.scores import SCORES, easiness
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.packing.plan import read_labels
from coreset.shards.sources.detect import find_packed

SHUFFLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two scorings of one data set, and the samples that both could train on."""

    first: ScoreTable
    second: ScoreTable
    ids: NDArray[np.int64]

    @staticmethod
    def open(full: Path, cheap: Path, data: Path | None = None) -> "Pair":
        """Open both with the data set of the first."""
        identities = identity_of(full), identity_of(cheap)
        if identities[0] != identities[1]:
            raise UsageError(
                f"{full} scores the data set {identities[0][:12]} and {cheap} the data set "
                f"{identities[1][:12]}; compare scores of one data set"
            )
        first = ScoreTable.open(full, data)
        second = ScoreTable.open(cheap, first.dataset.path)
        return Pair(first=first, second=second, ids=np.intersect1d(first.ids, second.ids))

    def counterpart(self, score: str) -> str:
        """Name the second's score to compare with one of the first: the same, if it is stored.

        Else the second's usual score, if one of both is untrained; of two trainings the same score
        is compared, and `ScoreTable.values` says that it is not stored.
        """
        usual = self.second.usual_score
        if score in self.second.names or score not in self.first.names:
            return score
        return score if SCORES[score].trained and SCORES[usual].trained else usual

    def agreement(
        self, score: str, other_score: str, flipped: NDArray[np.bool_] | None = None
    ) -> dict[str, Any]:
        """Measure how a score of the first agrees with one of the second, low being hard in both.

        NaN where nothing can be said. Areas are those under the ROC of the hard end for the labels
        that ``flipped``, of shape (n,) by id, marks as wrong; None without it.
        """
        from coreset.kernels.measures import spearman, spearman_by_class

        first, a, b = self.first, self.first.values(score), self.second.values(other_score)
        ids = self.ids[np.isfinite(a[self.ids]) & np.isfinite(b[self.ids])]
        a, b = easiness(score, a[ids]), easiness(other_score, b[ids])
        by_class = spearman_by_class(a, b, first.labels[ids], len(first.label_names))
        known = by_class[~np.isnan(by_class)]
        return {
            "score": score,
            "other_score": other_score,
            "spearman": spearman(a, b),
            "spearman_within_class": float(known.mean()) if known.size else math.nan,
            "roc_area": None if flipped is None else _area(a, flipped[ids]),
            "other_roc_area": None if flipped is None else _area(b, flipped[ids]),
        }

    def agreements(
        self, score: str, other_score: str, flipped: NDArray[np.bool_] | None = None
    ) -> list[dict[str, Any]]:
        """Measure the `agreement` of every score that both hold, and first of a pair beside."""
        pairs = [(name, name) for name in self.first.names if name in self.second.names]
        first = [] if (score, other_score) in pairs else [(score, other_score)]
        return [self.agreement(*names, flipped) for names in first + pairs]

    def coreset_overlap(
        self,
        score: str,
        other_score: str,
        ipc: int,
        *,
        misratio: float | None,
        n_bins: int,
        seed: int,
    ) -> dict[str, Any]:
        """Choose by CCS from both, with one seed and misratio, and count what is chosen twice.

        Each is chosen by its own labels or pseudo-labels, at the misratio for the first.
        ``unrelated`` is the share where the second's scores are shuffled within every class. It is
        above ``chance``: with one seed both take the smallest random keys, bin by bin.
        """
        from coreset.kernels.measures import shuffled_within_classes

        one, other = (
            Candidates(dataset=table.dataset, ids=self.ids, table=table, score=table.name_of(score))
            for table in (self.first, self.second)
        )
        given = CcsParameters(misratio=misratio, bins=n_bins)
        parameters, assumption = complete_misratio(given, one, one.budgets(ipc))

        def draw(those: Candidates, easiness: NDArray[np.floating]) -> NDArray[np.int64]:
            scored = replace(those, easiness=easiness)
            return draw_coreset("ccs", scored, those.budgets(ipc), seed, parameters).positions

        first = draw(one, self.first.easiness(score, self.ids))
        second = self.second.easiness(other_score, self.ids)
        unrelated = [
            np.isin(first, draw(other, shuffled_within_classes(second, other.labels, deal)))
            for deal in range(SHUFFLES)
        ]
        return {
            "ipc": ipc,
            "misratio": parameters.misratio,
            "assumption": assumption,
            "share": float(np.isin(first, draw(other, second)).mean()),
            "unrelated": float(np.mean(unrelated)),
            "chance": float(np.mean(ipc / other.sizes[other.labels[first]])),
        }


def flipped_labels(dataset: Dataset, table: Path, column: str) -> NDArray[np.bool_]:
    """Find labels that differ from the true class names in a column of a CSV table, bool (n,)."""
    source = find_packed(dataset.path)
    differs = read_labels(table, column, source) != source.labels
    by_key = dict(zip(source.keys, differs.tolist(), strict=True))
    flipped = np.array([by_key[key] for key in dataset.keys], np.bool_)
    if flipped.all() or not flipped.any():
        raise UsageError(
            f"{column} of {table} differs from {flipped.sum():,} of the {len(dataset):,} labels of "
            f"{dataset.path}, so there is nothing to tell apart; choose another column or data set"
        )
    return flipped


def cost_of(scored: ScoreTable) -> dict[str, Any]:
    """Read from its ledger what a scores artifact cost, interrupted runs included."""
    costs = construction_cost(read_ledger(scored.path))
    own = [cost for cost in costs if not cost.artifact]
    return {
        "path": str(scored.path),
        "recipe": str(Provenance.read(scored.path).config.get("recipe", "-")),
        "epochs": scored.epochs,
        "wall_seconds": total_wall_seconds(own),
        "images": sum(cost.images for cost in own),
        "wall_seconds_with_inputs": total_wall_seconds(costs),
    }


def _area(ease: NDArray[np.float32], flipped: NDArray[np.bool_]) -> float:
    """Area under the ROC of the hard end for flipped labels; NaN without both kinds."""
    if flipped.all() or not flipped.any():
        return math.nan
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(flipped, -ease))


def untrained_note(agreement: Mapping[str, Any]) -> str:
    """Say that a trained score finds flipped labels no better than an untrained one; else ""."""
    areas = ("score", "roc_area"), ("other_score", "other_roc_area")
    sides = [(str(agreement[name]), agreement[area]) for name, area in areas]
    sides.sort(key=lambda side: not SCORES[side[0]].trained)
    (trained, area), (untrained, floor) = sides
    if area is None or SCORES[trained].trained == SCORES[untrained].trained or not area <= floor:
        return ""
    better = f"finds flipped labels no better than {untrained} ({floor:.3f})"
    return f"{trained} ({area:.3f}) {better}, which needs no training"


def agreement_table(agreements: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a table of one score or more; areas under the ROC where the truth is known."""
    header = ("Spearman", "in class", "ROC area", "of other")
    rows = [
        (
            score if other == score else f"{score}, {other}",
            *(short(number, ".4f") for number in numbers if number is not None),
        )
        for score, other, *numbers in (agreement.values() for agreement in agreements)
    ]
    shown = header[: len(rows[0]) - 1]
    return aligned(("score", *(name.rjust(NUMBER_WIDTH) for name in shown)), rows)


def overlap_table(coresets: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a table of shares in per cent."""
    header = ("ipc", "misratio", "overlap", "if unrelated", "by chance")
    shares = itemgetter("share", "unrelated", "chance")
    rows = [
        (str(row["ipc"]), f"{row['misratio']:g}", *(f"{100 * part:.1f} %" for part in shares(row)))
        for row in coresets
    ]
    return aligned(header, rows)


def cost_table(costs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a table of what scorings cost."""
    header = ("scores", "recipe", "epochs", "wall time", "image passes", "with inputs")
    rows = [
        (
            cost["path"],
            cost["recipe"],
            str(cost["epochs"]),
            readable_seconds(cost["wall_seconds"]),
            f"{cost['images']:,}",
            readable_seconds(cost["wall_seconds_with_inputs"]),
        )
        for cost in costs
    ]
    return aligned(header, rows)
