"""What ``coreset score`` is worth as a whole: its speed, and what its scores find.

    python -m coreset.bench.score [--data FOLDER] [--work FOLDER] [--part pipeline usual-loop ...]

- ``pipeline``: images/s from decoded pixels beside the same step on one resident batch.
- ``usual-loop``: speed and scores beside the usual torchvision loop in float32.
- ``waiting``: what threads that spin or sleep while they wait cost.
- ``noise``: area under the ROC of every score for finding labels that were flipped on purpose.
- ``labels``: the same of out-of-fold scores, beside cleanlab on the same features.
- ``recipes``: what ``coreset scores compare`` says of cheaper recipes.

FOLDER of the data holds ``imagenette/train`` and ``labels/noisy_imagenette.csv``. The artifacts of
the last three stay in the folder of the work and are not made again, so an interrupted run
continues. Writes ``bench/results/score.jsonl``, keeping the records of parts that were not run.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import tyro

from coreset.bench.record import RESULTS, read, record, write
from coreset.bench.score_labels import labels
from coreset.bench.score_loops import usual_loop
from coreset.bench.score_noise import noise, recipes
from coreset.bench.score_parts import Row, Setting, pipeline
from coreset.bench.score_waiting import waiting
from coreset.engine.runtime.progress import Display, choose_display

Part: TypeAlias = Literal["pipeline", "usual-loop", "waiting", "noise", "labels", "recipes"]
PARTS: tuple[Part, ...] = get_args(Part)
ROWS: Mapping[Part, Callable[[Setting], Iterator[Row]]] = MappingProxyType(
    {
        "pipeline": pipeline,
        "usual-loop": usual_loop,
        "waiting": waiting,
        "noise": noise,
        "labels": labels,
        "recipes": recipes,
    }
)
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBench:
    """Measure scoring."""

    data: Path = Path("../shared/data")
    """Folder of the images and labels."""
    work: Path = _ROOT / "runs" / "score"
    """Where artifacts are made and kept."""
    part: tuple[Part, ...] = PARTS
    """What to measure."""
    repeats: int = 5
    """Timed rounds, after one that warms up."""
    steps: int = 4
    """Training steps of a turn of ``pipeline``."""
    sizes: tuple[int, ...] = (96, 128, 160)
    """Sides in pixels of the crops of ``pipeline``."""
    loop_images: int = 100
    """Images per class of a turn of ``usual-loop`` and ``waiting``."""
    score_images: int = 200
    """Images per class whose scores ``usual-loop`` compares."""
    score_epochs: int = 8
    """Epochs of those."""
    threads: int = 2
    """Cores, and workers of the usual loop."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record what came out."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.threads])
        choose_display(Display.QUIET)
        self.work.mkdir(parents=True, exist_ok=True)
        # Features of an earlier run would bring the time that they took then.
        os.environ["CORESET_CACHE"] = str(self.work.resolve() / "cache")
        setting = Setting(
            data=self.data.resolve(),
            work=self.work.resolve(),
            repeats=self.repeats,
            steps=self.steps,
            sizes=self.sizes,
            loop_images=self.loop_images,
            score_images=self.score_images,
            score_epochs=self.score_epochs,
            threads=len(os.sched_getaffinity(0)),
        )
        for part in self.part:
            print(part, flush=True)
            rows: list[Row] = []
            for row in ROWS[part](setting):
                print(row, flush=True)
                rows.append(record(f"score.{part}", row))
            self._keep(part, rows)

    def _keep(self, part: Part, rows: list[Row]) -> None:
        if self.dry:
            return
        there = read("score") if (RESULTS / "score.jsonl").is_file() else []
        others = [one for one in there if one["bench"] != f"score.{part}"]
        print(f"written: {write('score', [*others, *rows])}", flush=True)


if __name__ == "__main__":
    tyro.cli(ScoreBench).run()
