"""Speed of students: their inputs and steps beside the published structure, on the same images.

    python -m coreset.bench.students [--part inputs steps rded labels]

- ``inputs``: processor time of an image but for forward pass, backward pass and update. With one
  thread of torch, because threads that wait for others would count as work.
- ``steps``: epochs of hard labels, on all threads.
- ``rded``: one update of running statistics in place of the published second forward pass (RDED's
  ``validation/main.py``: in training mode, without gradients, before the step).
- ``labels``: a student on kept labels beside one whose teacher labels on the fly.

Students are ResNet-18 except in ``steps``; teachers are ResNet-18 with random weights, which take
as long as trained ones. Whole images are decoded in the first round, which is not timed: published
codes decode before they train. Nothing is compiled. Writes ``bench/results/students.jsonl``.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias, get_args

import torch
import tyro
from torch import Tensor

from coreset.bench.docs import Block, Table, contender, if_present, machine, optional
from coreset.bench.harness import Contender, Options, Row, race, records_of
from coreset.bench.inputs import repeated_tree
from coreset.bench.peers.students import hard_loader, mixed_batches, soft_loader
from coreset.bench.processes import run_coreset
from coreset.bench.student_ways import (
    CPU,
    RESNET,
    SmallSet,
    difference,
    epochs_of,
    inputs_of,
    losses_alike,
    pass_before,
    published_epochs,
    unlike,
)
from coreset.engine.evaluation.protocols.base import Protocol
from coreset.engine.evaluation.soft_labels import KeptLabels
from coreset.engine.runtime.device import has_fast_bfloat16, resolve_device, seeded_torch
from coreset.shards.format.dataset import Dataset

Part: TypeAlias = Literal["inputs", "steps", "rded", "labels"]
SIZES: Mapping[int, float] = {128: 3.0, 224: 2.0}
"""Sizes of inputs, and how many times less work they should take than the published."""
SHARE_GOAL, BF16_GOAL, RDED_GOAL, LABELS_GOAL = 0.05, 2.0, 1.1, 1.15
"""Most of a step that inputs may take, and least ratios of speeds."""
PEER, OURS, HALF, STEP = "published structure", "ours", "ours, bfloat16", "step in float32"
TWICE, ONCE = "second forward pass", "momentum 0.19"
TEACHER, KEPT = "teacher on the fly", "kept labels"
EPOCHS_PER_TURN, STEP_IMAGES = 4, 20
LOSS_WITHIN, SAME_LOSS_WITHIN, SAME_WITHIN = 0.25, 0.05, 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentsBench(Options):
    """Measure the training of students."""

    part: tuple[Part, ...] = get_args(Part)
    """Parts to measure."""
    images: int = 100
    """Images of the set."""
    sizes: tuple[int, ...] = (*SIZES,)
    """Sides of the part inputs, in pixels."""
    size: int = 128
    """Side of the other parts, in pixels."""
    students: tuple[str, ...] = (RESNET, "resnetap10")
    """Students of the part steps."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        resolve_device("cpu")
        torch.set_num_threads(self.threads)
        parts = {
            "inputs": self.inputs, "steps": self.steps, "rded": self.rded, "labels": self.labels
        }  # fmt: skip
        chosen = {part: partial(self._rows, parts[part]) for part in self.part}
        self.record_parts("students", chosen)

    def _rows(self, part: Callable[[SmallSet], Iterator[Row]]) -> Iterator[Row]:
        with TemporaryDirectory(dir=self.work) as scratch:
            source, packed = self.data / "imagenette" / "train", Path(scratch, "packed")
            tree = repeated_tree(source, Path(scratch, "images"), self.images)
            run_coreset("pack", tree.path, packed)
            about = {"threads": self.threads, "images": self.images, "size": self.size}
            for row in part(SmallSet(tree.files(), Dataset.open(packed))):
                yield about | row

    def inputs(self, few: SmallSet) -> Iterator[Row]:
        """Race processor time of some epochs of inputs, and of a step."""
        torch.set_num_threads(1)
        with seeded_torch(0, CPU):  # the peer's draws are the global ones
            for size, name in product(self.sizes, ("hard", "rded")):
                rows = self._inputs(few, few.protocol(name, size))
                about = {"protocol": f"{name}@1", "size": size, "share_goal": SHARE_GOAL}
                yield from beside(rows, {OURS: (PEER, SIZES.get(size))}, about)
        torch.set_num_threads(self.threads)

    def _inputs(self, few: SmallSet, protocol: Protocol) -> Iterator[Row]:
        student, made = few.student(protocol), dict[str, list[Tensor]]()
        load = soft_loader if protocol.crops else hard_loader
        loader = load(few.files, protocol.size, protocol.batch)
        inputs = torch.randn((STEP_IMAGES, 3, protocol.size, protocol.size))
        inputs = inputs.contiguous(memory_format=student.layout)
        entries = [
            _making(PEER, lambda: (batch[0] for batch in mixed_batches(loader)), made),
            _making(OURS, partial(inputs_of, student, iter(count())), made),
            Contender(
                name=STEP,
                role="limit",
                run=lambda _: student.trainer.step(inputs, lambda logits: logits.square().mean()),
            ),
        ]
        images = EPOCHS_PER_TURN * len(few.files)
        for row in race(entries, repeats=self.repeats, work=self.work, clock=time.process_time):
            n = STEP_IMAGES if row["contender"] == STEP else images
            if "median_seconds" in row:
                row["milliseconds"] = round(1e3 * row["median_seconds"] / n, 3)
            if over := row.get("speed_over", {}).get(STEP):
                row["share"] = round(STEP_IMAGES / images / over, 4)
            yield row

    def steps(self, few: SmallSet) -> Iterator[Row]:
        """Race epochs of hard labels."""
        fast = has_fast_bfloat16(CPU)
        goals = {OURS: (PEER, 1.0), HALF: (OURS, BF16_GOAL if fast else None)}
        for name in self.students:
            protocol = few.protocol("hard", self.size)
            half = few.protocol("hard+bf16", self.size)
            ways = {
                PEER: published_epochs(few, protocol, name),
                OURS: epochs_of(few.student(protocol, name)),
                HALF: epochs_of(few.student(half, name)),
            }
            rows = self._race(ways, losses_alike(PEER, LOSS_WITHIN))
            yield from beside(rows, goals, {"student": name, "fast_bfloat16": fast})

    def rded(self, few: SmallSet) -> Iterator[Row]:
        """Race both ways to update running statistics twice; weights and statistics are equal."""
        protocol = few.protocol("rded", self.size)
        once = few.student(protocol)
        twice = few.student(replace(protocol, statistics_updates=1))
        networks = {TWICE: twice.trainer.network, ONCE: once.trainer.network}
        networks[TWICE].register_forward_pre_hook(pass_before)

        def check(way: str, _loss: float) -> str:
            far = 0.0 if way == TWICE else difference(networks[way], networks[TWICE])
            return f"weights or statistics differ by {far:.1e}" if far > SAME_WITHIN else ""

        rows = self._race({TWICE: epochs_of(twice), ONCE: epochs_of(once)}, check)
        yield from beside(rows, {ONCE: (TWICE, RDED_GOAL)})

    def labels(self, few: SmallSet) -> Iterator[Row]:
        """Race the same epochs of two students of one seed."""
        protocol, epochs = few.protocol("rded", self.size), self.repeats + 1
        with TemporaryDirectory(dir=self.work) as folder:
            shape = (epochs, len(few.files), protocol.n_classes)
            kept = KeptLabels(Path(folder), {"bench": "labels"}, shape)
            first = epochs_of(few.student(protocol, kept=kept))
            for _ in range(epochs):
                first()
            ways = {
                TEACHER: epochs_of(few.student(protocol)),
                KEPT: epochs_of(few.student(protocol, kept=kept)),
            }
            rows = self._race(ways, losses_alike(TEACHER, SAME_LOSS_WITHIN))
            about = {"label_bytes": kept.n_bytes}
            yield from beside(rows, {KEPT: (TEACHER, LABELS_GOAL)}, about)

    def _race(
        self, ways: Mapping[str, Callable[[], float]], check: Callable[[str, float], str]
    ) -> list[Row]:
        """Race epochs, the first way being the peer; ``check`` gets the way and its loss."""
        losses = dict[str, float]()
        entries = [
            Contender(
                name=way,
                role="ours" if place else "peer",
                run=lambda _, way=way, epoch=epoch: losses.update({way: epoch()}),
                check=lambda _, way=way: check(way, losses[way]),
            )
            for place, (way, epoch) in enumerate(ways.items())
        ]
        return race(entries, repeats=self.repeats, work=self.work, images=self.images)


