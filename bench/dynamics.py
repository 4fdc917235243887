"""Cost of accumulating all scores.

    python -m coreset.bench.dynamics [--part step peers]

- ``step``: ``Dynamics.update`` beside the training step whose logits it takes.
- ``peers``: samples per second beside the package ``aum``, on the same logits.

Writes ``bench/results/dynamics.jsonl``, keeping the records of parts that were not run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.bench.docs import Block, Table, if_present, machine, optional
from coreset.bench.harness import Contender, Options, Row, absent, race, ratios, records_of
from coreset.engine.models.networks import build_network, memory_format_for, placed
from coreset.engine.runtime.device import generator_for, resolve_device
from coreset.engine.training.trainer import Trainer, sgd
from coreset.kernels.dynamics import SUMS, Dynamics

Part: TypeAlias = Literal["step", "peers"]
PARTS: tuple[Part, ...] = get_args(Part)
Batch: TypeAlias = tuple[Tensor, Tensor, Any]
"""Logits of shape (b, classes), labels of shape (b,), ids of shape (b,) or as a list."""
Update: TypeAlias = Callable[[Tensor, Tensor, Any], object]
STEP, EAGER, COMPILED = "training step", "all scores, eager", "all scores, compiled"
PEER = "aum"
GOALS = {COMPILED: 8.0}
"""Times the speed of the peer."""
SHARE_GOAL = 0.02
STEPS_PER_TURN, UPDATES_BESIDE_STEP, UPDATES_BESIDE_PEER = 4, 200, 1000
BUFFERS = 16
"""Different batches of logits, used in turn: those of ImageNet would fill 5 GB."""
LR = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicsBench(Options):
    """Measure the accumulation of scores."""

    part: tuple[Part, ...] = PARTS
    """Parts to measure."""
    samples: int = 1_281_167
    """Size of the data set; the default is ImageNet's training set."""
    classes: int = 1000
    """Columns of the logits."""
    batch: int = 256
    """Rows of a batch of logits."""
    size: int = 64
    """Side of the images of the training step, in pixels."""
    repeats: int = 7
    """Timed rounds, after one that warms up."""

    def run(self) -> None:
        """Run the parts in turn, print and record the results."""
        rows = {"step": self.step, "peers": self.peers}
        self.record_parts("dynamics", {part: partial(self._rows, rows[part]) for part in self.part})

    def _rows(self, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
        about = {"samples": self.samples, "classes": self.classes, "batch": self.batch}
        about |= {"size": self.size, "threads": torch.get_num_threads()}
        return (about | row for row in rows())

    def batches(self, dtype: torch.dtype, at_most: int | None = None) -> list[Batch]:
        """Make batches of an epoch: random logits and labels, and each id once, shuffled."""
        draws = generator_for(0)
        shape = (self.batch, self.classes)
        logits = [(3 * torch.randn(shape, generator=draws)).to(dtype) for _ in range(BUFFERS)]
        labels = [torch.randint(self.classes, shape[:1], generator=draws) for _ in range(BUFFERS)]
        ids = torch.randperm(self.samples, generator=draws).split(self.batch)[:at_most]
        return [
            (logits[i % BUFFERS][: len(part)], labels[i % BUFFERS][: len(part)], part)
            for i, part in enumerate(ids)
        ]

    def training_step(self) -> Callable[[], Tensor]:
        """Return a step of ResNet-18 as ``coreset score`` makes it, on random images."""
        device, draws = resolve_device("cpu"), generator_for(0)
        network = build_network("resnet18", self.classes, norm="batch", seed=0)
        layout = memory_format_for("batch", device)
        network = placed(network, device, layout)
        images = torch.randn((self.batch, 3, self.size, self.size), generator=draws)
        images = images.contiguous(memory_format=layout)
        labels = torch.randint(2, (self.batch,), generator=draws)
        optimiser = sgd(network, lr=LR, weight_decay=1e-4)
        trainer = Trainer(network, optimiser, lambda _: LR, device)
        return lambda: trainer.step(images, partial(cross_entropy, target=labels))

    def step(self) -> Iterator[Row]:
        """Compare the time of accumulating a batch with that of the training step, on the CPU."""
        step = self.training_step()
        dtype = step().dtype
        batches = self.batches(dtype, UPDATES_BESIDE_STEP)
        contenders = [
            Contender(name=STEP, run=partial(_often, step, STEPS_PER_TURN), role="limit"),
            *(
                Contender(name=name, run=partial(all_batches, dynamics.update, batches))
                for name, dynamics in self._accumulators().items()
            ),
        ]
        rows = race(contenders, repeats=self.repeats, work=self.work)
        steps, *ours = [row["seconds"] for row in rows]
        yield {"name": STEP, "logits": str(dtype), **_milliseconds(steps, STEPS_PER_TURN)}
        for row, seconds in zip(rows[1:], ours, strict=True):
            times = len(batches) / STEPS_PER_TURN
            shares = [ratio / times for ratio in ratios(seconds, steps)]
            about = {"name": row["contender"], "logits": str(dtype), "goal": SHARE_GOAL}
            yield about | _milliseconds(seconds, len(batches)) | {"share": median(shares)}

    def _accumulators(self) -> dict[str, Dynamics]:
        return {
            name: Dynamics(self.samples, "cpu", compiled=name == COMPILED)
            for name in (EAGER, COMPILED)
        }

    def peers(self) -> Iterator[Row]:
        """Time every accumulator on the same float32 logits; check the AUM against NumPy's."""
        resolve_device("cpu")
        batches = self.batches(torch.float32, UPDATES_BESIDE_PEER)
        shown = np.concatenate([ids.numpy() for _, _, ids in batches])
        expected = np.concatenate([margins_by_definition(*batch[:2]) for batch in batches])
        entries: list[Contender | Row] = [
            Contender(
                name=name,
                run=partial(all_batches, dynamics.update, batches),
                check=lambda _, dynamics=dynamics: aum_error(_aum_of(dynamics)[shown], expected),
                role="ours",
            )
            for name, dynamics in self._accumulators().items()
        ]
        entries.append(aum_package(self.work, batches, self.samples, expected))
        nbytes = len(shown) * batches[0][0][0].nbytes
        rows = race(
            entries, repeats=self.repeats, work=self.work, images=len(shown), source_bytes=nbytes
        )
        yield from (row | {"goal": GOALS.get(row["contender"])} for row in rows)


def _often(step: Callable[[], object], times: int, _out: Path) -> None:
    for _ in range(times):
        step()


def _milliseconds(seconds: Sequence[float], times: int) -> Row:
    ms = [1e3 * each / times for each in seconds]
    return {"rounds": len(ms), "median_ms": median(ms), "min_ms": min(ms), "max_ms": max(ms)}


def all_batches(update: Update, batches: Sequence[Batch], _out: Path) -> None:
    """Update with each batch in turn."""
    for logits, labels, ids in batches:
        update(logits, labels, ids)


def _aum_of(dynamics: Dynamics) -> NDArray[Any]:
    sums = dynamics.state()["sums"].numpy()
    visits = np.maximum(sums[:, SUMS.index("visits")], 1)
    return sums[:, SUMS.index("logit_margin")] / visits


def margins_by_definition(logits: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """Compute margins with NumPy."""
    values, rows = logits.double().numpy().copy(), np.arange(len(labels))
    own = values[rows, labels.numpy()].copy()
    values[rows, labels.numpy()] = -np.inf
    return own - values.max(axis=1)


def aum_error(aum: NDArray[Any], expected: NDArray[np.float64]) -> str:
    """Return the error of the AUM of the samples that were shown; empty if it is right."""
    # A running float32 sum of equal margins is off by half a unit in the last place per addition.
    far = np.flatnonzero(~np.isclose(aum, expected, rtol=1e-5, atol=1e-5))
    if not far.size:
        return ""
    return f"AUM of {far.size} samples differs, one is {aum[far[0]]}, not {expected[far[0]]}"


def aum_package(
    work: Path, batches: Sequence[Batch], n_samples: int, expected: NDArray[np.float64]
) -> Contender | Row:
    """Return the calculator of the AUM paper's package; lists of ids are made before the clock."""
    try:
        package = import_module(PEER)
    except ImportError as error:
        return absent(PEER, f"{type(error).__name__}: {error}")
    calculator = package.AUMCalculator(str(work), compressed=True)
    ids = torch.randperm(n_samples, generator=generator_for(1)).tolist()
    calculator.counts.update(dict.fromkeys(ids, 0))
    calculator.sums.update(dict.fromkeys(ids, 0.0))
    listed = [(logits, labels, ids.tolist()) for logits, labels, ids in batches]
    shown = [sample for _, _, ids in listed for sample in ids]

    def check(_out: Path) -> str:
        sums, counts = calculator.sums, calculator.counts
        aum = np.array([sums[sample] / counts[sample] for sample in shown])
        return aum_error(aum, expected)

    return Contender(
        name=PEER,
        run=partial(all_batches, calculator.update, listed),
        check=check,
        versions={PEER: version(PEER)},
        note="its dicts hold all samples, as they do from the second epoch on",
    )


def _circumstances() -> str:
    row = records_of("dynamics.step")[0]
    sizes = "{samples:,} samples, {classes:,} classes, batches of {batch}."
    threads = f"{row['threads']} threads, "
    return f"{machine(row, threads)}. {sizes.format_map(row)}"


def _milliseconds_per_batch(row: Row) -> str:
    ms = _milliseconds(row["seconds"], row["images"] // row["batch"])
    return "{median_ms:.3f} ({min_ms:.3f}-{max_ms:.3f})".format_map(ms)


def _times_the_peer(row: Row) -> str:
    times = row["speed_over"].get(PEER)
    return f"{times:.1f}" if times else ""


BLOCKS: Mapping[str, Block] = {
    "dynamics_circumstances": _circumstances,
    "dynamics_step": Table(
        "dynamics.step",
        {
            "what": "{name}",
            "ms per batch": "{median_ms:.2f} ({min_ms:.2f}-{max_ms:.2f})",
            "share of the step": optional("share", "{share:.2%}"),
            "goal": optional("goal", "at most {goal:.0%}"),
        },
    ),
    "dynamics_peers": Table(
        "dynamics.peers",
        {
            "what": "{contender} ({role})",
            "samples/s": if_present("{images_per_second:,.0f}", reason=True),
            "ms per batch": if_present(_milliseconds_per_batch),
            "times the speed of `aum`": if_present(_times_the_peer),
            "goal": optional("goal", "{goal:.0f}"),
        },
    ),
}


if __name__ == "__main__":
    tyro.cli(DynamicsBench).run()
