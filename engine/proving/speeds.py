"""How fast the device is, part by part, and what that comes to for ImageNet."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from engine.batch import Batch
from engine.decode.geometry import Geometry
from engine.decode.source import Source
from engine.device import has_fast_bfloat16
from engine.ledger import stopwatch
from engine.machine import Check, Verdict
from engine.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from engine.models.networks import build_network, placed
from engine.proving.subject import SIZE, Subject
from engine.proxy import convolutional_proxy, stored_side
from engine.training import Sgd, Trainer
from kernels.augment import normalised

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000
SCORING_EPOCHS = 60
BATCHES_PER_EPOCH = 16
"""Of decoding: enough for reading ahead to settle between the beginnings of epochs."""
DECODE, COPY = "decode", "copy to the device"
FORWARD, TRAIN = "ResNet-18 forward", "ResNet-18 forward and backward"


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over the images of ImageNet, and the parts of which the slowest bounds it."""

    name: str
    parts: Sequence[str]
    epochs: int = 1


PASSES = (
    Pass("decode once", (DECODE,)),
    Pass("embed once", (DECODE, FORWARD)),
    Pass("score from kept pixels", (COPY, TRAIN), SCORING_EPOCHS),
)


def decoding(subject: Subject) -> Iterator[Check]:
    """Time reading and decoding, to where batches are handed over."""
    ids = np.resize(subject.ids, BATCHES_PER_EPOCH * subject.batch)
    with (
        subject.source(Geometry(SIZE), ids) as source,
        closing(_endless(source, subject)) as endless,
    ):
        per_second = rate(lambda: len(next(endless).ids), subject)
    mean_bytes = round(float(subject.dataset.ints("bytes")[subject.ids].mean()))
    yield _speed(DECODE, per_second, f"{SIZE} px, files of {mean_bytes / 1000:,.0f} kB")


def _endless(source: Source, subject: Subject) -> Generator[Batch]:
    for epoch in count():
        yield from source.epoch(subject.batch, epoch=epoch, shuffle=True)


def copying(subject: Subject) -> Iterator[Check]:
    """Time the copy of kept pixels from the host's memory (pinned, for a GPU) to the device."""
    side = stored_side(SIZE)
    images = subject.pixels(Geometry(side)).images.cpu()
    if subject.device.type == "cuda":
        images = images.pin_memory()

    def step() -> int:
        images.to(subject.device, non_blocking=True, copy=True)
        return len(images)

    yield _speed(COPY, rate(step, subject), f"uint8, {side} px")


def embedding(subject: Subject) -> Iterator[Check]:
    """Time the forward pass as `embed` computes it, in float32, on pixels on the device."""
    network = build_network("resnet18", IMAGENET_CLASSES, norm="batch", seed=0).eval()
    network = placed(network, subject.device, torch.channels_last)
    images = subject.pixels(Geometry(SIZE)).images

    @torch.inference_mode()
    def step() -> int:
        network(normalised(images, IMAGENET_MEAN, IMAGENET_STD))
        return len(images)

    yield _speed(FORWARD, rate(step, subject), f"{SIZE} px, float32")


def training(subject: Subject) -> Iterator[Check]:
    """Time the steps of `score`, crops included, on pixels on the device, not compiled."""
    pixels = subject.pixels(Geometry(stored_side(SIZE), stored_side(SIZE)))
    n_classes = max(IMAGENET_CLASSES, len(subject.dataset.classes))
    proxy = convolutional_proxy(
        pixels, n_classes, size=SIZE, crop_scale=0.08, batch=subject.batch, seed=0,
        device=subject.device,
    )  # fmt: skip
    optimiser = Sgd(lr=0.1, weight_decay=1e-4).build(proxy.network)
    trainer = Trainer(proxy.network, optimiser, lambda _: 0.1, subject.device)

    def step() -> int:
        for inputs, labels, _ in proxy.examples(trainer.steps):
            trainer.step(inputs, partial(cross_entropy, target=labels))
        return len(pixels)

    precision = "bfloat16" if has_fast_bfloat16(subject.device) else "float32"
    yield _speed(TRAIN, rate(step, subject), f"{SIZE} px, {precision}, not compiled")


def rate(step: Callable[[], int], subject: Subject) -> float:
    """Images per second of ``step``, which returns how many it did.

    Runs for ``subject.seconds``, and once at least; the call before, which allocates, is not timed.
    """
    step()
    _settle(subject.device)
    watch, images = stopwatch(), 0
    while images == 0 or watch.seconds < subject.seconds:
        images += step()
    _settle(subject.device)
    return images / watch.seconds


def _settle(device: torch.device) -> None:
    """Wait for a GPU to do what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _speed(name: str, per_second: float, what: str) -> Check:
    value = f"{_rounded(per_second)} images/s ({what})"
    return Check(name, value, facts={"images_per_second": per_second, "what": what})


def _rounded(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def projections(found: Sequence[Check]) -> Iterator[Check]:
    """Hours for ImageNet from the speeds among ``found``, if the parts of a pass overlap fully.

    A projection is arithmetic, not a measurement: images x epochs / speed of the slowest part.
    """
    speeds = {
        check.name: float(check.facts["images_per_second"])
        for check in found
        if "images_per_second" in check.facts
    }
    for one in PASSES:
        name = f"projection: {one.name}"
        missing = [part for part in one.parts if part not in speeds]
        if missing:
            remedy = "see the row that failed"
            yield Check(name, f"no speed of: {', '.join(missing)}", Verdict.WARN, remedy)
            continue
        bound = min(one.parts, key=speeds.__getitem__)
        hours = IMAGENET_IMAGES * one.epochs / speeds[bound] / 3600
        images = f"{IMAGENET_IMAGES:,} images"
        images += f" x {one.epochs} epochs" if one.epochs > 1 else ""
        value = f"{hours:,.2f} h = {images} / {_rounded(speeds[bound])} per s, bound by {bound}"
        facts = {"hours": hours, "bound_by": bound, "epochs": one.epochs, "images": IMAGENET_IMAGES}
        yield Check(name, value, facts=facts)
