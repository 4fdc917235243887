"""Scoring pipeline from decoded pixels, beside the same step on one resident batch."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, repeat
from pathlib import Path
from statistics import median

from torch import Tensor

from coreset.bench.harness import Contender, Measured, Row, interleave_in_scratch
from coreset.bench.score_training import CLASSES, Setting, Training, random_images, training
from coreset.engine.data.images import DecodedImages
from coreset.engine.data.order import BatchOrder
from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.networks import memory_format_for
from coreset.engine.runtime.device import generator_for
from coreset.engine.scoring.proxy import crops_on
from coreset.engine.scoring.recipes import RECIPES
from coreset.kernels.augment import draw_crops, horizontal_flip, normalised

PIPELINE, RESIDENT = "from decoded pixels", "one resident batch"
SHARE_GOAL = 0.95


def pipeline(setting: Setting) -> Iterator[Row]:
    """Time the pipeline at every size, and each of its parts alone."""
    batch = RECIPES["full"].batch
    n = setting.steps * batch
    for size in setting.sizes:
        pixels = random_images(n, size)
        scoring = training(pixels, n, CLASSES, size=size, batch=batch)
        scoring.dynamics.begin_epoch(0)
        measured = [
            timed
            for contenders in (
                _wholes(scoring, setting.steps),
                _parts(scoring, pixels, size, batch, setting.steps),
            )
            for timed in interleave_in_scratch(
                contenders, repeats=setting.repeats, work=setting.work
            )
        ]
        about = {"size": size, "batch": batch, "classes": CLASSES, "threads": setting.threads}
        yield from (about | row for row in rows_of(measured, n))


def rows_of(measured: Sequence[Measured], images: int) -> Iterator[Row]:
    """Yield time per image and rate of each contender; the pipeline's with its share."""
    resident = next(each for each in measured if each.contender.name == RESIDENT)
    for each in measured:
        row: Row = {
            "name": each.contender.name,
            "images": images,
            "seconds": [round(seconds, 4) for seconds in each.seconds],
            "images_per_second": round(images / each.median_seconds, 1),
            "us_per_image": round(each.median_seconds / images * 1e6, 2),
        }
        if each.contender.name == PIPELINE:
            shares = each.ratios_over(resident)
            row |= {"share": round(median(shares), 4), "goal": SHARE_GOAL}
            row |= {"shares": [round(share, 4) for share in shares]}
        yield row


def _wholes(scoring: Training, steps: int) -> list[Contender]:
    example = next(iter(scoring.proxy.examples(0)))
    epochs = count(1)  # other crops in every turn
    return [
        Contender(
            name=PIPELINE,
            run=lambda _: scoring.train(scoring.proxy.examples(next(epochs))),
            role="ours",
        ),
        Contender(name=RESIDENT, run=lambda _: scoring.train(repeat(example, steps)), role="limit"),
    ]


def _parts(
    scoring: Training, pixels: DecodedImages, size: int, batch: int, steps: int
) -> list[Contender]:
    """Return each part of the pipeline on its own, as often as an epoch needs it."""
    draws, device = generator_for(0), scoring.trainer.device
    layout = memory_format_for("batch", device)
    squares = next(iter(pixels.epoch(BatchOrder(batch=batch)))).images.clone()
    scale = (RECIPES["full"].crop_scale, 1.0)

    def cropped() -> Tensor:
        n, _, height, width = squares.shape
        return crops_on(device, squares, draw_crops(n, height, width, draws, scale=scale), size)

    crops = cropped()
    inputs, labels, ids = next(iter(scoring.proxy.examples(0)))
    logits = scoring.step(inputs, labels)
    parts: dict[str, Callable[[], object]] = {
        "random crops": cropped,
        "flips": lambda: horizontal_flip(crops, draws),
        "normalise, channels last": lambda: normalised(
            crops, IMAGENET_MEAN, IMAGENET_STD
        ).contiguous(memory_format=layout),
        "training step": lambda: scoring.step(inputs, labels),
        "accumulate": lambda: scoring.dynamics.update(logits, labels, ids),
    }

    def take_rows(_: Path) -> None:
        for _batch in pixels.epoch(BatchOrder(batch=batch, shuffle=True)):
            pass

    often = {name: partial(_often, part, steps) for name, part in parts.items()}
    return [
        Contender(name=name, run=run, role="limit")
        for name, run in ({"take rows": take_rows} | often).items()
    ]


def _often(part: Callable[[], object], times: int, _: Path) -> None:
    for _time in range(times):
        part()
