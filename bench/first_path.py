"""The whole path on ImageNette: what a shortened study says, and what every step costs.

    python -m coreset.bench.first_path [--data FOLDER] [--work FOLDER] [--student-seeds-at-50 1]

FOLDER holds ``imagenette/train``, ``imagenette/val`` and ``labels/noisy_imagenette.csv``. Every
step is a ``coreset`` command; a step whose output is there is not repeated, so an interrupted run
continues (the ledger keeps what the first run cost). Writes ``bench/results/first_path.jsonl``,
from which ``python -m bench.first_results`` makes docs/first-results.md.
"""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from coreset.bench.record import record, write
from coreset.engine.artifacts.checkpoints import Checkpoints
from coreset.engine.artifacts.ledger import construction_cost, read_ledger
from coreset.engine.artifacts.store import SCORES_NAME, Columns
from coreset.engine.evaluation.results import METRICS, STUDENTS, Results
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
        command = [sys.executable, "-m", "coreset.engine.cli", *map(str, words)]
        print("$ coreset", *words, flush=True)
        subprocess.run(command, check=True)

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

    def _records(self) -> list[dict[str, Any]]:
        results = Results(self._path("results"))
        records = [
            record("first_path.students", _without_paths(row)) for row in results.rows(STUDENTS)
        ]
        records += [
            record("first_path.metrics", _without_paths(row)) for row in results.rows(METRICS)
        ]
        records += [record("first_path.published", one) for one in self._published()]
        records += [self._flip_record(name) for name in ("noisy-scores", "noisy-linear")]
        for name in ("random-10", "ccs-10", "random-50", "ccs-50", "noisy-linear"):
            records += [
                record("first_path.cost", {"artifact": name, "stage": one.stage, **_cost(one)})
                for one in construction_cost(read_ledger(self._path(name)))
            ]
        return records

    def _published(self) -> list[dict[str, Any]]:
        """The study's cells for the same data set, protocol, student and methods."""
        with self.reference.open(newline="") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if (row["dataset"], row["protocol"], row["student"]) == STUDY_CELLS
                and row["method"] in {"Random", "AUM"}
            ]
        return [row | {name: float(row[name]) for name in ("ipc", "mean", "std")} for row in rows]

    def _flip_record(self, name: str) -> dict[str, Any]:
        """Area under the ROC of each score against "this label was flipped"."""
        from sklearn.metrics import roc_auc_score

        samples = Dataset.open(self._path("noisy"))
        flipped = samples.labels != samples.ints("folder_label")
        newest = Checkpoints(self._path(name)).latest()
        if newest is None:
            raise SystemExit(f"{name} holds no scores")
        stored = Columns(newest[1] / SCORES_NAME)
        areas = {
            one: float(roc_auc_score(flipped, -easiness(one, stored[one])))
            for one in SCORES
            if one in stored
        }
        config = json.loads((self._path(name) / "provenance.json").read_bytes())["config"]
        measured = {"artifact": name, "config": config, "flipped": int(flipped.sum())}
        return record("first_path.flips", measured | {"images": len(samples), "auc": areas})


def _without_paths(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in {"set_path", "val_path"}}


def _cost(one: Any) -> dict[str, Any]:  # noqa: ANN401 - coreset.engine.artifacts.ledger.StageCost
    return {
        name: getattr(one, name) for name in ("wall_seconds", "cpu_seconds", "images", "device")
    }


if __name__ == "__main__":
    tyro.cli(FirstPath).run()
