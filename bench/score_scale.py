"""How time, memory and store of ``coreset score`` grow with the data set.

    python -m coreset.bench.score_scale [--part pixels linear]

- ``pixels``: synthetic images of few pixels through ``synth``, ``decode`` and ``score`` with
  ResNet-18.
- ``linear``: as many records as ImageNet has, through ``score --proxy linear``. Their features are
  drawn at random around the centres of 1,000 classes and lie where ``coreset embed`` leaves them.

Every command runs in a process of its own. Writes ``bench/results/score_scale.jsonl``, keeping the
records of parts that were not run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import tyro

from coreset.bench.record import RESULTS, read, record, write
from coreset.bench.score_scale_parts import Row, Setting, linear, pixels

Part: TypeAlias = Literal["pixels", "linear"]
PARTS: tuple[Part, ...] = get_args(Part)
ROWS: Mapping[Part, Callable[[Setting], Iterator[Row]]] = MappingProxyType(
    {"pixels": pixels, "linear": linear}
)
_ROOT = Path(__file__).resolve().parent.parent
_NAME = "score_scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreScaleBench:
    """Measure scoring at growing sizes."""

    part: tuple[Part, ...] = PARTS
    """What to measure."""
    images: tuple[int, ...] = (10_000, 30_000, 100_000)
    """Sizes of the synthetic data sets, growing."""
    pixel_epochs: int = 1
    """Epochs of ResNet-18."""
    pixel_batch: int = 1024
    """Images per step of ResNet-18."""
    side: int = 20
    """Side of the synthetic images in pixels."""
    crop: int = 17
    """Side of the crops in pixels."""
    records: tuple[int, ...] = (100_000, 400_000, 1_281_167)
    """Sizes of the data sets without pixels, growing."""
    linear_epochs: int = 3
    """Epochs of the linear proxy."""
    linear_batch: int = 4096
    """Records per step of the linear proxy."""
    final: bool = True
    """Look once more at every image at the end, as ``coreset score`` does by default."""
    seed: int = 0
    """Of images, features and training."""
    work: Path = _ROOT / "runs"
    """Folder to work in, of 5 GB at the given sizes. What is made there is removed."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record what came out."""
        self.work.mkdir(parents=True, exist_ok=True)
        setting = Setting(
            images=self.images,
            pixel_epochs=self.pixel_epochs,
            pixel_batch=self.pixel_batch,
            side=self.side,
            crop=self.crop,
            records=self.records,
            linear_epochs=self.linear_epochs,
            linear_batch=self.linear_batch,
            final=self.final,
            seed=self.seed,
            work=self.work.resolve(),
        )
        for part in self.part:
            rows: list[Row] = []
            for row in ROWS[part](setting):
                print(part, row, flush=True)
                rows.append(record(f"{_NAME}.{part}", row))
            if not self.dry:
                self._keep(part, rows)

    def _keep(self, part: Part, rows: list[Row]) -> None:
        there = read(_NAME) if (RESULTS / f"{_NAME}.jsonl").is_file() else []
        others = [one for one in there if one["bench"] != f"{_NAME}.{part}"]
        print(f"written: {write(_NAME, [*others, *rows])}", flush=True)


if __name__ == "__main__":
    tyro.cli(ScoreScaleBench).run()
