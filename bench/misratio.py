"""Wrong labels that a cut of the hard end removes, and what the cut does to accuracy.

    python -m coreset.bench.misratio [--part cut accuracy] [--images 100 --dry]

ImageNette with fastai's noisy labels, scored by the linear proxy. Its frozen backbone has seen most
of these images, and the labels were flipped at random: the easy case. Classes are those of the
given labels, right or wrong.

- ``cut``: share of the flipped labels of a class that a cut removes, and share of flipped labels in
  the coreset that CCS draws from the rest.
- ``accuracy``: logistic regression on features, trained on coresets with their given labels and
  tested on the validation images; by scikit-learn's L2 penalty, and by one a hundred times as
  strong, which bears wrong labels better.
- ``students``: ResNet-18 from scratch in a short run of the hard-label protocol, for the ends.

Keeps artifacts in the folder of the work, writes ``bench/results/misratio.jsonl``; times nothing.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from coreset.bench.docs import Block, machine, markdown
from coreset.bench.harness import ROOT, Options, Row, records_of
from coreset.bench.processes import options, run_coreset
from coreset.engine.artifacts.store import Features
from coreset.engine.condensed.comparison import flipped_labels
from coreset.engine.condensed.condensed_set import open_set
from coreset.engine.condensed.samplers import CcsParameters, draw_coreset
from coreset.engine.condensed.selection import Candidates, Ints
from coreset.engine.evaluation.results import STUDENTS as RESULTS
from coreset.engine.evaluation.results import Results
from coreset.engine.models.features import FeatureSpec, features_for
from coreset.engine.scoring.score_table import ScoreTable
from coreset.kernels.samplers import extreme_coreset, n_hardest
from coreset.shards.format.dataset import Dataset

Part: TypeAlias = Literal["cut", "accuracy", "students"]
SPEC = FeatureSpec(backbone="tf_efficientnet_lite0")
PERCENTS = {"cut": (5, 25, 50), "accuracy": (0, 5, 25, 50), "students": (25,)}
SEEDS = (0, 1, 2)
RANDOM, TRUTH = "random", "truth"
SCORES = ("aum", "el2n", "loss_final", RANDOM, TRUTH)
"""Truth has all flipped labels at the hard end: the limit."""
MISRATIOS, CUT_IPC = tuple(tenths / 10 for tenths in range(10)), 50
SHOWN = (0, 1, 3, 5, 7, 9)
"""Misratios of tables, and of the part accuracy, by position."""
GOALS: Mapping[tuple[int, str], Mapping[float, float]] = {(25, "aum"): {0.3: 0.85, 0.5: 0.95}}
"""Least share removed, mean of the classes, by misratio, for some percents and scores."""
SCORE, IPCS = "aum", (10, 50)
"""Of the part accuracy."""
METHODS = ("hardest", "easiest", RANDOM, "facility-location", "d2")
ALL = "all images (no coreset)"
SHORT: Row = {"size": 48, "epochs": 60, "evaluations": 2, "repeats": 1}
ENDS: Mapping[str, Sequence[object]] = {
    "hardest": ("--method", "hardest"),
    RANDOM: ("--method", RANDOM),
    "ccs, misratio 0": ("--misratio", 0),
    "ccs, misratio 0.5": ("--misratio", 0.5),
}
STUDENTS = (1.0, 0.01)
"""Scikit-learn's C, one over the penalty; 1 is its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """Scored images with noisy labels."""

    scored: ScoreTable
    features: Features
    flipped: NDArray[np.bool_]
    """Labels that are wrong, shape (samples,)."""

    def candidates(self, score: str, seed: int = 0) -> Candidates:
        """Offer all images by the easiness of a score; that of ``random`` is drawn."""
        ids, dataset = np.arange(self.flipped.size), self.scored.dataset
        if score == RANDOM:
            easiness = np.random.default_rng(seed).random(ids.size, np.float32)
        else:
            easiness = ~self.flipped * 1.0 if score == TRUTH else self.scored.easiness(score, ids)
        return Candidates(dataset=dataset, ids=ids, easiness=easiness, features=self.features)

    def flipped_among(self, ids: Ints) -> Ints:
        """Count the flipped labels of each class among ``ids``."""
        dataset = self.scored.dataset
        return np.bincount(dataset.labels[ids[self.flipped[ids]]], minlength=len(dataset.classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class MisratioBench(Options):
    """Measure cuts of the hard end."""

    work: Path = ROOT / "runs" / "misratio"
    """Folder of the artifacts, which are kept."""
    part: tuple[Part, ...] = ("cut", "accuracy", "students")
    """Parts to measure."""
    images: int = 0
    """Images of each class and split, the first by name, for a trial; 0 is all."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        os.environ["CORESET_CACHE"] = str(self.work.resolve() / "cache")
        self.record_parts("misratio", {part: partial(self._rows, part) for part in self.part})

    def _rows(self, part: Part) -> Iterator[Row]:
        validation = self._packed("val", "validation")
        for percent in PERCENTS[part]:
            noisy = self._noisy(percent)
            about = {"percent": percent, "flipped": int(noisy.flipped.sum())}
            about |= {"images": noisy.flipped.size, "images_per_class": self.images or "all"}
            about |= {"validation": len(validation), "backbone": SPEC.backbone, "seeds": SEEDS}
            rows = {  # generators, of which one runs
                "cut": cuts(percent, noisy),
                "accuracy": accuracies(noisy, validation),
                "students": self._students(noisy, validation),
            }[part]
            yield from (about | row for row in rows)

    def _students(self, noisy: Noisy, validation: Dataset) -> Iterator[Row]:
        results = self._place("results")
        for way, words in ENDS.items():
            condensed = self._place(f"student-{way.replace(', ', '-').replace(' ', '-')}")
            run_coreset("select", noisy.scored.path, condensed, "--ipc", CUT_IPC, *words)
            run_coreset("train", condensed, validation.path, results, *options(SHORT))
            digest = open_set(condensed).provenance.digest
            rows = [r for r in Results(results).rows(RESULTS) if r["set_digest"] == digest]
            share = float(noisy.flipped[open_set(condensed).ids].mean())
            found = [row["top1_last"] / 100 for row in rows]
            yield {
                "way": way, "ipc": CUT_IPC, "accuracies": found, "flipped_share": share,
                "protocol": rows[0]["protocol"], **SHORT,
            }  # fmt: skip

    def _noisy(self, percent: int) -> Noisy:
        truth = self.data.resolve() / "labels" / "noisy_imagenette.csv"
        name, column = f"noisy-{percent}", f"noisy_labels_{percent}"
        dataset = self._packed("train", name, "--labels", truth, "--column", column)
        scores, linear = self._place(f"{name}-scores"), ("--proxy", "linear", "--device", "cpu")
        run_coreset("score", dataset.path, scores, *linear, "--backbone", SPEC.backbone)
        none = np.zeros(len(dataset), np.bool_)
        flipped = flipped_labels(dataset, truth, "noisy_labels_0") if percent else none
        scored, features = ScoreTable.open(scores), features_for(dataset, SPEC)
        return Noisy(scored=scored, features=features, flipped=flipped)

    def _packed(self, split: str, name: str, *options: object) -> Dataset:
        source, part = self.data.resolve() / "imagenette" / split, self._place(split)
        if self.images and not part.exists():
            shutil.copytree(source, part, ignore=lambda _, names: sorted(names)[self.images :])
        run_coreset("pack", part if self.images else source, self._place(name), *options)
        return Dataset.open(self._place(name))

    def _place(self, name: str) -> Path:
        return self.work.resolve() / f"images-{self.images or 'all'}" / name


def cuts(percent: int, noisy: Noisy) -> Iterator[Row]:
    """Yield what cuts do by each score, as lists over the misratios."""
    for score in SCORES:
        shares = [cut_shares(noisy, score, misratio) for misratio in MISRATIOS]
        row = {name: [float(each[name]) for each in shares] for name in shares[0]}
        goals = GOALS.get((percent, score), {})
        met = all(row["removed"][MISRATIOS.index(at)] >= goals[at] for at in goals)
        about = {"score": score, "ipc": CUT_IPC, "misratios": MISRATIOS}
        yield about | row | ({"goals": goals, "met": met} if goals else {})


def cut_shares(noisy: Noisy, score: str, misratio: float) -> dict[str, float]:
    """Return which share of a class's flipped labels a cut removes, and their share in a coreset.

    Mean and worst class, of means over the seeds.
    """
    own, removed, left = CcsParameters(misratio=misratio), list[Any](), list[Any]()
    for seed in SEEDS:
        those = noisy.candidates(score, seed)
        n_cut = np.array([n_hardest(size, misratio) for size in those.sizes.tolist()])
        cut = extreme_coreset(those.easiness, those.labels, n_cut, easy=False).positions
        drawn = draw_coreset("ccs", those, np.full_like(n_cut, CUT_IPC), seed, own).positions
        removed.append(noisy.flipped_among(cut) / noisy.flipped_among(those.ids))
        left.append(noisy.flipped_among(drawn) / CUT_IPC)
    removed_c, left_c = np.mean(removed, axis=0), np.mean(left, axis=0)
    means = {"removed": removed_c.mean(), "left": left_c.mean()}
    return means | {"removed_worst": removed_c.min(), "left_worst": left_c.max()}


def accuracies(noisy: Noisy, validation: Dataset) -> Iterator[Row]:
    """Yield the accuracy of students of every coreset, and the share of its flipped labels."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    those = noisy.candidates(SCORE)
    features, test = (
        x.astype(np.float32) for x in (those.features, features_for(validation, SPEC))
    )

    def accuracy(ids: Ints, c: float) -> float:
        student: Any = LogisticRegression(C=c, max_iter=1000)
        with threadpool_limits(1):  # beside busy processes OpenBLAS's threads wait for each other
            student.fit(features[ids], those.labels[ids])
            return float(student.score(test, validation.labels))

    draws = {ipc: coresets(those, ipc) for ipc in IPCS}
    for c in STUDENTS:
        of_all = accuracy(those.ids, c)
        for ipc, ways in draws.items():
            found = {way: [accuracy(ids, c) for ids in drawn] for way, drawn in ways.items()}
            shares = {way: float(noisy.flipped[drawn].mean()) for way, drawn in ways.items()}
            found[ALL], shares[ALL] = [of_all], float(noisy.flipped.mean())
            about = {"ipc": ipc, "score": SCORE, "c": c}
            yield about | {"accuracies": found, "flipped_shares": shares}


def coresets(those: Candidates, ipc: int) -> dict[str, list[Ints]]:
    """Draw coresets in every way, by each seed if it draws."""
    ways: dict[str, tuple[str, Any]] = {method: (method, None) for method in METHODS}
    for misratio in (MISRATIOS[i] for i in SHOWN):
        ways[f"ccs, misratio {misratio:g}"] = "ccs", CcsParameters(misratio=misratio)
    budgets = np.full(those.sizes.size, ipc)
    return {
        way: [
            draw_coreset(method, those, budgets, seed, own).positions
            for seed in (SEEDS if method in {RANDOM, "ccs"} else SEEDS[:1])
        ]
        for way, (method, own) in ways.items()
    }


def _cut_table(share: str, scores: Mapping[str, str]) -> str:
    lines = (
        [f"{row['percent']} %", scores[row["score"]]]
        + [f"{row[share][i]:.1%} ({row[f'{share}_worst'][i]:.1%})" for i in SHOWN]
        for row in records_of("misratio.cut")
        if row["score"] in scores
    )
    return markdown(["flipped", "score", *(f"{MISRATIOS[i]:g}" for i in SHOWN)], lines)


def _cuts() -> str:
    row = next(row for row in records_of("misratio.cut") if row.get("goals"))
    goals = " and ".join(f"{goal:.0%} at {misratio}" for misratio, goal in row["goals"].items())
    goals += ": met" if row["met"] else ": missed"
    names = {score: f"`{score}`" for score in SCORES if score != TRUTH}
    removed = _cut_table("removed", names | {TRUTH: "*truth* (limit)"})
    return (
        "Flipped labels that a cut removes, mean of the classes (worst class), by misratio. Goal "
        f"for `{row['score']}` where {row['percent']} % are flipped: at least {goals}.\n\n"
        f"{removed}\n\nFlipped labels in the coreset that CCS draws after the cut, "
        f"IPC {row['ipc']}, mean (worst class):\n\n{_cut_table('left', names)}"
    )


def _accuracy_table(c: float, cell: Callable[[Row, str], str]) -> str:
    found = (row for row in records_of("misratio.accuracy") if row["c"] == c)
    rows = sorted(found, key=lambda row: row["ipc"])
    lines = ([way, *(cell(row, way) for row in rows)] for way in rows[0]["accuracies"])
    return markdown(["way", *(f"IPC {row['ipc']}, {row['percent']} %" for row in rows)], lines)


def _mean(row: Row, way: str) -> str:
    values = [100 * accuracy for accuracy in row["accuracies"][way]]
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _accuracies() -> str:
    parts = [f"Accuracy in %, C = {c:g}:\n\n{_accuracy_table(c, _mean)}" for c in STUDENTS]
    shares = _accuracy_table(STUDENTS[0], lambda row, way: f"{row['flipped_shares'][way]:.1%}")
    return "\n\n".join([*parts, "Flipped labels in these coresets:", shares])


def _student_table() -> str:
    rows = records_of("misratio.students")
    lines = (
        [row["way"], f"{row['flipped_share']:.1%}", *(f"{100 * x:.1f}" for x in row["accuracies"])]
        for row in rows
    )
    seeds = [f"seed {seed}, top-1 %" for seed in range(len(rows[0]["accuracies"]))]
    note = "{protocol}, {size} px, {epochs} epochs, IPC {ipc}, {percent} % flipped, last epoch:"
    table = markdown(["way", "flipped in the set", *seeds], lines)
    return f"ResNet-18 from scratch, {note.format_map(rows[0])}\n\n{table}"


def _machine() -> str:
    row = records_of("misratio.accuracy")[0]
    images = "{images:,} images ({images_per_class} of a class), {validation:,} to test, {backbone}"
    draws = f"one scoring, {len(row['seeds'])} seeds of draws (mean ± standard deviation)"
    return f"{images.format_map(row)}; {draws}; {machine(row)}."


BLOCKS: Mapping[str, Block] = {
    "misratio_cut": _cuts,
    "misratio_accuracy": _accuracies,
    "misratio_students": _student_table,
    "misratio_machine": _machine,
}

if __name__ == "__main__":
    tyro.cli(MisratioBench).run()
