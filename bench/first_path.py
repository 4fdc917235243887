"""Whole path on ImageNette: results of a shortened study, and the cost of every step.

    python -m coreset.bench.first_path [--data FOLDER] [--work FOLDER] [--student-seeds-at-50 1]

FOLDER of the data holds ``imagenette/train`` and ``imagenette/val``. Every step is a ``coreset``
command; a step whose output exists is not repeated, so an interrupted run continues (the ledger
keeps the cost of the first run). Writes ``bench/results/first_path.jsonl``.
"""

import csv
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import tyro

from coreset.bench.docs import Block, Table, machine, markdown
from coreset.bench.harness import Options, Row, records_of
from coreset.bench.processes import CORESET
from coreset.engine.artifacts.ledger import construction_cost, read_ledger
from coreset.engine.evaluation.results import METRICS, STUDENTS, Results
from coreset.engine.report.results import comparisons
from coreset.engine.report.sets import catalogue
from coreset.engine.runtime.text import readable_seconds

STUDY_CELLS = ("ImageNette", "hard", "ResNet-18")
BACKBONE = "tf_efficientnet_lite0"
SIZE, SCORE_EPOCHS, EPOCHS_SHARE, EVALUATIONS = 64, 10, 10, 10
PUBLISHED_EPOCHS = {10: 2000, 50: 1500}


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPath(Options):
    """Run the path and record what came out."""

    work: Path = Path("runs/first-path")
    """Folder of the artifacts, which are kept."""
    reference: Path = Path("../shared/reference/reference_tables.csv")
    """The study's published accuracies, recorded beside ours."""
    student_seeds_at_50: int = 1
    """Students per set at IPC 50 (three at IPC 10)."""

    def run(self) -> None:
        """Pack, score, select, embed, measure, train, and record."""
        self.work.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            self._coreset("pack", self.data / "imagenette" / split, self.work / split)
        shortened = ("--epochs", SCORE_EPOCHS, "--size", SIZE)
        self._coreset("score", self.work / "train", self.work / "scores", *shortened)
        for split in ("train", "val"):
            self._coreset(
                "embed", self.work / split, self.work / f"{split}-features", "--backbone", BACKBONE
            )
        for ipc, seeds in ((10, 3), (50, self.student_seeds_at_50)):
            self._coreset("select", self.work / "train", self.work / f"random-{ipc}", "--ipc", ipc)
            self._coreset("select", self.work / "scores", self.work / f"ccs-{ipc}", "--ipc", ipc)
            for method in ("random", "ccs"):
                self._measure_and_train(f"{method}-{ipc}", ipc, seeds)
        self._coreset("report", self.work / "results", self.work / "report.html")
        results = Results(self.work / "results")
        parts: dict[str, Callable[[], Iterable[Row]]] = {
            "students": lambda: map(_without_paths, results.rows(STUDENTS)),
            "metrics": lambda: map(_without_paths, results.rows(METRICS)),
            "published": self._published,
            "cost": self._costs,
        }
        self.record_parts("first_path", parts)

    def _coreset(self, *words: object) -> None:
        print("$ coreset", *words, flush=True)
        subprocess.run([*CORESET, *map(str, words)], check=True)

    def _measure_and_train(self, name: str, ipc: int, seeds: int) -> None:
        paths = (self.work / name, self.work / "val", self.work / "results")
        self._coreset("measure", *paths, "--backbone", BACKBONE)
        epochs = PUBLISHED_EPOCHS[ipc] // EPOCHS_SHARE
        shortened = ("--epochs", epochs, "--size", SIZE, "--evaluations", EVALUATIONS)
        self._coreset("train", *paths, *shortened, "--repeats", seeds)

    def _costs(self) -> Iterator[Row]:
        for cost in construction_cost(read_ledger(self.work / "ccs-10")):
            names = ("stage", "wall_seconds", "cpu_seconds", "images", "device")
            yield {"artifact": "ccs-10"} | {name: getattr(cost, name) for name in names}

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


def _without_paths(row: Mapping[str, Any]) -> Row:
    return {name: value for name, value in row.items() if name not in {"set_path", "val_path"}}


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
    return "\n".join(f"- IPC {each.setting.ipc}: {each.sentence}." for each in compared)


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
