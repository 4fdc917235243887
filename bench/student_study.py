"""Coresets of ImageNette under all three protocols, shortened to what two cores train in an hour.

    python -m coreset.bench.student_study [--minutes 80] [--dry]

Three sets (random; CCS by aum of a linear proxy; CCS by aum of visual prototypes), ResNet-18, 50
validation images a class. Hard labels: 200 of 2000 epochs at IPC 10 with three seeds, 50 of 1500 at
IPC 50; RDED and EDC: 120 of 300 epochs at IPC 10, with EfficientNet-Lite0, and MobileNetV2 for EDC
beside it. The size is the largest of 128, 96 and 64 px for which all of it takes ``--minutes``, by
a calibration that is kept with the artifacts. A run that was stopped goes on.

The figures of the study stand beside ours: whole trainings at 224 px, on photographs of ILSVRC.
Teachers and backbones were trained on most of the photographs that fastai's split tests on.

Keeps artifacts in the folder of the work, and writes ``bench/results/student_study.jsonl``.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import tyro
from scipy.stats import ttest_1samp

from coreset.bench.docs import Block, machine, markdown
from coreset.bench.harness import ROOT, Options, Row, records_of
from coreset.bench.processes import run_coreset
from coreset.engine.condensed.condensed_set import SetInfo
from coreset.engine.evaluation.result_tables import STUDENTS
from coreset.engine.evaluation.results import Results
from coreset.kernels.measures import difference_interval

BACKBONE, MOBILENET = "tf_efficientnet_lite0", "mobilenetv2_100_same"
MOBILENET_FILE = f"{MOBILENET}_in1k.safetensors"
SETS = ("random", "aum", "visual")
STUDY_NAMES = {"random": "Random", "aum": "AUM", "visual": "Concepts"}
SIZES, CALIBRATION_NAME = (128, 96, 64), "size.txt"
CALIBRATED_EPOCHS = 2


class Training(NamedTuple):
    """Students of one protocol and IPC."""

    protocol: str
    ipc: int
    epochs: int
    of: int
    """Epochs of the whole protocol."""
    seeds: int
    study: Mapping[str, float]
    """Best top-1 of the study's Tables 4 and 7 for ResNet-18, by set."""


