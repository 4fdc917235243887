"""Speeds of the device, part by part, and their projection to ImageNet."""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import MappingProxyType

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from coreset.engine.artifacts.ledger import stopwatch
from coreset.engine.data.batch import Batch
from coreset.engine.data.geometry import Geometry, stored_side
from coreset.engine.data.images import DecodedImages
from coreset.engine.data.order import BatchOrder
from coreset.engine.data.stream import ImageStream
from coreset.engine.doctor.check import SIZE, Context
from coreset.engine.doctor.machine import Check, Verdict
from coreset.engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.networks import build_network, placed
from coreset.engine.runtime.device import has_fast_bfloat16
from coreset.engine.scoring.proxy import convolutional_proxy, side_at
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.trainer import CompileMode, Trainer, compile_where_it_pays, sgd
from coreset.kernels.augment import normalised
from coreset.kernels.dynamics import Dynamics

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
SCORING_EPOCHS = 60
BATCHES_PER_EPOCH = 16
"""Of decoding: enough for reading ahead to settle between the beginnings of epochs."""
FAST_BATCHES = {"cpu": 64, "cuda": 1024}
"""Images per step of the fast recipe: a CPU takes a minute for its own."""
DECODE, COPY = "decode", "copy to the device"
FORWARD, TRAIN = "ResNet-18 forward", "ResNet-18 forward and backward"


FAST = RECIPES["fast"]
FAST_EPOCHS = Counter(
    side_at(epoch, FAST.epochs, FAST.start_size, FAST.size) for epoch in range(FAST.epochs)
)
"""Epochs of the fast recipe by the side of their crops."""
FAST_SIDES = tuple(sorted(FAST_EPOCHS))


def fast_step(side: int) -> str:
    """Name of the speed of the fast recipe's steps at one side."""
    return f"fast recipe at {side} px"


@dataclass(frozen=True, slots=True)
class Span:
    """Epochs over the images of ImageNet, and the parts of which the slowest bounds them."""

    parts: Sequence[str]
    epochs: int = 1


PASSES: Mapping[str, Sequence[Span]] = MappingProxyType(
    {
        "decode once": (Span((DECODE,)),),
        "embed once": (Span((DECODE, FORWARD)),),
        "score from kept pixels": (Span((COPY, TRAIN), SCORING_EPOCHS),),
        "score by the fast recipe": tuple(
            Span((COPY, fast_step(side)), FAST_EPOCHS[side]) for side in FAST_SIDES
        ),
    }
)
"""What is projected: spans that follow one another."""


def decoding(context: Context) -> Iterator[Check]:
    """Time reading and decoding, to where batches are handed over."""
    ids = np.resize(context.ids, BATCHES_PER_EPOCH * context.batch)
    with (
        context.source(Geometry(SIZE), ids) as source,
        closing(_endless(source, context)) as endless,
    ):
        per_second = rate(lambda: len(next(endless).ids), context)
    mean_bytes = round(float(context.dataset.ints("bytes")[context.ids].mean()))
    yield _speed(DECODE, per_second, f"{SIZE} px, files of {mean_bytes / 1000:,.0f} kB")


def _endless(source: ImageStream, context: Context) -> Generator[Batch]:
    for epoch in count():
        yield from source.epoch(BatchOrder(batch=context.batch, epoch=epoch, shuffle=True))


def copying(context: Context) -> Iterator[Check]:
    """Time the copy of kept pixels from the host's memory (pinned, for a GPU) to the device."""
    side = stored_side(SIZE)
    images = context.pixels(Geometry(side)).images.cpu()
    if context.device.type == "cuda":
        images = images.pin_memory()

    def step() -> int:
        images.to(context.device, non_blocking=True, copy=True)
        return len(images)

    yield _speed(COPY, rate(step, context), f"uint8, {side} px")


def embedding(context: Context) -> Iterator[Check]:
    """Time the forward pass as `embed` computes it, in float32, on pixels on the device."""
    network = build_network("resnet18", IMAGENET_CLASSES, norm="batch", seed=0).eval()
    network = placed(network, context.device, torch.channels_last)
    images = context.pixels(Geometry(SIZE)).images

    @torch.inference_mode()
    def step() -> int:
        network(normalised(images, IMAGENET_MEAN, IMAGENET_STD))
        return len(images)

    yield _speed(FORWARD, rate(step, context), f"{SIZE} px, float32")


def training(context: Context) -> Iterator[Check]:
    """Time the steps of `score`, crops included, on pixels on the device, not compiled."""
    pixels = context.pixels(Geometry(stored_side(SIZE), stored_side(SIZE)))
    n_classes = max(IMAGENET_CLASSES, len(context.dataset.classes))
    proxy = convolutional_proxy(
        pixels, n_classes, size=SIZE, crop_scale=0.08, batch=context.batch, seed=0,
        device=context.device,
    )  # fmt: skip
    optimiser = sgd(proxy.network, lr=0.1, weight_decay=1e-4)
    trainer = Trainer(proxy.network, optimiser, lambda _: 0.1, context.device)

    def step() -> int:
        for inputs, labels, _ in proxy.examples(trainer.steps):
            trainer.step(inputs, partial(cross_entropy, target=labels))
        return len(pixels)

    precision = "bfloat16" if has_fast_bfloat16(context.device) else "float32"
    yield _speed(TRAIN, rate(step, context), f"{SIZE} px, {precision}, not compiled")


