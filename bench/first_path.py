"""Whole path on ImageNette: results of a shortened study, and the cost of every step.

    python -m coreset.bench.first_path [--data FOLDER] [--work FOLDER] [--student-seeds-at-50 1]

FOLDER holds ``imagenette/train``, ``imagenette/val`` and ``labels/noisy_imagenette.csv``. Every
step is a ``coreset`` command; a step whose output exists is not repeated, so an interrupted run
continues (the ledger keeps the cost of the first run). Writes ``bench/results/first_path.jsonl``.
"""

import csv
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import tyro

from coreset.bench.docs import Block, Table, machine, markdown
from coreset.bench.harness import Row, record, records_of, write
from coreset.bench.processes import CORESET
from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.ledger import StageCost, construction_cost, read_ledger
from coreset.engine.artifacts.store import SCORES_NAME, Columns
from coreset.engine.evaluation.results import METRICS, STUDENTS, Results
from coreset.engine.report.results import comparisons, verdicts
from coreset.engine.report.sets import catalogue
from coreset.engine.runtime.text import readable_seconds
from coreset.kernels.scores import SCORES, easiness
from coreset.shards.format.dataset import Dataset

STUDY_CELLS = ("ImageNette", "hard", "ResNet-18")
BACKBONE = "tf_efficientnet_lite0"
SIZE, SCORE_EPOCHS, EPOCHS_SHARE, EVALUATIONS = 64, 10, 10, 10
SHORT_SCORE = ("--epochs", SCORE_EPOCHS, "--size", SIZE)
PUBLISHED_EPOCHS = {10: 2000, 50: 1500}


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPath:
    """Run the path and record what came out."""

    data: Path = Path("../shared/data")
    """Folder of the images and labels."""
    work: Path = Path("runs/first-path")
    """Where the artifacts are made and kept."""
    reference: Path = Path("../shared/reference/reference_tables.csv")
    """The study's published accuracies, recorded beside ours."""
    student_seeds_at_50: int = 1
    """Students per set at IPC 50 (three at IPC 10)."""

    def run(self) -> None:
        """Pack, score, select, embed, measure, train; then the noisy labels; then the record."""
        self.work.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            self._coreset("pack", self.data / "imagenette" / split, self._path(split))
        self._score("train", "scores", *SHORT_SCORE)
        self._noisy_labels()
        for split in ("train", "val"):
            self._coreset(
                "embed", self._path(split), self._path(f"{split}-features"), "--backbone", BACKBONE
            )
        for ipc, seeds in ((10, 3), (50, self.student_seeds_at_50)):
            self._coreset("select", self._path("train"), self._path(f"random-{ipc}"), "--ipc", ipc)
            self._coreset("select", self._path("scores"), self._path(f"ccs-{ipc}"), "--ipc", ipc)
            for method in ("random", "ccs"):
                self._measure_and_train(f"{method}-{ipc}", ipc, seeds)
        self._coreset("report", self._path("results"), self._path("report.html"))
        print(f"written: {write('first_path', self._records())}")

    def _path(self, name: str) -> Path:
        return self.work / name

    def _coreset(self, *words: object) -> None:
        print("$ coreset", *words, flush=True)
        subprocess.run([*CORESET, *map(str, words)], check=True)

    def _score(self, data: str, scores: str, *more: object) -> None:
        self._coreset("score", self._path(data), self._path(scores), *more)

    def _noisy_labels(self) -> None:
        table = self.data / "labels" / "noisy_imagenette.csv"
        source = self.data / "imagenette" / "train"
        relabel = ("--labels", table, "--column", "noisy_labels_25")
        self._coreset("pack", source, self._path("noisy"), *relabel)
        self._score("noisy", "noisy-scores", *SHORT_SCORE)
        self._score("noisy", "noisy-linear", "--proxy", "linear", "--backbone", BACKBONE)

    def _measure_and_train(self, name: str, ipc: int, seeds: int) -> None:
        paths = (self._path(name), self._path("val"), self._path("results"))
        self._coreset("measure", *paths, "--backbone", BACKBONE)
        epochs = PUBLISHED_EPOCHS[ipc] // EPOCHS_SHARE
        shortened = ("--epochs", epochs, "--size", SIZE, "--evaluations", EVALUATIONS)
        self._coreset("train", *paths, *shortened, "--repeats", seeds)

    def _records(self) -> list[Row]:
        results = Results(self._path("results"))
        records = [
            record("first_path.students", _without_paths(row)) for row in results.rows(STUDENTS)
        ]
        records += [
            record("first_path.metrics", _without_paths(row)) for row in results.rows(METRICS)
        ]
        records += [record("first_path.published", cell) for cell in self._published()]
        records += [self._flip_record(name) for name in ("noisy-scores", "noisy-linear")]
        for name in ("random-10", "ccs-10", "random-50", "ccs-50", "noisy-linear"):
            records += [
                record("first_path.cost", {"artifact": name, "stage": cost.stage, **_cost(cost)})
                for cost in construction_cost(read_ledger(self._path(name)))
            ]
        return records

    def _published(self) -> list[Row]:
        """Return the study's cells for the same data set, protocol, student and methods."""
        with self.reference.open(newline="") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if (row["dataset"], row["protocol"], row["student"]) == STUDY_CELLS
                and row["method"] in {"Random", "AUM"}
            ]
        return [row | {name: float(row[name]) for name in ("ipc", "mean", "std")} for row in rows]

    def _flip_record(self, name: str) -> Row:
        """Return the area under the ROC of each score for flipped labels."""
        from sklearn.metrics import roc_auc_score

        samples = Dataset.open(self._path("noisy"))
        flipped = samples.labels != samples.ints("folder_label")
        newest = Checkpoints(self._path(name)).latest()
        if newest is None:
            raise SystemExit(f"{name} holds no scores")
        stored = Columns(newest[1] / SCORES_NAME)
        areas = {
            score: float(roc_auc_score(flipped, -easiness(score, stored[score])))
            for score in SCORES
            if score in stored
        }
        config = json.loads((self._path(name) / "provenance.json").read_bytes())["config"]
        measured = {"artifact": name, "config": config, "flipped": int(flipped.sum())}
        return record("first_path.flips", measured | {"images": len(samples), "auc": areas})


