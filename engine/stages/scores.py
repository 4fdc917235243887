"""``coreset scores``: show scores, list likely wrong labels, compare with a cheaper recipe."""

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

from coreset.engine.condensed.comparison import (
    Pair,
    agreement_table,
    cost_of,
    cost_table,
    flipped_labels,
    overlap_table,
    untrained_note,
)
from coreset.engine.models.concept_bank import CONCEPT, VISUAL
from coreset.engine.runtime.fields import require_at_least, require_between
from coreset.engine.runtime.text import Summary, binned, histogram, spread_table, without_nan
from coreset.engine.scoring.score_table import (
    ASSIGNED,
    ISSUE_OOF,
    ScoreTable,
    class_table,
    hard_end,
    scores_beside,
    selection_hint,
)
from coreset.engine.scoring.setup import GIVEN
from coreset.engine.scoring.suspects import (
    BEST_SCORES,
    best_score,
    find_suspects,
    require_replaceable,
    suspect_table,
    with_reasons,
    write_suspects,
)
from coreset.engine.stages.options import MovedData, Result, ScoreNameOrNone, ScoresPath
from coreset.kernels.scores import SCORES
from coreset.shards.errors import UsageError
from coreset.shards.format.dataset import MANIFEST_NAME

BINS = 20
SUSPECTS_SHOWN = 20
USUAL_IPCS = (10, 50)

