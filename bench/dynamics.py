"""What accumulating all scores costs, and what is left of the way to a GPU.

    python -m coreset.bench.dynamics [--part step peers ...]

- ``step``: ``Dynamics.update`` beside the training step whose logits it takes.
- ``peers``: samples per second beside the package ``aum``, on the same logits.
- ``epoch``: a whole epoch of ImageNet's size, with its end and its commit.
- ``graph``: graphs, kernels, passes over the logits, host synchronisations. Nothing is timed.
- ``profile``: where the time of a training step goes.
- ``arithmetic``: operations and bytes of a training step, counted on tensors without values.

Writes ``bench/results/dynamics.jsonl``, keeping the records of parts that were not run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import tyro

from coreset.bench.dynamics_counts import arithmetic, compiled_graph, host_reads, profiled
from coreset.bench.dynamics_parts import Row, Setting, epoch_costs, step_share
from coreset.bench.dynamics_peers import peers
from coreset.bench.record import RESULTS, read, record, write

Part: TypeAlias = Literal["step", "peers", "epoch", "graph", "profile", "arithmetic"]
PARTS: tuple[Part, ...] = get_args(Part)
_ROOT = Path(__file__).resolve().parent.parent


def _graph(setting: Setting) -> Iterator[Row]:
    yield compiled_graph(setting)
    yield from host_reads(setting)


ROWS: Mapping[Part, Callable[[Setting], Iterator[Row]]] = MappingProxyType(
    {
        "step": step_share,
        "peers": peers,
        "epoch": epoch_costs,
        "graph": _graph,
        "profile": profiled,
        "arithmetic": arithmetic,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicsBench:
    """Measure the accumulation of scores."""

    part: tuple[Part, ...] = PARTS
    """What to measure."""
    samples: int = 1_281_167
    """Of the data set; the default is ImageNet's training set."""
    classes: int = 1000
    """Of the logits."""
    batch: int = 256
    """Rows of a batch of logits."""
    size: int = 64
    """Side of the images of the training step, in pixels."""
    repeats: int = 7
    """Timed rounds, after one that warms up."""
    work: Path = _ROOT / "runs"
    """Folder to commit in. What is made there is removed."""
    dry: bool = False
    """Record nothing."""

    def run(self) -> None:
        """Run the parts in turn, print and record what came out."""
        self.work.mkdir(parents=True, exist_ok=True)
        setting = Setting(
            samples=self.samples,
            classes=self.classes,
            batch=self.batch,
            size=self.size,
            repeats=self.repeats,
            work=self.work,
        )
        for part in self.part:
            print(part, flush=True)
            rows = [record(f"dynamics.{part}", row) for row in ROWS[part](setting)]
            self._keep(part, rows)

    def _keep(self, part: Part, rows: list[Row]) -> None:
        for row in rows:
            print(row, flush=True)
        if self.dry:
            return
        there = read("dynamics") if (RESULTS / "dynamics.jsonl").is_file() else []
        others = [one for one in there if one["bench"] != f"dynamics.{part}"]
        print(f"written: {write('dynamics', [*others, *rows])}", flush=True)


if __name__ == "__main__":
    tyro.cli(DynamicsBench).run()