def _without_paths(row: Mapping[str, Any]) -> Row:
    return {name: value for name, value in row.items() if name not in {"set_path", "val_path"}}


def _cost(cost: StageCost) -> Row:
    names = ("wall_seconds", "cpu_seconds", "images", "device")
    return {name: getattr(cost, name) for name in names}


STUDY_CLASSES = 10
PUBLISHED_NAME = {"random": "Random", "ccs-aum": "AUM"}


def _of(part: str) -> list[Row]:
    return records_of(f"first_path.{part}")


def _accuracy() -> Iterator[Row]:
    """Return accuracy of random and CCS-AUM coresets beside the study's."""
    published = {(row["method"], int(row["ipc"])): row for row in _of("published")}
    students = _of("students")
    for ipc in PUBLISHED_EPOCHS:
        for method in PUBLISHED_NAME:
            rows = [row for row in students if (row["method"], row["ipc"]) == (method, ipc)]
            yield published[PUBLISHED_NAME[method], ipc] | {
                "method": method,
                "ipc": ipc,
                "best": _mean_std([row["top1_best"] for row in rows]),
                "last": _mean_std([row["top1_last"] for row in rows]),
                "n": len(rows),
                "epochs": rows[0]["epochs"],
            }


def _mean_std(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"


def _verdicts() -> str:
    rows = [row | {"set_path": ""} for row in _of("students")]
    compared = comparisons(rows, catalogue(rows))
    pairs = zip(compared, verdicts(compared), strict=True)
    return "\n".join(f"- IPC {each.setting.ipc}: {verdict.sentence}." for each, verdict in pairs)


def _metrics() -> str:
    rows = _of("metrics")
    names = sorted({row["metric"] for row in rows})
    sets = sorted({(row["ipc"], row["method"]) for row in rows})
    values = {(row["ipc"], row["method"], row["metric"]): row["value"] for row in rows}
    lines = [
        (method, str(ipc), *(f"{values[ipc, method, name]:.3f}" for name in names))
        for ipc, method in sets
    ]
    return markdown(("method", "IPC", *(name.partition("@")[0] for name in names)), lines)


def _flips() -> str:
    rows = _of("flips")
    columns = {"proxy": "{config[proxy]}", "epochs": "{config[epochs]}"}
    columns |= {score: f"{{auc[{score}]:.3f}}" for score in rows[0]["auc"]}
    return Table(lambda: rows, columns)()


def _costs() -> Iterator[Row]:
    """Return wall time of every stage of two artifacts, and of one student."""
    for row in _of("cost"):
        if row["artifact"] in {"ccs-10", "noisy-linear"}:
            yield _cost_row(row["artifact"], row["stage"], row["wall_seconds"], row["images"])
    students = _of("students")
    for ipc in PUBLISHED_EPOCHS:
        rows = [row for row in students if row["ipc"] == ipc]
        trained = rows[0]["epochs"] * ipc * STUDY_CLASSES
        evaluated = rows[0]["evaluations"] * rows[0]["n_val"]
        for stage, kind, passes in (
            ("train", "train", trained),
            ("evaluate", "evaluation", evaluated),
        ):
            seconds = fmean(row[f"{kind}_seconds"] for row in rows)
            yield _cost_row(f"a student at IPC {ipc}", stage, seconds, passes)


def _cost_row(what: str, stage: str, seconds: float, passes: int) -> Row:
    time = readable_seconds(seconds)
    return {"what": what, "stage": stage, "time": time, "passes": passes, "rate": passes / seconds}


BLOCKS: Mapping[str, Block] = {
    "first_path_accuracy": Table(
        _accuracy,
        {
            "method": "{method}",
            "IPC": "{ipc}",
            "best top-1 %": "{best}",
            "last top-1 %": "{last}",
            "students": "{n}",
            "epochs": "{epochs}",
            "the study %": "{mean:.1f} ± {std:.1f}",
        },
    ),
    "first_path_verdicts": _verdicts,
    "first_path_metrics": _metrics,
    "first_path_flips": _flips,
    "first_path_cost": Table(
        _costs,
        {
            "what": "{what}",
            "stage": "{stage}",
            "wall time": "{time}",
            "image passes": "{passes:,}",
            "images/s": "{rate:,.0f}",
        },
    ),
    "first_path_machine": lambda: f"Measured on {machine(_of('students')[0])}.",
}


if __name__ == "__main__":
    tyro.cli(FirstPath).run()