def fast_training(context: Context, side: int) -> Iterator[Check]:
    """Time the steps of the fast recipe at one side as `score` runs them: compiled on a GPU.

    There a second time with CUDA graphs, to see whether they help (``--compile graphs``).
    """
    modes: Mapping[CompileMode, str] = {"off": "not compiled"}
    if context.device.type == "cuda":
        modes = {"on": "compiled", "graphs": "compiled, CUDA graphs"}
    for mode, how in modes.items():
        step, batch = _fast_steps(context, side, mode)
        name = fast_step(side) + (", CUDA graphs" if mode == "graphs" else "")
        yield _speed(name, rate(step, context), f"batches of {batch}, {how}")


def _fast_steps(context: Context, side: int, mode: CompileMode) -> tuple[Callable[[], int], int]:
    """A step and how many images it takes."""
    pixels = context.pixels(Geometry(stored_side(FAST.size), stored_side(FAST.size)))
    batch = min(FAST.batch, FAST_BATCHES[context.device.type])
    rows = np.resize(np.arange(len(pixels)), batch)
    images = pixels.images.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
    resident = DecodedImages(images, pixels.labels[rows], pixels.ids[rows])
    n_classes = max(IMAGENET_CLASSES, len(context.dataset.classes))
    proxy = convolutional_proxy(
        resident, n_classes, size=side, crop_scale=FAST.crop_scale, batch=batch, seed=0,
        device=context.device,
    )  # fmt: skip
    compile_where_it_pays(proxy.network, mode, context.device, image_passes=0, size=side)
    optimiser = sgd(proxy.network, lr=FAST.lr, weight_decay=FAST.weight_decay)
    trainer = Trainer(proxy.network, optimiser, lambda _: FAST.lr, context.device)
    dynamics = Dynamics(batch, context.device, compiled=mode != "off")
    rows = torch.arange(batch, device=context.device)

    def step() -> int:
        for inputs, labels, _ in proxy.examples(trainer.steps):
            logits = trainer.step(inputs, partial(cross_entropy, target=labels))
            dynamics.update(logits, labels, rows)
        return batch

    return step, batch


def rate(step: Callable[[], int], context: Context) -> float:
    """Images per second of ``step``, which returns how many it did.

    Runs for ``context.seconds``, and once at least; the call before, which allocates, is not timed.
    """
    step()
    _settle(context.device)
    watch, images = stopwatch(), 0
    while images == 0 or watch.seconds < context.seconds:
        images += step()
    _settle(context.device)
    return images / watch.seconds


def _settle(device: torch.device) -> None:
    """Wait for a GPU to do what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _speed(name: str, per_second: float, what: str) -> Check:
    value = f"{_rounded(per_second)} images/s ({what})"
    return Check(name, value, facts={"images_per_second": per_second, "what": what})


def projections(found: Sequence[Check]) -> Iterator[Check]:
    """Hours for ImageNet from the speeds among ``found``, if the parts of a pass overlap fully.

    A projection is arithmetic, not a measurement: images x epochs / speed of the slowest part,
    added up over spans.
    """
    speeds = {
        check.name: float(check.facts["images_per_second"])
        for check in found
        if "images_per_second" in check.facts
    }
    for one, spans in PASSES.items():
        name = f"projection: {one}"
        missing = [part for span in spans for part in span.parts if part not in speeds]
        if missing:
            remedy = "see the row that failed"
            some = ", ".join(dict.fromkeys(missing))
            yield Check(name, f"no speed of: {some}", Verdict.WARN, remedy)
            continue
        bounds = [min(span.parts, key=speeds.__getitem__) for span in spans]
        terms = [
            f"{_epochs(span)} / {_rounded(speeds[bound])} per s"
            for span, bound in zip(spans, bounds, strict=True)
        ]
        hours = sum(
            IMAGENET_IMAGES * span.epochs / speeds[bound] / 3600
            for span, bound in zip(spans, bounds, strict=True)
        )
        bound_by = ", ".join(dict.fromkeys(bounds))
        value = f"{hours:,.2f} h = {' + '.join(terms)}, bound by {bound_by}"
        epochs = sum(span.epochs for span in spans)
        facts = {"hours": hours, "bound_by": bound_by, "epochs": epochs, "images": IMAGENET_IMAGES}
        yield Check(name, value, facts=facts)


def _epochs(span: Span) -> str:
    return f"{IMAGENET_IMAGES:,} images" + (f" x {span.epochs} epochs" if span.epochs > 1 else "")


def _rounded(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"
