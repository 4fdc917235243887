"""The whole pipeline from decoded pixels, beside the same step on data that is there already."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coreset.bench.contenders import Contender, Measured, interleave
from coreset.engine.data.geometry import stored_side
from coreset.engine.data.images import DecodedImages
from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.networks import memory_format_for
from coreset.engine.runtime.device import resolve_device
from coreset.engine.runtime.seeding import generator_for
from coreset.engine.scoring.proxy import Proxy, convolutional_proxy, crops_on
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.sgd import Sgd
from coreset.engine.training.trainer import Trainer
from coreset.kernels.augment import draw_crops, horizontal_flip, normalised
from coreset.kernels.dynamics import Dynamics

Row: TypeAlias = dict[str, Any]
Example: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Network inputs, labels, ids."""

PIPELINE, RESIDENT = "from decoded pixels", "one resident batch"
ROWS, CROPS, FLIPS, NORMALISE, STEP, ACCUMULATE = (
    "take rows",
    "random crops",
    "flips",
    "normalise, channels last",
    "training step",
    "accumulate",
)
SHARE_GOAL = 0.95
CLASSES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Sizes, and where to work; `coreset.bench.score.ScoreBench` explains them."""

    data: Path
    work: Path
    repeats: int
    steps: int
    sizes: tuple[int, ...]
    loop_images: int
    score_images: int
    score_epochs: int
    threads: int


@dataclass(frozen=True, slots=True)
class Scoring:
    """What one process of ``coreset score`` holds, on random decoded pixels."""

    pixels: DecodedImages
    proxy: Proxy
    trainer: Trainer
    dynamics: Dynamics
    batch: int

    @staticmethod
    def of_random(images: int, size: int, batch: int, device: torch.device) -> "Scoring":
        """ResNet-18 by the full recipe, on ``images`` random squares from which crops are taken."""
        side, recipe = stored_side(size), RECIPES["full"]
        draws = generator_for(0)
        levels = torch.randint(256, (images, side, side, 3), dtype=torch.uint8, generator=draws)
        labels = np.arange(images) % CLASSES
        pixels = DecodedImages(levels.permute(0, 3, 1, 2), labels, np.arange(images))
        proxy = convolutional_proxy(
            pixels,
            CLASSES,
            size=size,
            crop_scale=recipe.crop_scale,
            batch=batch,
            seed=0,
            device=device,
        )
        optimiser = Sgd(lr=recipe.lr, weight_decay=recipe.weight_decay).build(proxy.network)
        # A rate that random labels survive; it changes no time.
        trainer = Trainer(proxy.network, optimiser, lambda _: 0.01, device)
        dynamics = Dynamics(images, device)
        dynamics.begin_epoch(0)
        return Scoring(pixels, proxy, trainer, dynamics, batch)

    def train(self, examples: Iterable[Example]) -> None:
        """Update and accumulate, as ``coreset.engine.scoring.run.ScoringRun`` does per batch."""
        for inputs, labels, ids in examples:
            self.accumulate(self.step(inputs, labels), labels, ids)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Forward, backward, update; the logits."""
        return self.trainer.step(inputs, partial(cross_entropy, target=labels))

    def accumulate(self, logits: Tensor, labels: Tensor, ids: Tensor) -> None:
        """All scores of a batch."""
        self.dynamics.update(logits, labels, ids)


def pipeline(setting: Setting) -> Iterator[Row]:
    """Images/s at every size, and the time of each part alone."""
    device, batch = resolve_device("cpu"), RECIPES["full"].batch
    for size in setting.sizes:
        scoring = Scoring.of_random(setting.steps * batch, size, batch, device)
        measured = _timed(_wholes(scoring), setting) + _timed(_parts(scoring, size), setting)
        facts = {"size": size, "batch": batch, "classes": CLASSES, "threads": setting.threads}
        yield from (facts | row for row in rows_of(measured, setting.steps * batch))


def rows_of(measured: list[Measured], images: int) -> Iterator[Row]:
    """One row per contender: time per image and rate; the pipeline's with its share."""
    resident = next(one for one in measured if one.contender.name == RESIDENT)
    for one in measured:
        row: Row = {
            "name": one.contender.name,
            "images": images,
            "seconds": [round(seconds, 4) for seconds in one.seconds],
            "images_per_second": round(images / one.median_seconds, 1),
            "us_per_image": round(one.median_seconds / images * 1e6, 2),
        }
        if one.contender.name == PIPELINE:
            row |= {"share": round(one.speed_over(resident), 4), "goal": SHARE_GOAL}
            row |= {"shares": [round(share, 4) for share in shares(one, resident)]}
        yield row


def shares(one: Measured, of: Measured) -> list[float]:
    """Speed of ``one`` over that of ``of``, round by round."""
    return [theirs / ours for ours, theirs in zip(one.seconds, of.seconds, strict=True)]


def _wholes(scoring: Scoring) -> list[Contender]:
    steps = len(scoring.pixels) // scoring.batch
    example = next(iter(scoring.proxy.examples(0)))
    epochs = iter(range(1, 1 << 20))  # other crops in every turn
    return [
        Contender(
            name=PIPELINE,
            run=lambda _: scoring.train(scoring.proxy.examples(next(epochs))),
            role="ours",
        ),
        Contender(name=RESIDENT, run=lambda _: scoring.train(repeat(example, steps)), role="limit"),
    ]


def _parts(scoring: Scoring, size: int) -> list[Contender]:
    """Each part of the pipeline on its own, as often as an epoch needs it."""
    steps, draws = len(scoring.pixels) // scoring.batch, generator_for(0)
    layout = memory_format_for("batch", scoring.trainer.device)
    squares = next(iter(scoring.pixels.epoch(scoring.batch))).images.clone()
    scale, device = (RECIPES["full"].crop_scale, 1.0), scoring.trainer.device

    def cropped() -> Tensor:
        n, _, height, width = squares.shape
        return crops_on(device, squares, draw_crops(n, height, width, draws, scale=scale), size)

    crops = cropped()
    inputs, labels, ids = next(iter(scoring.proxy.examples(0)))
    logits = scoring.step(inputs, labels)
    each: dict[str, Callable[[], object]] = {
        CROPS: cropped,
        FLIPS: lambda: horizontal_flip(crops, draws),
        NORMALISE: lambda: normalised(crops, IMAGENET_MEAN, IMAGENET_STD).contiguous(
            memory_format=layout
        ),
        STEP: lambda: scoring.step(inputs, labels),
        ACCUMULATE: lambda: scoring.accumulate(logits, labels, ids),
    }

    def rows(_: Path) -> None:
        for _batch in scoring.pixels.epoch(scoring.batch, shuffle=True):
            pass

    often = {name: partial(_often, work, steps) for name, work in each.items()}
    return [
        Contender(name=name, run=run, role="limit") for name, run in ({ROWS: rows} | often).items()
    ]


def _often(work: Callable[[], object], times: int, _: Path) -> None:
    for _time in range(times):
        work()


def _timed(contenders: list[Contender], setting: Setting) -> list[Measured]:
    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        return interleave(contenders, repeats=setting.repeats, work=Path(folder))


def coreset(*words: object) -> dict[str, Any]:
    """Run a command; the facts that it ends with."""
    command = [sys.executable, "-m", "coreset.engine.cli", *map(str, words), "--json"]
    print("$ coreset", *words, flush=True)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return facts_of(done.stdout.splitlines())


def facts_of(lines: Iterable[str]) -> dict[str, Any]:
    """The last JSON line."""
    return json.loads([line for line in lines if line.startswith("{")][-1])
