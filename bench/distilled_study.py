"""RDED and FADRM+ sets of ImageNette beside Random and AUM, as far as two cores build and train.

    python -m coreset.bench.distilled_study [--dry]

Both are built from EfficientNet-Lite0 and MobileNetV2, at 10 images a class: RDED as published (300
images a class, 5 crops each, mosaics of 224 px) from the first alone; FADRM+ from both in turn at
112 and 128 px, 300 of 2,000 iterations, from those mosaics. Students are those of
`bench.student_study`: trainings of that folder are not repeated.

Keeps artifacts in the folder of the work, and writes ``bench/results/distilled_study.jsonl``.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro

from coreset.bench.docs import Block, machine, markdown
from coreset.bench.harness import Row, records_of
from coreset.bench.processes import run_coreset
from coreset.bench.student_study import (
    BACKBONE,
    MOBILENET,
    MOBILENET_FILE,
    TRAININGS,
    StudentStudy,
    shown,
)
from coreset.engine.artifacts.ledger import construction_cost, read_ledger
from coreset.engine.evaluation.result_tables import STUDENTS
from coreset.engine.evaluation.results import Results

IPC, SIZE = 10, 64
METHODS = {"random": "Random", "aum": "AUM", "rded": "", "fadrm-plus": "FADRM+"}
"""Names of the study, by the sets' names here; it has no row for RDED's set."""
PUBLISHED = {
    "hard": {"Random": 44.9, "AUM": 57.0, "FADRM+": 53.6},
    "rded": {"Random": 61.4, "AUM": 60.9, "FADRM+": 63.4},
}
"""Best top-1 of the study's Tables 4 and 7 for ResNet-18."""
MEASURED = {
    "r1": "representativeness_r1@1",
    "d1": "diversity_d1@1",
    "r2": "representativeness_r2@1",
    "d2": "diversity_d2@1",
    "frechet": f"frechet_{BACKBONE}@1",
}
STEPS = ("--iterations", 300, "--size", 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilledStudy(StudentStudy):
    """Build two distilled sets, train on them, measure them and what they cost."""

    def run(self) -> None:
        """Build, train, measure, and record."""
        os.environ["CORESET_CACHE"] = str(self.work.resolve() / "cache")
        self.record_parts("distilled_study", {"sets": self._sets})

    def _sets(self) -> Iterator[Row]:
        self._select()
        self._distill()
        place, size = self.work.resolve(), self.size or SIZE
        for name, of_study in METHODS.items():
            row: Row = {"set": name, "study_name": of_study, "ipc": IPC, "size": size}
            for training in TRAININGS[:2]:
                self._train(training, name, size, training.epochs, training.seeds)
                row[training.protocol] = self._best(training.protocol, name, size, training.epochs)
                row[f"{training.protocol}_epochs"] = f"{training.epochs} of {training.of}"
                row[f"{training.protocol}_study"] = PUBLISHED[training.protocol].get(of_study)
            words = ("measure", place / f"{name}-{IPC}", place / "val", place / "results")
            metrics = run_coreset(*words, "--backbone", BACKBONE, "--metrics", "coverage,fid")
            row |= {name: metrics[stamp] for name, stamp in MEASURED.items()}
            row["stages"] = _stages(place / f"{name}-{IPC}")
            yield row

    def _distill(self) -> None:
        place = self.work.resolve()
        teachers = BACKBONE, f"{MOBILENET}={self.data.resolve() / 'weights' / MOBILENET_FILE}"
        words = ("distill", place / "train", place / f"rded-{IPC}", "--method", "rded")
        run_coreset(*words, "--ipc", IPC, "--teachers", BACKBONE)
        words = ("distill", place / "train", place / f"fadrm-plus-{IPC}", "--method", "fadrm+")
        patches = ("--patches", place / f"rded-{IPC}")
        run_coreset(*words, "--ipc", IPC, "--teachers", *teachers, *patches, *STEPS)

    def _best(self, protocol: str, name: str, size: int, epochs: int) -> list[float]:
        """Return the best top-1 of the students of a set, by seed."""
        rows = [
            row
            for row in Results(self.work / "results").complete_rows(STUDENTS)
            if Path(row["set_path"]).name == f"{name}-{IPC}"
            and row["protocol"].startswith(f"{protocol}@")
            and (row["size"], row["epochs"]) == (size, epochs)
        ]
        return [row["top1_best"] for row in sorted(rows, key=lambda row: row["seed"])]


def _stages(condensed: Path) -> dict[str, list[float]]:
    """Sum wall and processor seconds by stage: FADRM+ has its own synthesis and that of RDED."""
    stages: dict[str, list[float]] = {}
    for cost in construction_cost(read_ledger(condensed)):
        wall, cpu = stages.get(cost.stage, [0.0, 0.0])
        stages[cost.stage] = [round(wall + cost.wall_seconds, 1), round(cpu + cost.cpu_seconds, 1)]
    return stages


def _table() -> str:
    rows = records_of("distilled_study.sets")
    lines = [
        [
            f"`{row['set']}`",
            *(_beside(row, protocol) for protocol in ("hard", "rded")),
            *(f"{row[metric]:.3f}" for metric in ("r1", "d1", "r2", "d2")),
            f"{row['frechet']:.1f}",
        ]
        for row in rows
    ]
    header = ["set", "hard (the study's)", "rded (the study's)", "R1", "D1", "R2", "D2", "Frechet"]
    return markdown(header, lines)


def _beside(row: Row, protocol: str) -> str:
    published = row[f"{protocol}_study"]
    return f"{shown(row[protocol])} ({'-' if published is None else published})"


def _costs() -> str:
    rows = records_of("distilled_study.sets")
    stages = list(dict.fromkeys(stage for row in rows for stage in row["stages"]))
    lines = [
        [f"`{row['set']}`", *(_seconds(row["stages"].get(stage)) for stage in stages)]
        for row in rows
    ]
    return markdown(["set", *(f"`{stage}` (s)" for stage in stages)], lines)


def _seconds(spent: list[float] | None) -> str:
    return "-" if spent is None else f"{spent[0]:,.0f} ({spent[1]:,.0f} CPU)"


def _machine() -> str:
    row = records_of("distilled_study.sets")[0]
    how = f"ResNet-18 at {row['size']} px, {row['hard_epochs']} and {row['rded_epochs']} epochs"
    return f"{how}; {machine(row)}."


BLOCKS: Mapping[str, Block] = {
    "distilled_study": _table,
    "distilled_study_costs": _costs,
    "distilled_study_machine": _machine,
}

if __name__ == "__main__":
    tyro.cli(DistilledStudy).run()