_Source: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCORES|DATA")]
_Other: TypeAlias = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """Show how every score is distributed, and one of them as a histogram and class by class."""

    source: _Source
    """Scores; or a packed data set with its scores beside it."""
    score: ScoreNameOrNone = None
    """Score to draw and to summarise by class. Default: aum, or the first that is stored."""
    classes: int = 10
    """Classes to show from the hard end and from the easy end."""
    data: MovedData = None

    def __post_init__(self) -> None:
        require_at_least("classes", self.classes, 1)

    def run(self) -> Result:
        """Summarise every score, draw one."""
        source, data = self.source, self.data
        if (source / MANIFEST_NAME).is_file():
            source, data = scores_beside(source), source
        table = ScoreTable.open(source, data)
        score = self.score or table.usual_score
        ids, by_class = table.ids, table.summary_by_class(score)
        summaries = {name: Summary.of(table.columns[name][ids]) for name in table.names}
        counts, edges = binned(table.values(score)[ids], BINS)
        how = f"over {table.epochs:,} epochs" if table.epochs else "without training"
        # A text in memory has no encoding.
        width, encoding = shutil.get_terminal_size().columns, sys.stdout.encoding or "utf-8"
        lines = (
            *spread_table("score", "hard", {n: (hard_end(n), s) for n, s in summaries.items()}),
            "",
            f"{score}: {SCORES[score].summary} ({SCORES[score].unit})",
            *histogram(counts, edges, width=width, encoding=encoding),
            "",
            *class_table(score, by_class, ends=self.classes),
            "",
            f"{ids.size:,} images scored {how}: {table.path}",
            *filter(None, [table.label_note]),
            f"next: coreset scores suspects {table.path}",
        )
        values = {
            "scores": str(table.path),
            "data": str(table.dataset.path),
            "images": ids.size,
            "undecodable": len(table.undecodable),
            "epochs": table.epochs,
            "labels": table.labelled_by,
            "summary": {n: {"hard_end": hard_end(n), **s.facts()} for n, s in summaries.items()},
            "score": score,
            "histogram": {"counts": counts, "edges": edges},
            "classes": {name: summary.facts() for name, summary in by_class.items()},
        }
        return Result(lines, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspects:
    """List the images that are most likely mislabelled: those at the hard end of a score.

    The score is confidence_oof where `coreset score --proxy linear --folds 5` made it: classifiers
    that never saw a label cannot have memorised it. Else it is el2n, a mean over the first epochs:
    later a proxy memorises wrong labels, which spoils aum and loss_final. Labels that people
    mistook are harder to find than random flips, which docs/scores.md measures. For example:
    coreset scores suspects SCORES --why --csv suspects.csv.
    """

    scores: ScoresPath
    """Scores of the data set in question."""
    score: ScoreNameOrNone = None
    """Score to order by. Default: the best that is stored: confidence_oof, else el2n; without
    training mean_margin."""
    top: int = 100
    """Suspects to list."""
    per_class: bool = False
    """List --top of every class instead of --top in all."""
    why: bool = False
    """With scores by concepts: the three concepts that argue most against the given label, for the
    predicted one, or for the runner-up where the prediction is the given label. "no" stands before
    a concept that the image lacks."""
    csv: Path | None = None
    """CSV file to list all of them in; replaced if it exists. With folds, label_quality and
    is_label_issue are cleanlab's: the probability of the label, and whether confident learning
    takes it for wrong; without folds, share_harder and predicted_otherwise stand in their place."""
    data: MovedData = None

    def __post_init__(self) -> None:
        require_at_least("top", self.top, 1)
        if self.csv is not None:
            require_replaceable(self.csv)

    def run(self) -> Result:
        """Order the images by the score, list the hardest."""
        table = ScoreTable.open(self.scores, self.data)
        score = best_score(table) if self.score is None else self.score
        suspects = find_suspects(table, score, self.top, per_class=self.per_class)
        if self.why:
            suspects = with_reasons(table, suspects)
        label = GIVEN if table.labelled_by == GIVEN else ASSIGNED
        lines = list(suspect_table(score, suspects[:SUSPECTS_SHOWN], label=label))
        if self.csv is not None:
            write_suspects(self.csv, suspects, label=label)
            lines.append(f"listed: {self.csv}")
        elif len(suspects) > SUSPECTS_SHOWN:
            lines.append(f"and {len(suspects) - SUSPECTS_SHOWN:,} more: --csv FILE lists all")
        if self.score is None:
            lines.append(f"told by {score}: {BEST_SCORES[score]}")
        n_otherwise = sum(bool(suspect["predicted_otherwise"]) for suspect in suspects)
        predictions = f"{n_otherwise:,} are predicted otherwise"
        if table.predicted is None:
            predictions = "no predictions were stored"
        count = f"{len(suspects):,} of {table.ids.size:,} images, hardest by {score} first"
        lines.append(f"{count}; {predictions}: {self.scores}")
        values: dict[str, Any] = {"scores": str(self.scores), "score": score, "suspects": suspects}
        values["labels"] = table.labelled_by
        if (issues := table.columns.get(ISSUE_OOF)) is not None:
            values["label_issues"] = n_issues = int(issues.sum())
            wrong = "labels are taken for wrong (is_label_issue)"
            lines.append(f"{n_issues:,} of all {issues.size:,} {wrong}")
        cut = selection_hint(table, misratio=0.3)
        mend = "correct their labels and pack again, or cut the hardest"
        if table.label_note:
            lines.append(table.label_note)
            mend = "cut those that fit their group least"
        lines.append(f"next: {mend}: {cut}")
        return Result(tuple(lines), values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Compare cheaper scores with full ones: rank correlation, overlap of coresets, cost.

    Shows for every score that both hold the rank correlation over all images and within the
    classes, and which share of a coreset chosen by the first is in one chosen by the second too.
    With --truth, also how well each score finds flipped labels (area under the ROC). Scores of
    `coreset score --proxy neighbours` as OTHER show what training adds: a score that does not beat
    them is told. Correlations are of easiness: the hard end of both is the low one.
    """

    scores: ScoresPath
    """Scores of the full recipe."""
    other: _Other
    """Scores of the same data set by a cheaper recipe, or by another seed."""
    score: ScoreNameOrNone = None
    """Score to choose coresets by (CCS). Default: aum, or the first that is stored."""
    other_score: ScoreNameOrNone = None
    """Score of OTHER to compare with --score. Default: the same; if OTHER lacks it and one of both
    was made without training, as mean_margin, the usual score of OTHER."""
    ipc: str | None = None
    """Images per class of the coresets, with commas between. Default: 10,50, as far as every class
    has so many."""
    misratio: float | None = None
    """Share of the hardest images of each class to cut first. Default: as in `coreset select`."""
    bins: int = 50
    """Equal-width bins over the range of a class's scores."""
    seed: int = 0
    """Seed of the draws, the same for both."""
    truth: Path | None = None
    """CSV table of true labels, read as `coreset pack --labels` reads one."""
    column: str = ""
    """Column of that table that holds the true class, such as noisy_labels_0."""
    data: MovedData = None

    def __post_init__(self) -> None:
        require_at_least("bins", self.bins, 1)
        for ipc in self.ipcs:
            require_at_least("ipc", ipc, 1)
        if self.misratio is not None:
            require_between("misratio", self.misratio, 0, 1)
        if (self.truth is None) != (self.column == ""):
            raise UsageError(
                f"truth and column go together, got truth {self.truth} and column "
                f"{self.column!r}; name both or neither"
            )

    @property
    def ipcs(self) -> tuple[int, ...]:
        """``ipc`` as numbers, in its order."""
        if self.ipc is None:
            return USUAL_IPCS
        words = [word.strip() for word in self.ipc.split(",")]
        if not all(word.isdecimal() for word in words):
            raise UsageError(f"ipc must be whole numbers such as 10,50, got {self.ipc}")
        return tuple(dict.fromkeys(map(int, words)))

    def run(self) -> Result:
        """Correlate, choose coresets by both, find flipped labels, add the costs up."""
        pair = Pair.open(self.scores, self.other, self.data)
        dataset, flipped = pair.first.dataset, None
        if self.truth is not None:
            flipped = flipped_labels(dataset, self.truth, self.column)
        smallest = min(table.smallest_group(pair.ids) for table in (pair.first, pair.second))
        score = self.score or pair.first.usual_score
        other = self.other_score or pair.counterpart(score)
        overlap = partial(pair.coreset_overlap, score, other, n_bins=self.bins, seed=self.seed)
        ipcs = [ipc for ipc in self.ipcs if self.ipc is not None or ipc <= smallest]
        none = f"the smallest class has {smallest} images; give --ipc"
        if self.misratio is None and pair.first.prefix == CONCEPT + VISUAL:
            ipcs, none = [], "the study gives no misratio for visual prototypes; give --misratio"
        coresets = [overlap(ipc, misratio=self.misratio) for ipc in ipcs]
        agreements = pair.agreements(score, other, flipped)
        costs = [cost_of(pair.first), cost_of(pair.second)]
        hint = selection_hint(pair.second, ipc=self.ipcs[0], score=other)
        chosen_by = score if other == score else f"{score} and {other}"
        lines = (
            *agreement_table(agreements),
            *filter(None, map(untrained_note, agreements)),
            "",
            *(overlap_table(coresets) if coresets else [f"no coresets compared: {none}"]),
            *(coreset["assumption"] for coreset in coresets if coreset["assumption"]),
            "",
            *cost_table(costs),
            "",
            *(f"{t.path}: {t.label_note}" for t in (pair.first, pair.second) if t.label_note),
            f"{pair.ids.size:,} images scored by both; coresets by {chosen_by}, seed {self.seed}",
            f"next: {hint}",
        )
        values: dict[str, Any] = {
            "scores": [str(self.scores), str(self.other)],
            "images": pair.ids.size,
            "agreement": [without_nan(agreement) for agreement in agreements],
            "coresets": coresets,
            "costs": costs,
        }
        if flipped is not None:
            values["flipped"] = int(flipped.sum())
        return Result(lines, values)


Scores: TypeAlias = (
    Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Suspects, tyro.conf.subcommand("suspects")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
)
"""Subcommands of ``coreset scores``."""