def _making(
    way: str, epoch: Callable[[], Iterable[Tensor]], made: dict[str, list[Tensor]]
) -> Contender:
    def run(_out: Path) -> None:
        made[way] = [inputs for _ in range(EPOCHS_PER_TURN) for inputs in epoch()]

    def check(_out: Path) -> str:
        return unlike(torch.cat(made[way]), torch.cat(made[PEER]))

    return Contender(name=way, role="peer" if way == PEER else "ours", run=run, check=check)


def beside(
    rows: Iterable[Row], goals: Mapping[str, tuple[str, float | None]], about: Row | None = None
) -> Iterator[Row]:
    """Add how many times as fast as its rival a contender was, and its goal."""
    for row in rows:
        rival, goal = goals.get(row["contender"], ("", None))
        times = row.get("speed_over", {}).get(rival)
        yield (about or {}) | row | {"rival": rival, "times": times, "goal": goal}


_TIMES: Mapping[str, Callable[[Row], str] | str] = {
    "times the speed of": optional("times", "{times:.2f} ({rival})"),
    "goal": optional("goal", "at least {goal:g}"),
}
_EPOCHS = {"way": contender, "images/s": if_present("{images_per_second:.1f}", reason=True)}
BLOCKS: Mapping[str, Block] = {
    "students_machine": lambda: "".join(map(machine, records_of("students.inputs")[:1])),
    "students_inputs": Table(
        "students.inputs",
        {
            "protocol": "{protocol}",
            "px": "{size}",
            "way": contender,
            "processor ms an image": if_present("{milliseconds:.2f}", reason=True),
            **_TIMES,
            "share of a step": optional("share", "{share:.1%}"),
        },
    ),
    "students_steps": Table("students.steps", {"student": "{student}", **_EPOCHS, **_TIMES}),
    "students_rded": Table("students.rded", {**_EPOCHS, **_TIMES}),
    "students_labels": Table("students.labels", {**_EPOCHS, **_TIMES}),
}


if __name__ == "__main__":
    tyro.cli(StudentsBench).run()