TRAININGS = (
    Training("hard", 10, 200, 2000, 3, {"random": 44.9, "aum": 57.0, "visual": 53.3}),
    Training("rded", 10, 120, 300, 1, {"random": 61.4, "aum": 60.9, "visual": 61.1}),
    Training("edc", 10, 120, 300, 1, {"random": 63.56, "aum": 65.88, "visual": 63.87}),
    Training("hard", 50, 50, 1500, 1, {"random": 73.6, "aum": 75.3, "visual": 69.0}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentStudy(Options):
    """Train students of three sets under three protocols."""

    work: Path = ROOT / "runs" / "students"
    """Folder of the artifacts, which are kept."""
    minutes: float = 80.0
    """Time that all trainings may take."""
    size: int = 0
    """Side of the students' images; 0 calibrates."""
    precision: str = "bf16"
    """bf16 or fp32."""

    def run(self) -> None:
        """Select, calibrate, train, and record the accuracies."""
        os.environ["CORESET_CACHE"] = str(self.work.resolve() / "cache")
        self.record_parts("student_study", {"trainings": self._rows})

    def _rows(self) -> Iterator[Row]:
        self._select()
        size = self.size or self._calibrated()
        for training in TRAININGS:
            best: dict[str, list[float]] = {}
            for name in SETS:
                self._train(training, name, size, training.epochs, training.seeds)
            for row in self._trained(training, size):
                best[row["set"]] = row["best"]
                yield row
            if training.seeds > 1:
                low, high = difference_interval(
                    np.array(best["aum"]), np.array(best["random"]), 0.95, paired=True
                )
                yield {
                    "protocol": training.protocol, "ipc": training.ipc, "set": "aum - random",
                    "low": round(low, 2), "high": round(high, 2),
                }  # fmt: skip

    def _select(self) -> None:
        source = self.data.resolve() / "imagenette"
        place = self.work.resolve()
        for split in ("train", "val"):
            words = ("--name", "imagenette", "--split", split)
            run_coreset("pack", source / split, place / split, *words)
        train, backbone = place / "train", ("--backbone", BACKBONE)
        run_coreset("score", train, place / "scores", "--proxy", "linear", *backbone)
        run_coreset("concepts", "visual", train, place / "bank", *backbone)
        concepts = ("--proxy", "concept", "--concepts", place / "bank")
        run_coreset("score", train, place / "concept-scores", *concepts)
        for ipc in sorted({training.ipc for training in TRAININGS}):
            asked = ("--ipc", ipc)
            run_coreset("select", train, place / f"random-{ipc}", *asked)
            run_coreset("select", place / "scores", place / f"aum-{ipc}", *asked)
            # The study has no misratio for visual prototypes: that of aum is taken.
            misratio = SetInfo.read(place / f"aum-{ipc}").parameters["misratio"]
            visual = place / f"visual-{ipc}"
            run_coreset("select", place / "concept-scores", visual, *asked, "--misratio", misratio)

    def _calibrated(self) -> int:
        """Return the largest size at which all trainings take ``minutes``, from two epochs each."""
        kept = self.work / CALIBRATION_NAME
        for size in SIZES:
            if kept.exists():
                break
            seconds = 0.0
            for training in TRAININGS:
                self._train(training, "random", size, CALIBRATED_EPOCHS, 1, results="calibration")
                row = Results(self.work / "calibration").rows(STUDENTS)[-1]
                epochs = training.epochs * training.seeds * len(SETS)
                seconds += row["train_seconds"] / CALIBRATED_EPOCHS * epochs
            print(f"{size} px: about {seconds / 60:.0f} of {self.minutes:.0f} minutes", flush=True)
            if seconds <= 60 * self.minutes or size == SIZES[-1]:
                kept.write_text(str(size))
        return int(kept.read_text())

    def _train(
        self, training: Training, name: str, size: int, epochs: int, seeds: int,
        *, results: str = "results",
    ) -> None:  # fmt: skip
        place, teachers = self.work.resolve(), list[object]()
        if training.protocol != "hard":
            teachers = ["--teachers", BACKBONE]
        if training.protocol == "edc":
            file = self.data.resolve() / "weights" / MOBILENET_FILE
            teachers.append(f"{MOBILENET}={file}")
        few = ("--evaluations", 20) if training.protocol == "hard" else ()
        run_coreset(
            "train", place / f"{name}-{training.ipc}", place / "val", place / results,
            "--protocol", training.protocol, "--size", size, "--epochs", epochs, *few,
            "--precision", self.precision, "--val-per-class", 50, "--repeats", seeds, *teachers,
        )  # fmt: skip

    def _trained(self, training: Training, size: int) -> Iterator[Row]:
        rows = Results(self.work / "results").complete_rows(STUDENTS)
        for name in SETS:
            own = [
                row for row in rows
                if Path(row["set_path"]).name == f"{name}-{training.ipc}"
                and row["protocol"].startswith(f"{training.protocol}@")
                and (row["size"], row["epochs"]) == (size, training.epochs)
            ]  # fmt: skip
            own.sort(key=lambda row: row["seed"])
            best = [row["top1_best"] for row in own]
            yield {
                "protocol": training.protocol, "stamp": own[0]["protocol"], "ipc": training.ipc,
                "set": name, "method": own[0]["method"], "size": size, "epochs": training.epochs,
                "of": training.of, "precision": own[0]["precision"], "n_val": own[0]["n_val"],
                "best": best, "last": [row["top1_last"] for row in own],
                "study": training.study[name], "digest": own[0]["protocol_digest"],
                "seconds": round(sum(row["train_seconds"] for row in own)),
            }  # fmt: skip


def shown(values: list[float]) -> str:
    """Write a mean, and the values behind it if there are several."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{fmean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def _table() -> str:
    rows = [row for row in records_of("student_study.trainings") if "best" in row]
    lines = [
        [
            f"`{row['stamp']}`", str(row["ipc"]), f"`{row['method']}`",
            f"{row['epochs']} of {row['of']}", shown(row["best"]), shown(row["last"]),
            f"{row['study']:.1f} ({STUDY_NAMES[row['set']]})",
        ]
        for row in rows
    ]  # fmt: skip
    header = ["protocol", "IPC", "set", "epochs", "best top-1 (%)", "last", "the study's"]
    return markdown(header, lines)


def _verdict() -> str:
    rows = records_of("student_study.trainings")
    row = next(row for row in rows if "low" in row)
    best = {each["set"]: each["best"] for each in rows[: len(SETS)]}  # of hard labels at IPC 10
    leads = [one - other for one, other in zip(best["aum"], best["random"], strict=True)]
    _, p_value = ttest_1samp(leads, 0, alternative="greater")
    return (
        f"With hard labels at IPC {row['ipc']}, `aum` leads random by "
        f"{', '.join(f'{lead:.1f}' for lead in leads)} points, seed by seed: at 95 % from "
        f"{row['low']:.1f} to {row['high']:.1f}, by a one-sided paired test p = "
        f"{p_value:.3f}."
    )


def _machine() -> str:
    row = next(row for row in records_of("student_study.trainings") if "best" in row)
    how = f"ResNet-18 at {row['size']} px in {row['precision']}, {row['n_val']} validation images"
    return f"{how}; {machine(row)}."


BLOCKS: Mapping[str, Block] = {
    "student_study": _table,
    "student_study_verdict": _verdict,
    "student_study_machine": _machine,
}

if __name__ == "__main__":
    tyro.cli(StudentStudy).run()
