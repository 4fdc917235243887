"""``coreset demo``: the whole path on scikit-learn's handwritten digits, nothing downloaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coreset.engine.artifacts.ledger import (
    construction_cost,
    read_ledger,
    several_stages,
    total_wall_seconds,
)
from coreset.engine.artifacts.writer import output_folder, require_output
from coreset.engine.condensed.methods.kmeans import KmeansParameters
from coreset.engine.condensed.samplers import CcsParameters
from coreset.engine.evaluation.results import STUDENTS, Results
from coreset.engine.report.results import LEAST_STUDENTS, comparisons, plus_minus
from coreset.engine.report.sets import catalogue
from coreset.engine.runtime.fields import require_at_least
from coreset.engine.runtime.progress import say
from coreset.engine.scoring.setup import ScoringOptions
from coreset.engine.stages.options import Extractor, Result, Stage
from coreset.shards.format.files import new_directory, temporary_name

IPC = 10
PROXY_PIXELS, STUDENT_PIXELS = 32, 33
STUDENT = "convnet"
BY_CONCEPTS = "ccs-concept_visual_aum"
METHODS = ("random", "ccs-aum", BY_CONCEPTS, "kmeans")
TRAIN_SHARE = 0.75
SEEN = Extractor(backbone="tf_efficientnet_lite0", size=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Pack, score, select, distil, train, measure and report on 1,797 handwritten digits.

    Compares a random coreset, CCS coresets by AUM of a network and of visual concepts, and
    per-class k-means centroids, 10 images a class, by small students under a shortened hard-label
    protocol. Under two minutes on two cores; run again, it continues or repeats its answer.
    """

    out: Path = Path("demo-run")
    """Folder for everything that the demo makes."""
    epochs: int = 30
    """Epochs of each student (the protocol has 2000)."""
    repeats: int = 3
    """Students per set."""

    def __post_init__(self) -> None:
        require_at_least("epochs", self.epochs, 1)
        require_at_least("repeats", self.repeats, 1)

    def run(self) -> Result:
        """Write the digits as PNG files, run every verb on them, tell what came out."""
        require_output(self.out)
        write_digits(self.out / "images")
        stamp = ""
        with several_stages():
            for stage in self._stages():
                outcome = stage.run()
                stamp = outcome.data.get("protocol", stamp)
                say(f"{type(stage).__name__.lower()}: {outcome.lines[0]}")
        return self._outcome(stamp)

    def _stages(self) -> Iterator[Stage]:
        from coreset.engine.stages.concepts import Visual
        from coreset.engine.stages.distill import Distill
        from coreset.engine.stages.measure import Measure
        from coreset.engine.stages.pack import Pack
        from coreset.engine.stages.report import Report
        from coreset.engine.stages.score import Score
        from coreset.engine.stages.selection import Select
        from coreset.engine.stages.train import Train

        out = self.out
        train, val, results = out / "train", out / "val", out / "results"
        sets = [out / method for method in METHODS]
        for split in ("train", "val"):
            yield Pack(src=out / "images" / split, data=out / split, name="digits", split=split)
        yield Score(data=train, scores=out / "scores", size=PROXY_PIXELS, epochs=5, crop_scale=0.5)
        yield Select(source=train, condensed=out / "random", ipc=IPC)
        cut, small = CcsParameters(misratio=0.7), KmeansParameters(size=8)
        yield Select(source=out / "scores", condensed=out / "ccs-aum", ipc=IPC, parameters=cut)
        bank = out / "concepts"
        yield Visual(data=train, bank=bank, k=5, extractor=SEEN)
        of_bank = ScoringOptions(concepts=bank)
        yield Score(data=train, scores=out / "concept-scores", proxy="concept", options=of_bank)
        yield Select(
            source=out / "concept-scores", condensed=out / BY_CONCEPTS, ipc=IPC, parameters=cut
        )
        yield Distill(data=train, condensed=out / "kmeans", ipc=IPC, parameters=small)
        for path in sets:
            yield Train(
                condensed=path,
                val=val,
                results=results,
                student=STUDENT,
                epochs=self.epochs,
                size=STUDENT_PIXELS,
                evaluations=4,
                repeats=self.repeats,
            )
        for path in sets:
            yield Measure(condensed=path, val=val, results=results, extractor=SEEN)
        yield Report(results=results, html=out / "report.html")

    def _outcome(self, stamp: str) -> Result:
        ours = {"student": STUDENT, "size": STUDENT_PIXELS, "epochs": self.epochs}
        ours |= {"protocol": stamp}
        rows = [
            row
            for row in Results(self.out / "results").rows(STUDENTS)
            if row.items() >= ours.items() and row["seed"] < self.repeats
        ]
        best = {m: [row["top1_best"] for row in rows if row["method"] == m] for m in METHODS}
        table = [f"{'method':<22} {'top-1 %':>14} {'construction s':>16}"]
        for method, students in best.items():
            cost = total_wall_seconds(construction_cost(read_ledger(self.out / method)))
            table.append(f"{method:<22} {plus_minus(students, '+-'):>14} {cost:>16.1f}")
        of, report = f"{self.repeats} students, mean +- sample deviation", self.out / "report.html"
        means = {method: float(np.mean(students)) for method, students in best.items()}
        few = self.repeats < LEAST_STUDENTS
        advice = f"; take --repeats {LEAST_STUDENTS} or more" if few else ""
        lines = (
            "",
            f"{IPC} digits per class, {stamp}, best top-1 of {of}:",
            *table,
            comparisons(rows, catalogue(rows))[0].sentence + advice,
            "",
            f"the report with tables, plots and images: {report}",
            "next: coreset pack FOLDER DATA (your own images, one folder per class)",
        )
        return Result(lines, {"top1_best": means, "report": str(report)})


def write_digits(folder: Path) -> None:
    """Write the digits as 8 x 8 PNG files, all or none: three quarters train, the rest val."""
    if folder.exists():
        return
    scratch = temporary_name(folder)
    with output_folder(folder):
        new_directory(scratch)

    from PIL import Image
    from sklearn.datasets import load_digits

    from coreset.kernels.seeds import permutation

    values, labels = load_digits(return_X_y=True)
    images = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        members = members[permutation(len(members), label)]
        n_train = round(TRAIN_SHARE * len(members))
        for split, chosen in (("train", members[:n_train]), ("val", members[n_train:])):
            class_folder = scratch / split / f"digit-{label}"
            class_folder.mkdir(parents=True)
            for index in chosen:
                Image.fromarray(images[index]).save(class_folder / f"{index:04d}.png")
    scratch.rename(folder)  # not synced, which takes seconds: they can be written again
